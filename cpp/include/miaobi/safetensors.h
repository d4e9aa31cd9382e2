// SPDX-License-Identifier: MIT
// Reading and writing safetensors files: 8 bytes of header size (little-endian), a JSON header, raw tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "miaobi/mapped_file.h"

namespace miaobi {

// Pairs in the order of the file.
using SafetensorsMetadata = std::vector<std::pair<std::string, std::string>>;

// A tensor found in a file.
struct StoredTensor {
  std::string name;
  std::string_view dtype;           // as the format spells it: "F32", "F16", "BF16", "I64", ...; static storage
  std::vector<int64_t> shape;       // empty for a single number
  const std::byte* data = nullptr;  // row-major, any alignment, alive as long as the SafetensorsFile
  int64_t nbytes = 0;
  int64_t count = 0;          // number of values
  int64_t header_offset = 0;  // where its entry starts in the file: the offset for a FormatError about it
};

// A safetensors file, verified completely when opened; tensor data is read only when asked for.
//
// Refused with FormatError(path, offset, reason): fewer than 8 bytes; a header over 100 MB or past the end of
// the file; a header that is not strict JSON of the expected form (wrong or unknown keys, duplicates, invalid
// UTF-8, anything but spaces after it); an unknown dtype; a negative, fractional or overflowing dimension, or
// more than 32 of them; a byte range that is reversed, past the end, or not count * item size long; ranges
// that overlap or leave holes; bytes after the last tensor. SystemError when the file cannot be opened.
//
// Const members may be called from several threads. The file must not shrink meanwhile: see MappedFile.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  // The same over bytes in somebody else's memory, which must outlive this object; `name` stands for the path.
  SafetensorsFile(std::span<const std::byte> bytes, std::string name);

  const std::string& path() const { return path_; }                      // UTF-8
  const std::vector<StoredTensor>& tensors() const { return tensors_; }  // in header order
  const SafetensorsMetadata& metadata() const { return metadata_; }

  bool contains(std::string_view name) const { return index_.find(name) != index_.end(); }
  // FormatError if there is no such tensor.
  const StoredTensor& tensor(std::string_view name) const;

  // Writes the tensor as float32 to out[0, count). F32, F16 and BF16 are converted exactly, NaN payloads
  // included. FormatError if it is missing, has another number of values, or is of another dtype.
  void read_f32(std::string_view name, float* out, int64_t count) const;

 private:
  void parse(std::span<const std::byte> bytes);

  MappedFile file_;
  std::string path_;
  std::vector<StoredTensor> tensors_;
  SafetensorsMetadata metadata_;
  std::map<std::string, size_t, std::less<>> index_;  // name -> position in tensors_
};

// A tensor to be written: `data` is row-major float32 and may be null when the shape holds a zero.
struct TensorToStore {
  std::string name;
  std::vector<int64_t> shape;
  const float* data = nullptr;
};

// Writes an F32 file: metadata first, then the tensors, all in the order given, the header padded with spaces
// so that data starts at a multiple of 8. The same input gives the same bytes.
//
// Atomic: the path holds the old file or the complete new one, and no temporary file is left after an error.
// The tensors may lie in a mapping of the very file that is replaced (not on Windows).
//
// Throws Error for a duplicate, reserved ("__metadata__") or non-UTF-8 name, a bad shape, or a header over
// 100 MB; SystemError when writing fails, before the first byte if the disk lacks the space (ENOSPC).
void write_safetensors(const std::filesystem::path& path, std::span<const TensorToStore> tensors,
                       const SafetensorsMetadata& metadata = {});

}  // namespace miaobi

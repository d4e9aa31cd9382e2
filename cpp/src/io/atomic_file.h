// SPDX-License-Identifier: MIT
// Writing a file so that its path never names half of it.
#pragma once

#include <cstdint>
#include <filesystem>

namespace miaobi {

// Bytes go to a temporary file in the same folder; commit() gives it the final name. Without commit(), or when
// anything throws, the destructor removes the temporary file and the old file stays as it was. A symbolic link
// at `path` is replaced, not followed.
//
// Every member throws SystemError on failure.
class AtomicFile {
 public:
  // `size` is the number of bytes that will be written: ENOSPC, with both figures, if the disk has fewer left.
  AtomicFile(const std::filesystem::path& path, int64_t size);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, int64_t size);

  // Flushes to the disk, renames, flushes the folder. To be called once, last.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty once renamed
  int descriptor_ = -1;
};

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// The safetensors format: header checks, conversion to float32, and the F32 writer.
#include "miaobi/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <set>

#include "atomic_file.h"
#include "json_cursor.h"
#include "miaobi/check.h"
#include "system_call.h"

namespace miaobi {
namespace {

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian and are read as they lie");

constexpr int64_t kPrefixSize = 8;               // the header size, a little-endian uint64
constexpr int64_t kMaxHeaderSize = 100'000'000;  // the reference implementation's limit
constexpr size_t kMaxRank = 32;                  // what every NumPy can hold
// With at most 64 bits a value, the size in bits of this many still fits an int64_t.
constexpr int64_t kMaxCount = int64_t{1} << 56;
constexpr std::string_view kMetadataKey = "__metadata__";

struct DTypeSize {
  std::string_view name;
  int64_t bits;
};

constexpr std::array<DTypeSize, 22> kDTypes = {{
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
}};

// A name for a message: as JSON, and not longer than a person would read.
std::string name_text(std::string_view name) {
  constexpr size_t kLongest = 80;
  if (name.size() <= kLongest) return json_quote(name);
  size_t end = 0;
  while (end < kLongest) end += std::max<size_t>(1, utf8_sequence_length(name, end));
  return json_quote(name.substr(0, end)) + "...";
}

std::string list_text(const std::vector<int64_t>& values) {
  std::string text = "[";
  for (const int64_t value : values) text += (text.size() > 1 ? "," : "") + std::to_string(value);
  return text + "]";
}

// The product, or -1 if it is too large even with the zero dimensions left out (an array of such a shape cannot
// be made, empty or not) or a dimension is negative.
int64_t count_values(const std::vector<int64_t>& shape) {
  int64_t product = 1;
  bool empty = false;
  for (const int64_t dim : shape) {
    empty = empty || dim == 0;
    if (dim < 0 || dim > kMaxCount / product) return -1;
    product *= std::max<int64_t>(dim, 1);
  }
  return empty ? 0 : product;
}

// Reads the value of one tensor's key: {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}, and checks
// all that can be checked without the other tensors. `data` is what follows the header.
StoredTensor parse_tensor(JsonCursor& cursor, std::string name, int64_t key_offset, std::span<const std::byte> data) {
  StoredTensor tensor;
  tensor.name = std::move(name);
  tensor.header_offset = key_offset;
  const auto refuse = [&](int64_t at, const std::string& reason) {
    cursor.fail(at, "tensor " + name_text(tensor.name) + ": " + reason);
  };
  int64_t bits = 0;
  int64_t shape_at = -1;
  int64_t range_at = -1;
  std::vector<int64_t> range;
  cursor.object([&](const std::string& key, int64_t at) {
    const int64_t value_at = cursor.offset();
    const bool seen = key == "dtype" ? bits != 0 : key == "shape" ? shape_at >= 0 : range_at >= 0;
    if (key != "dtype" && key != "shape" && key != "data_offsets") refuse(at, "unknown key " + name_text(key));
    if (seen) refuse(at, "a second " + name_text(key));
    if (key == "dtype") {
      const std::string dtype = cursor.string();
      const auto known = std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& d) { return d.name == dtype; });
      if (known == kDTypes.end()) refuse(value_at, "unknown dtype " + name_text(dtype));
      tensor.dtype = known->name;
      bits = known->bits;
    } else if (key == "shape") {
      shape_at = value_at;
      tensor.shape = cursor.integers(kMaxRank);
    } else {
      range_at = value_at;
      range = cursor.integers(2);
    }
  });
  if (bits == 0) refuse(key_offset, "\"dtype\" is missing");
  if (shape_at < 0) refuse(key_offset, "\"shape\" is missing");
  if (range_at < 0) refuse(key_offset, "\"data_offsets\" is missing");
  if (range.size() != 2) refuse(range_at, "expected two data_offsets, got " + std::to_string(range.size()));

  tensor.count = count_values(tensor.shape);
  if (tensor.count < 0) refuse(shape_at, "the shape " + list_text(tensor.shape) + " overflows");
  const auto [begin, end] = std::pair(range[0], range[1]);
  const std::string where = "data_offsets " + list_text(range);
  if (begin > end) refuse(range_at, where + " end before they begin");
  const int64_t available = static_cast<int64_t>(data.size());
  if (end > available) {
    refuse(range_at, where + " reach past the end: the file holds " + std::to_string(available) +
                         " bytes of data; is it truncated?");
  }
  if (tensor.count * bits % 8 != 0) refuse(shape_at, "its values do not fill whole bytes");
  tensor.nbytes = tensor.count * bits / 8;
  if (end - begin != tensor.nbytes) {
    refuse(range_at, where + " hold " + std::to_string(end - begin) + " bytes, but " + std::string(tensor.dtype) +
                         " of shape " + list_text(tensor.shape) + " takes " + std::to_string(tensor.nbytes));
  }
  tensor.data = data.data() + begin;
  return tensor;
}

// Together the tensors must cover the data exactly once.
void check_coverage(const std::vector<StoredTensor>& tensors, std::span<const std::byte> data, int64_t data_offset,
                    const std::string& path) {
  std::vector<const StoredTensor*> by_place;
  by_place.reserve(tensors.size());
  for (const StoredTensor& tensor : tensors) by_place.push_back(&tensor);
  std::sort(by_place.begin(), by_place.end(), [](const StoredTensor* a, const StoredTensor* b) {
    return std::pair(a->data, a->nbytes) < std::pair(b->data, b->nbytes);
  });
  int64_t covered = 0;
  for (const StoredTensor* tensor : by_place) {
    const int64_t begin = tensor->data - data.data();
    if (begin != covered) {
      const std::string fault = begin < covered ? " overlaps the one before it: its data begins at "
                                                : " leaves a hole before it: its data begins at ";
      throw FormatError(path, tensor->header_offset,
                        "tensor " + name_text(tensor->name) + fault + std::to_string(begin) +
                            ", the data before it ends at " + std::to_string(covered));
    }
    covered += tensor->nbytes;
  }
  const int64_t left = static_cast<int64_t>(data.size()) - covered;
  if (left != 0) {
    throw FormatError(path, data_offset + covered, std::to_string(left) + " bytes after the last tensor");
  }
}

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1F;
  uint32_t fraction = half & 0x3FF;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000u | fraction << 13);
  // 112 = 127 - 15, the difference of the exponents' biases.
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  if (fraction == 0) return std::bit_cast<float>(sign);
  // A subnormal half is a normal float: move its leading one to bit 10, which is then implied.
  const uint32_t shift = static_cast<uint32_t>(std::countl_zero(fraction)) - 21;
  fraction = (fraction << shift) & 0x3FF;
  return std::bit_cast<float>(sign | (113 - shift) << 23 | fraction << 13);
}

template <class Convert>
void convert_16(const std::byte* data, float* out, int64_t count, Convert&& convert) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, data + 2 * i, sizeof(bits));  // tensors may lie at odd addresses
    out[i] = convert(bits);
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path), path_(path_text(path)) {
  parse(file_.bytes());
}

SafetensorsFile::SafetensorsFile(std::span<const std::byte> bytes, std::string name) : path_(std::move(name)) {
  parse(bytes);
}

void SafetensorsFile::parse(std::span<const std::byte> bytes) {
  const int64_t size = static_cast<int64_t>(bytes.size());
  if (size < kPrefixSize) {
    throw FormatError(path_, size, "expected at least 8 bytes, got " + std::to_string(size));
  }
  uint64_t header_size;
  std::memcpy(&header_size, bytes.data(), sizeof(header_size));
  if (header_size > static_cast<uint64_t>(kMaxHeaderSize)) {
    throw FormatError(path_, 0,
                      "a header of " + std::to_string(header_size) + " bytes is over the limit of " +
                          std::to_string(kMaxHeaderSize) + "; is this a safetensors file?");
  }
  const int64_t data_offset = kPrefixSize + static_cast<int64_t>(header_size);
  if (data_offset > size) {
    throw FormatError(path_, 0,
                      "a header of " + std::to_string(header_size) + " bytes reaches past the end of the " +
                          std::to_string(size) + " byte file; is it truncated?");
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + kPrefixSize,
                                static_cast<size_t>(header_size));
  const std::span<const std::byte> data = bytes.subspan(static_cast<size_t>(data_offset));
  JsonCursor cursor(header, path_, kPrefixSize);
  if (!header.starts_with('{')) cursor.fail(kPrefixSize, "invalid header: expected '{' as its first byte");

  bool metadata_seen = false;
  cursor.object([&](const std::string& key, int64_t at) {
    if (key == kMetadataKey) {
      if (std::exchange(metadata_seen, true)) cursor.fail(at, "a second \"__metadata__\"");
      std::set<std::string> keys;
      cursor.object([&](const std::string& entry, int64_t entry_at) {
        if (!keys.insert(entry).second) cursor.fail(entry_at, "a second metadata key " + name_text(entry));
        metadata_.emplace_back(entry, cursor.string());
      });
    } else {
      if (!index_.emplace(key, tensors_.size()).second) cursor.fail(at, "a second tensor named " + name_text(key));
      tensors_.push_back(parse_tensor(cursor, key, at, data));
    }
  });
  cursor.expect_padding();
  check_coverage(tensors_, data, data_offset, path_);
}

const StoredTensor& SafetensorsFile::tensor(std::string_view name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) {
    throw FormatError(path_, -1,
                      "there is no tensor named " + name_text(name) + " among its " + std::to_string(tensors_.size()));
  }
  return tensors_[found->second];
}

void SafetensorsFile::read_f32(std::string_view name, float* out, int64_t count) const {
  const StoredTensor& stored = tensor(name);
  const auto refuse = [&](const std::string& reason) {
    throw FormatError(path_, stored.header_offset, "tensor " + name_text(name) + reason);
  };
  if (stored.count != count) {
    refuse(": expected " + std::to_string(count) + " values, got shape " + list_text(stored.shape));
  }
  if (stored.dtype == "F32") {
    if (count > 0) std::memcpy(out, stored.data, static_cast<size_t>(stored.nbytes));
  } else if (stored.dtype == "F16") {
    convert_16(stored.data, out, count, half_to_float);
  } else if (stored.dtype == "BF16") {
    convert_16(stored.data, out, count, [](uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); });
  } else {
    refuse(" has dtype " + std::string(stored.dtype) + "; only F32, F16 and BF16 can be read as float32");
  }
}

void write_safetensors(const std::filesystem::path& path, std::span<const TensorToStore> tensors,
                       const SafetensorsMetadata& metadata) {
  std::set<std::string_view> names = {kMetadataKey};
  std::set<std::string_view> metadata_keys;
  std::string header = "{";
  for (const auto& [key, value] : metadata) {
    MIAOBI_CHECK(is_utf8(key) && is_utf8(value), "[write_safetensors] metadata must be valid UTF-8");
    MIAOBI_CHECK(metadata_keys.insert(key).second, "[write_safetensors] two metadata entries named ", name_text(key));
    header += header.size() == 1 ? json_quote(kMetadataKey) + ":{" : ",";
    header += json_quote(key) + ":" + json_quote(value);
  }
  if (!metadata.empty()) header += "}";

  int64_t data_size = 0;
  std::vector<int64_t> sizes;
  for (const TensorToStore& tensor : tensors) {
    MIAOBI_CHECK(is_utf8(tensor.name), "[write_safetensors] tensor names must be valid UTF-8");
    MIAOBI_CHECK(names.insert(tensor.name).second, "[write_safetensors] expected unique names and none called ",
                 kMetadataKey, ", got ", name_text(tensor.name), " again");
    const int64_t count = count_values(tensor.shape);
    MIAOBI_CHECK(count >= 0 && tensor.shape.size() <= kMaxRank, "[write_safetensors] ", name_text(tensor.name),
                 ": expected at most ", kMaxRank, " dimensions >= 0, got ", list_text(tensor.shape));
    MIAOBI_CHECK(tensor.data != nullptr || count == 0, "[write_safetensors] ", name_text(tensor.name), " has no data");
    const int64_t begin = data_size;
    sizes.push_back(count * static_cast<int64_t>(sizeof(float)));
    MIAOBI_CHECK(sizes.back() <= std::numeric_limits<int64_t>::max() / 2 - begin, "[write_safetensors] too much data");
    data_size += sizes.back();
    header += (header.size() == 1 ? "" : ",") + json_quote(tensor.name) +
              ":{\"dtype\":\"F32\",\"shape\":" + list_text(tensor.shape) +
              ",\"data_offsets\":" + list_text({begin, data_size}) + "}";
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  const uint64_t header_size = header.size();
  MIAOBI_CHECK(header.size() <= static_cast<size_t>(kMaxHeaderSize), "[write_safetensors] names and metadata take ",
               header_size, " bytes, over the format's limit of ", kMaxHeaderSize);

  const int64_t prefix_size = kPrefixSize + static_cast<int64_t>(header_size);
  AtomicFile file(path, prefix_size + data_size);
  file.write(&header_size, sizeof(header_size));
  file.write(header.data(), static_cast<int64_t>(header_size));
  for (size_t i = 0; i < tensors.size(); ++i) file.write(tensors[i].data, sizes[i]);
  file.commit();
}

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// A file's bytes as read-only memory, without copying them.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

namespace miaobi {

// Maps a whole regular file. Copies share one mapping, which is undone with the last of them. Replacing the
// file by rename (as this library saves) leaves the mapping on the old bytes. On Windows a file cannot be
// replaced while it is mapped.
//
// Cutting the file shorter in place while it is mapped is outside the contract: touching the lost pages then
// ends the process (SIGBUS). An empty file gives an empty span.
//
// Throws SystemError when the path cannot be opened or mapped, or is not a regular file.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::filesystem::path& path);

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::shared_ptr<const void> mapping_;  // its deleter unmaps
  std::span<const std::byte> bytes_;
};

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// MappedFile over mmap or, on Windows, over a file mapping object.
#include "miaobi/mapped_file.h"

#include <cerrno>
#include <cstdint>

#include "system_call.h"

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace miaobi {
namespace {

#ifdef _WIN32

int last_error() {
  const std::error_code code(static_cast<int>(GetLastError()), std::system_category());
  return code.default_error_condition().value();
}

struct HandleCloser {
  HANDLE handle;
  ~HandleCloser() { CloseHandle(handle); }
};

#else

struct DescriptorCloser {
  int descriptor;
  ~DescriptorCloser() { ::close(descriptor); }
};

#endif

}  // namespace

#ifdef _WIN32

MappedFile::MappedFile(const std::filesystem::path& path) {
  const HANDLE file = CreateFileW(path.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr,
                                  OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (file == INVALID_HANDLE_VALUE) throw_system_error(last_error(), "open", path);
  const HandleCloser file_closer{file};
  LARGE_INTEGER size;
  if (GetFileType(file) != FILE_TYPE_DISK) throw_system_error(EINVAL, "read (not a regular file)", path);
  if (!GetFileSizeEx(file, &size)) throw_system_error(last_error(), "measure", path);
  if (size.QuadPart == 0) return;
  const HANDLE mapping = CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (mapping == nullptr) throw_system_error(last_error(), "map", path);
  const HandleCloser mapping_closer{mapping};  // the view keeps the mapping alive
  const void* const data = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
  if (data == nullptr) throw_system_error(last_error(), "map", path);
  mapping_ = std::shared_ptr<const void>(data, [](const void* view) { UnmapViewOfFile(view); });
  bytes_ = {static_cast<const std::byte*>(data), static_cast<size_t>(size.QuadPart)};
}

#else

MappedFile::MappedFile(const std::filesystem::path& path) {
  // Without O_NONBLOCK, opening a pipe would wait for a writer before we could refuse it.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw_system_error(errno, "open", path);
  const DescriptorCloser closer{descriptor};
  struct stat status;
  if (::fstat(descriptor, &status) != 0) throw_system_error(errno, "measure", path);
  if (S_ISDIR(status.st_mode)) throw_system_error(EISDIR, "read", path);
  if (!S_ISREG(status.st_mode)) throw_system_error(EINVAL, "read (not a regular file)", path);
  if (status.st_size == 0) return;  // mmap refuses a length of zero
  const size_t size = static_cast<size_t>(status.st_size);
  void* const data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (data == MAP_FAILED) throw_system_error(errno, "map", path);
  mapping_ = std::shared_ptr<const void>(data, [size](const void* start) { ::munmap(const_cast<void*>(start), size); });
  bytes_ = {static_cast<const std::byte*>(data), size};
}

#endif

}  // namespace miaobi

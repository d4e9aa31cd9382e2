// SPDX-License-Identifier: MIT
// AtomicFile: temporary name, fsync, rename, fsync of the folder.
#include "atomic_file.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>
#include <system_error>

#include "system_call.h"
#ifdef _WIN32
#include <io.h>
#include <process.h>
#include <sys/stat.h>
#else
#include <unistd.h>
#endif

namespace miaobi {
namespace {

namespace fs = std::filesystem;

// One call writes at most this much: macOS and Windows refuse 2 GB and more.
constexpr int64_t kMaxWrite = int64_t{1} << 30;

#ifdef _WIN32

int process_id() { return _getpid(); }
int create_new(const fs::path& path) {
  return _wopen(path.c_str(), _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY | _O_NOINHERIT, _S_IREAD | _S_IWRITE);
}
int64_t write_some(int descriptor, const char* data, int64_t size) {
  return _write(descriptor, data, static_cast<unsigned>(size));
}
int flush(int descriptor) { return _commit(descriptor); }
int close_descriptor(int descriptor) { return _close(descriptor); }
void flush_folder(const fs::path&) {}  // Windows has no such call; NTFS journals renames

#else

int process_id() { return static_cast<int>(::getpid()); }
// Not mkstemp, whose files only their owner may read.
int create_new(const fs::path& path) { return ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); }
int64_t write_some(int descriptor, const char* data, int64_t size) {
  return ::write(descriptor, data, static_cast<size_t>(size));
}
int flush(int descriptor) { return ::fsync(descriptor); }
int close_descriptor(int descriptor) { return ::close(descriptor); }

// Makes the rename survive a power cut. A folder that may be written but not read cannot be opened, and some
// file systems have no fsync for folders (EINVAL): the file is complete all the same.
void flush_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  const int code = ::fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  if (code != 0 && code != EINVAL) throw_system_error(code, "flush the folder", folder);
}

#endif

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

void check_space(const fs::path& path, int64_t size) {
  std::error_code error;
  const fs::space_info space = fs::space(folder_of(path), error);
  // File systems that cannot tell report no capacity; then the write itself will find out.
  if (error || space.capacity == 0 || space.available >= static_cast<uintmax_t>(size)) return;
  throw SystemError(ENOSPC, "cannot write " + path_text(path) + ": it needs " + std::to_string(size) +
                                " bytes, the disk has " + std::to_string(space.available) + " available");
}

}  // namespace

AtomicFile::AtomicFile(const fs::path& path, int64_t size) : path_(path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) throw_system_error(EISDIR, "write", path);
  check_space(path, size);
  // The number keeps threads apart, the process id processes; whatever is there already is never touched.
  static std::atomic<unsigned> next_number{0};
  do {
    temporary_ =
        folder_of(path) / (".miaobi-" + std::to_string(process_id()) + "-" + std::to_string(next_number++) + ".tmp");
    descriptor_ = create_new(temporary_);
  } while (descriptor_ < 0 && errno == EEXIST);
  if (descriptor_ < 0) throw_system_error(errno, "create a file to write", path);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) close_descriptor(descriptor_);
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove(temporary_, ignored);
}

void AtomicFile::write(const void* data, int64_t size) {
  const char* next = static_cast<const char*>(data);
  while (size > 0) {
    const int64_t written = write_some(descriptor_, next, std::min(size, kMaxWrite));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw_system_error(written < 0 ? errno : EIO, "write", path_);
    next += written;
    size -= written;
  }
}

void AtomicFile::commit() {
  if (flush(descriptor_) != 0) throw_system_error(errno, "flush", path_);
  const int descriptor = descriptor_;
  descriptor_ = -1;  // whatever close answers, the descriptor is gone
  if (close_descriptor(descriptor) != 0) throw_system_error(errno, "close", path_);
  std::error_code error;
  fs::rename(temporary_, path_, error);
  if (error) throw_system_error(error.default_error_condition().value(), "replace", path_);
  temporary_.clear();
  flush_folder(folder_of(path_));
}

}  // namespace miaobi

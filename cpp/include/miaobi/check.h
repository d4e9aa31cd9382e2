// SPDX-License-Identifier: MIT
// Errors of the core: bad arguments become Error (ValueError in Python), bad files FormatError.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace miaobi {

// A caller's mistake: wrong shape, value out of range, unknown name. The text says what was expected,
// what came and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A file that cannot be what it claims to be. `offset` is the byte where reading failed, or -1 where no
// single place is at fault.
class FormatError : public Error {
 public:
  FormatError(std::string path, int64_t offset, std::string reason)
      : Error(path + (offset >= 0 ? " at byte " + std::to_string(offset) : std::string()) + ": " + reason),
        path_(std::move(path)),
        reason_(std::move(reason)),
        offset_(offset) {}

  const std::string& path() const { return path_; }
  const std::string& reason() const { return reason_; }
  int64_t offset() const { return offset_; }

 private:
  std::string path_;
  std::string reason_;
  int64_t offset_;
};

// An operation of the system that failed: open, write, fsync, rename. Becomes OSError with its errno.
class SystemError : public std::runtime_error {
 public:
  SystemError(int code, const std::string& what) : std::runtime_error(what), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

namespace detail {
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}
}  // namespace detail

}  // namespace miaobi

// Always on. The parts after the condition are streamed into the message:
//   MIAOBI_CHECK(x.cols == c, "[layer_norm] expected ", c, " columns, got ", x.cols);
#define MIAOBI_CHECK(condition, ...)       \
  do {                                     \
    if (!(condition)) [[unlikely]]         \
      ::miaobi::detail::fail(__VA_ARGS__); \
  } while (false)

// SPDX-License-Identifier: MIT
// What the files of this level share: paths as text and failed system calls as SystemError.
#pragma once

#include <filesystem>
#include <string>
#include <system_error>

#include "miaobi/check.h"

namespace miaobi {

// UTF-8 on Windows, the very bytes elsewhere.
inline std::string path_text(const std::filesystem::path& path) {
  const std::u8string text = path.u8string();
  return {text.begin(), text.end()};
}

// "cannot open /some/file: No such file or directory"
[[noreturn]] inline void throw_system_error(int code, const char* action, const std::filesystem::path& path) {
  throw SystemError(
      code, std::string("cannot ") + action + " " + path_text(path) + ": " + std::generic_category().message(code));
}

}  // namespace miaobi

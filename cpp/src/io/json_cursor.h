// SPDX-License-Identifier: MIT
// A strict reader of the part of JSON that tensor file headers use: objects, strings, whole numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace miaobi {

// The caller knows the grammar and asks for what must come next, so nothing recurses and the depth is the
// caller's. Every departure is a FormatError at its byte in the file.
class JsonCursor {
 public:
  // `text` starts at byte `base` of the file `path`; both must outlive the cursor.
  JsonCursor(std::string_view text, const std::string& path, int64_t base) : text_(text), path_(path), base_(base) {}

  // Byte of the file where the next token starts.
  int64_t offset();

  // Consumes `c` if it is the next token.
  bool take(char c);
  void expect(char c);
  // Only spaces may be left.
  void expect_padding();

  // Escapes resolved; the result is valid UTF-8.
  std::string string();
  // 0 to 2^63 - 1, without sign, fraction, exponent or leading zero.
  int64_t integer();
  std::vector<int64_t> integers(size_t max_count);

  // Calls on_member(key, offset of the key) for each member; it must consume the value.
  template <class OnMember>
  void object(OnMember&& on_member) {
    expect('{');
    if (take('}')) return;
    do {
      const int64_t at = offset();
      const std::string key = string();
      expect(':');
      on_member(key, at);
    } while (take(','));
    expect('}');
  }

  [[noreturn]] void fail(int64_t offset, const std::string& reason) const;

 private:
  void skip_space();
  void escape(std::string& out);
  uint32_t hex4();
  [[noreturn]] void fail_here(const std::string& reason) const;
  std::string next_token_text() const;

  std::string_view text_;
  const std::string& path_;
  int64_t base_;
  size_t at_ = 0;
};

// Length of the well-formed UTF-8 sequence at text[at], or 0 if there is none.
size_t utf8_sequence_length(std::string_view text, size_t at);
bool is_utf8(std::string_view text);

// `text` (valid UTF-8) as a JSON string with its quotes; control characters are escaped.
std::string json_quote(std::string_view text);

}  // namespace miaobi

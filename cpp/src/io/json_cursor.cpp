// SPDX-License-Identifier: MIT
// JsonCursor and the few UTF-8 functions it needs.
#include "json_cursor.h"

#include <limits>

#include "miaobi/check.h"

namespace miaobi {
namespace {

constexpr char kHexDigits[] = "0123456789abcdef";

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::string& out, uint32_t code) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | (code >> 6));
    tail(0);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | (code >> 12));
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xF0 | (code >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

}  // namespace

void JsonCursor::fail(int64_t offset, const std::string& reason) const { throw FormatError(path_, offset, reason); }

void JsonCursor::fail_here(const std::string& reason) const { fail(base_ + static_cast<int64_t>(at_), reason); }

void JsonCursor::skip_space() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
    ++at_;
  }
}

int64_t JsonCursor::offset() {
  skip_space();
  return base_ + static_cast<int64_t>(at_);
}

bool JsonCursor::take(char c) {
  skip_space();
  if (at_ == text_.size() || text_[at_] != c) return false;
  ++at_;
  return true;
}

std::string JsonCursor::next_token_text() const {
  if (at_ == text_.size()) return "the end of the header";
  const unsigned char c = static_cast<unsigned char>(text_[at_]);
  if (c > 0x20 && c < 0x7F) return std::string("'") + text_[at_] + "'";
  return std::string("byte 0x") + kHexDigits[c >> 4] + kHexDigits[c & 15];
}

void JsonCursor::expect(char c) {
  if (!take(c)) fail_here(std::string("invalid header: expected '") + c + "', got " + next_token_text());
}

void JsonCursor::expect_padding() {
  while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  if (at_ != text_.size()) fail_here("invalid header: expected only spaces after it, got " + next_token_text());
}

std::string JsonCursor::string() {
  expect('"');
  std::string out;
  while (true) {
    if (at_ == text_.size()) fail_here("invalid header: a string without its closing quote");
    const unsigned char c = static_cast<unsigned char>(text_[at_]);
    if (c == '"') {
      ++at_;
      return out;
    }
    if (c < 0x20) fail_here("invalid header: a control character in a string, " + next_token_text());
    if (c == '\\') {
      escape(out);
      continue;
    }
    const size_t length = utf8_sequence_length(text_, at_);
    if (length == 0) fail_here("invalid header: invalid UTF-8 in a string, " + next_token_text());
    out.append(text_, at_, length);
    at_ += length;
  }
}

void JsonCursor::escape(std::string& out) {
  constexpr std::string_view kLetters = "\"\\/bfnrt";
  constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
  const size_t start = at_;
  ++at_;
  if (at_ < text_.size() && text_[at_] == 'u') {
    ++at_;
    uint32_t code = hex4();
    if (code >= 0xD800 && code < 0xDC00 && text_.substr(at_, 2) == "\\u") {
      at_ += 2;
      const uint32_t low = hex4();
      code = low >= 0xDC00 && low < 0xE000 ? 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00) : code;
    }
    if (code >= 0xD800 && code < 0xE000) {
      at_ = start;
      fail_here("invalid header: half of a surrogate pair in a string");
    }
    append_utf8(out, code);
    return;
  }
  const size_t which = at_ < text_.size() ? kLetters.find(text_[at_]) : std::string_view::npos;
  if (which == std::string_view::npos) {
    at_ = start;
    fail_here("invalid header: unknown escape in a string");
  }
  out += kMeanings[which];
  ++at_;
}

uint32_t JsonCursor::hex4() {
  uint32_t code = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    const char lower = static_cast<char>(c | 0x20);
    if (is_digit(c)) {
      code = code * 16 + static_cast<uint32_t>(c - '0');
    } else if (lower >= 'a' && lower <= 'f') {
      code = code * 16 + static_cast<uint32_t>(lower - 'a' + 10);
    } else {
      fail_here("invalid header: expected four hexadecimal digits, got " + next_token_text());
    }
  }
  return code;
}

int64_t JsonCursor::integer() {
  const int64_t start = offset();
  const size_t first = at_;
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  int64_t value = 0;
  for (; at_ < text_.size() && is_digit(text_[at_]); ++at_) {
    const int digit = text_[at_] - '0';
    if (value > (kMax - digit) / 10) fail(start, "invalid header: the number is too large");
    value = value * 10 + digit;
  }
  const bool fraction = at_ < text_.size() && (text_[at_] == '.' || (text_[at_] | 0x20) == 'e');
  if (at_ == first || fraction) fail_here("invalid header: expected a whole number >= 0, got " + next_token_text());
  if (text_[first] == '0' && at_ - first > 1) fail(start, "invalid header: a number with a leading zero");
  return value;
}

std::vector<int64_t> JsonCursor::integers(size_t max_count) {
  std::vector<int64_t> values;
  const int64_t start = offset();
  expect('[');
  if (take(']')) return values;
  do {
    if (values.size() == max_count) {
      fail(start, "invalid header: expected at most " + std::to_string(max_count) + " numbers");
    }
    values.push_back(integer());
  } while (take(','));
  expect(']');
  return values;
}

size_t utf8_sequence_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0u; };
  const auto tails = [&](size_t first, size_t last) {
    for (size_t i = first; i <= last; ++i) {
      if ((byte(i) & 0xC0) != 0x80) return false;
    }
    return true;
  };
  const unsigned lead = byte(0);
  const unsigned second = byte(1);
  if (lead < 0x80) return at < text.size() ? 1 : 0;
  if (lead < 0xC2 || lead > 0xF4 || !tails(1, 1)) return 0;
  if (lead < 0xE0) return 2;
  // The second byte rules out overlong forms, surrogates and code points over 0x10FFFF (Unicode table 3-7).
  if (lead < 0xF0) {
    return tails(2, 2) && !(lead == 0xE0 && second < 0xA0) && !(lead == 0xED && second > 0x9F) ? 3 : 0;
  }
  return tails(2, 3) && !(lead == 0xF0 && second < 0x90) && !(lead == 0xF4 && second > 0x8F) ? 4 : 0;
}

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_sequence_length(text, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

std::string json_quote(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const unsigned char code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (code < 0x20 || code == 0x7F) {
      out += "\\u00";
      out += kHexDigits[code >> 4];
      out += kHexDigits[code & 15];
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace miaobi

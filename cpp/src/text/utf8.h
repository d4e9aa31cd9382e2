// SPDX-License-Identifier: MIT
// UTF-8 to code points and back.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace miaobi {

// The code point at `at`, which moves behind it, or -1 where there is none: overlong and cut sequences, halves of
// surrogate pairs and what is beyond U+10FFFF are refused, as Python refuses them.
inline int32_t read_utf8(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint32_t first = byte(at);
  if (first < 0x80) {
    ++at;
    return static_cast<int32_t>(first);
  }
  const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
  if (first < 0xC2 || first > 0xF4 || text.size() - at <= static_cast<size_t>(more)) return -1;
  uint32_t c = first & (0x3Fu >> more);
  for (int i = 1; i <= more; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return -1;
    c = c << 6 | (byte(at + i) & 0x3Fu);
  }
  constexpr uint32_t kSmallest[] = {0, 0x80, 0x800, 0x10000};
  if (c < kSmallest[more] || c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) return -1;
  at += static_cast<size_t>(more) + 1;
  return static_cast<int32_t>(c);
}

// Calls `put` with each byte of the UTF-8 of `c`.
template <class Put>
void write_utf8(char32_t c, Put&& put) {
  const auto tail = [&](int shift) { put(static_cast<uint8_t>(0x80 | ((c >> shift) & 0x3F))); };
  if (c < 0x80) {
    put(static_cast<uint8_t>(c));
  } else if (c < 0x800) {
    put(static_cast<uint8_t>(0xC0 | c >> 6));
    tail(0);
  } else if (c < 0x10000) {
    put(static_cast<uint8_t>(0xE0 | c >> 12));
    tail(6);
    tail(0);
  } else {
    put(static_cast<uint8_t>(0xF0 | c >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

}  // namespace miaobi

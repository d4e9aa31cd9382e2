// SPDX-License-Identifier: MIT
// A map from words to small numbers that is walked character by character.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "miaobi/segmenter.h"

namespace miaobi {

// The characters that jieba's dictionary is asked for in a text: U+4E00 to U+9FD5 and a few of ASCII.
constexpr bool is_han(char32_t c) { return c >= 0x4E00 && c <= 0x9FD5; }
constexpr bool is_ascii_digit(char32_t c) { return c >= '0' && c <= '9'; }
constexpr bool is_ascii_alnum(char32_t c) {
  return is_ascii_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
inline bool is_half_surrogate(char32_t c) { return c >= 0xD800 && c <= 0xDFFF; }

// An open-addressing hash table of (parent, character) pairs: eight bytes for a slot, filled without sorting (350,000
// words in two hundredths of a second), and one cache line for most steps. Slots are the nodes' names, so a node holds
// its parent's slot (21 bits), its character (21), its value (21), and whether it has children (1).
class Trie {
 public:
  static constexpr uint32_t kMaxValue = (1u << 21) - 1;
  static constexpr int64_t kMaxWord = 65535;

  struct Node {
    uint32_t slot = kNone;
    uint32_t value : 31 = 0;  // 0 where no word ends
    uint32_t has_children : 1 = 0;

    explicit operator bool() const { return slot != kNone; }
  };

  // Room for `nodes` at once; it grows.
  explicit Trie(int64_t nodes = 0);

  // The node of a first character.
  Node first(char32_t c) const {
    const uint32_t code = code_of(c);
    return code < kCodes ? first_[code] : find(kRoot, c);
  }
  // The node after `node` with `c`. Most neighbours in a text begin no word together: a filter that stays in the L2
  // cache (two bits for a slot, one in four of them set) says so at once, and spares a miss in the table.
  Node next(Node node, char32_t c) const {
    if (!node.has_children) return {};
    const uint64_t bit = filter_bit(key_of(node.slot, c));
    return (filter_[bit / 64] >> (bit % 64) & 1) != 0 ? find(node.slot, c) : Node{};
  }
  // The node of a whole word of at least one character.
  Node find(TextView word) const;

  // Gives a word its value, which replaces an old one. Throws Error for a word that is empty or too long, a value
  // beyond kMaxValue, and beyond about 1.5 million nodes.
  void set(TextView word, uint32_t value);

  // The same for many words at once, in less than half the time; word i is text[words[i - 1].end, words[i].end), and
  // the last of two equal ones counts.
  struct Entry {
    int64_t end;
    uint32_t value;
  };
  void set_all(const std::u32string& text, const std::vector<Entry>& words);

  bool empty() const { return used_ == 0; }
  int64_t longest() const { return longest_; }

 private:
  static constexpr uint32_t kNone = ~0u;
  static constexpr uint32_t kRoot = (1u << 21) - 1;  // the parent of first characters
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static constexpr int kMaxBits = 21;
  // First characters of the usual kind have a table of their own.
  static constexpr uint32_t kHan = 0x9FD5 - 0x4E00 + 1;
  static constexpr uint32_t kCodes = kHan + 128;

  static uint32_t code_of(char32_t c) {
    if (is_han(c)) return static_cast<uint32_t>(c - 0x4E00);
    return c < 128 ? kHan + static_cast<uint32_t>(c) : kNone;
  }
  static uint64_t key_of(uint32_t parent, char32_t c) { return (uint64_t{parent} << 21) | c; }
  static Node node_of(uint32_t slot, uint64_t entry) {
    return {slot, static_cast<uint32_t>(entry >> 42) & kMaxValue, static_cast<uint32_t>(entry >> 63)};
  }

  static uint64_t hash(uint64_t key) { return key * 0x9E3779B97F4A7C15u; }
  uint32_t home(uint64_t key) const { return static_cast<uint32_t>(hash(key) >> shift_); }
  uint64_t filter_bit(uint64_t key) const { return (hash(key) >> 20) & (2 * slots_.size() - 1); }
  void prefetch(uint64_t key) const {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(&slots_[home(key)]);
#else
    static_cast<void>(key);
#endif
  }
  uint32_t probe(uint64_t key) const {
    const auto mask = static_cast<uint32_t>(slots_.size() - 1);
    uint32_t slot = home(key);
    while (slots_[slot] != kEmpty && (slots_[slot] & kKeyMask) != key) slot = (slot + 1) & mask;
    return slot;
  }
  Node find(uint32_t parent, char32_t c) const {
    const uint32_t slot = probe(key_of(parent, c));
    return slots_[slot] == kEmpty ? Node{} : node_of(slot, slots_[slot]);
  }

  // The slot of a child, made if it is not there.
  uint32_t add(uint32_t parent, char32_t c) {
    const uint64_t key = key_of(parent, c);
    const uint32_t slot = probe(key);
    if (slots_[slot] == kEmpty) {
      place(slot, key);
      ++used_;
    }
    return slot;
  }
  void place(uint32_t slot, uint64_t entry) {
    slots_[slot] = entry;
    const uint64_t bit = filter_bit(entry & kKeyMask);
    filter_[bit / 64] |= uint64_t{1} << (bit % 64);
  }
  // What `add` returned takes a value (or keeps its own, with the child that it has).
  void finish(uint32_t parent, char32_t c, uint32_t slot, bool ends, uint32_t value);
  bool has_room(int64_t nodes) const {
    // Three quarters full is where runs of taken slots begin to be long.
    return (used_ + nodes) * 4 <= static_cast<int64_t>(slots_.size()) * 3;
  }
  static void check(int64_t length, uint32_t value);
  void resize(int bits);
  // Doubles the table; what was in slot i is in the result's slot i.
  std::vector<uint32_t> grow();

  static constexpr uint64_t kKeyMask = (uint64_t{1} << 42) - 1;
  static constexpr uint64_t kHasChildren = uint64_t{1} << 63;
  std::vector<uint64_t> slots_;
  std::vector<Node> first_;
  std::vector<uint64_t> filter_;
  int shift_ = 0;
  int64_t used_ = 0;
  int64_t longest_ = 0;
};

}  // namespace miaobi

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

// What stands in a text of Han and ASCII, from kNoBlock on, for a character between the blocks that are cut: kPair for
// one that makes a word with the next, else kAlone.
inline constexpr char16_t kNoBlock = 0xFFFE, kPair = kNoBlock, kAlone = 0xFFFF;

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

  // Calls found(i, length, value) for each beginning of a word that starts at s[i], i in [0, count); value is 0 where
  // no word ends. Beginnings of length 1 come first, then all of length 2, and so on; those of one length by i. No
  // beginning has a character from kNoBlock on, and one must end s. count is at most kSpan.
  //
  // All beginnings of a length are looked up at once, in a few loops that hardly branch: a walk from each character
  // would wait for the table, and for the processor to find out where the walk ends.
  static constexpr int64_t kSpan = 256;
  template <class Found>
  void words_from(const char16_t* s, int64_t count, Found&& found) const;

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
  static constexpr uint64_t kKeyMask = (uint64_t{1} << 42) - 1;
  static constexpr uint64_t kHasChildren = uint64_t{1} << 63;
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

  struct Asked {
    uint64_t key;
    uint32_t at;
  };
  struct Open {
    uint32_t slot, at;
  };

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

  std::vector<uint64_t> slots_;
  std::vector<Node> first_;
  std::vector<uint64_t> filter_;
  int shift_ = 0;
  int64_t used_ = 0;
  int64_t longest_ = 0;
};

template <class Found>
void Trie::words_from(const char16_t* s, int64_t count, Found&& found) const {
  Open open[kSpan];
  Asked asked[kSpan];
  int64_t opened = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Node node = s[i] < kNoBlock ? first(s[i]) : Node{};
    found(i, 1, node.value);
    open[opened] = {node.slot, static_cast<uint32_t>(i)};
    opened += node.has_children;
  }
  const auto mask = static_cast<uint32_t>(slots_.size() - 1);
  for (int64_t length = 2; opened > 0; ++length) {
    int64_t to_ask = 0;
    for (int64_t k = 0; k < opened; ++k) {
      const char16_t c = s[open[k].at + length - 1];
      const uint64_t key = key_of(open[k].slot, c);
      const uint64_t bit = filter_bit(key);
      asked[to_ask] = {key, open[k].at};
      to_ask += static_cast<int64_t>(filter_[bit / 64] >> (bit % 64) & 1) & static_cast<int64_t>(c < kNoBlock);
    }
    for (int64_t k = 0; k < to_ask; ++k) prefetch(asked[k].key);
    opened = 0;
    for (int64_t k = 0; k < to_ask; ++k) {
      const uint64_t key = asked[k].key;
      // In four of five cases it is in one of the first two slots, or not there.
      uint32_t slot = home(key);
      const uint32_t second = (slot + 1) & mask;
      uint64_t entry = slots_[slot];
      const bool is_other = entry != kEmpty && (entry & kKeyMask) != key;
      slot = is_other ? second : slot;
      entry = is_other ? slots_[second] : entry;
      if (entry != kEmpty && (entry & kKeyMask) != key) {
        slot = probe(key);
        entry = slots_[slot];
      }
      const Node node = entry == kEmpty ? Node{} : node_of(slot, entry);
      found(asked[k].at, length, node.value);
      open[opened] = {slot, asked[k].at};
      opened += node.has_children;
    }
  }
}

}  // namespace miaobi

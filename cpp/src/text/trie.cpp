// SPDX-License-Identifier: MIT
// Filling the trie: nodes are placed where their hash says, and all of them anew when the table grows.
#include "text/trie.h"

#include <algorithm>
#include <utility>

#include "miaobi/check.h"

namespace miaobi {
Trie::Trie(int64_t nodes) : first_(kCodes) {
  int bits = 4;
  while (bits < kMaxBits && nodes * 3 / 2 > (int64_t{1} << bits)) ++bits;
  resize(bits);
}

void Trie::resize(int bits) {
  slots_.assign(size_t{1} << bits, kEmpty);
  filter_.assign((size_t{2} << bits) / 64 + 1, 0);
  shift_ = 64 - bits;
  // The last slot of the largest table has the root's name: it is taken by what is no character.
  if (bits == kMaxBits) slots_.back() = kEmpty - 1;
}

std::vector<uint32_t> Trie::grow() {
  int bits = 64 - shift_;
  MIAOBI_CHECK(bits < kMaxBits, "[segmenter] expected words with at most ", (slots_.size() / 4 * 3),
               " different beginnings, got more; use a smaller dictionary or vocabulary");
  const std::vector<uint64_t> old = std::exchange(slots_, {});
  resize(++bits);
  std::fill(first_.begin(), first_.end(), Node{});
  // A node can be placed when its parent has its new slot; the way up to one that has is short.
  std::vector<uint32_t> moved(old.size(), kNone), way;
  for (size_t i = 0; i < old.size(); ++i) {
    if (old[i] == kEmpty) continue;
    way.clear();
    for (auto slot = static_cast<uint32_t>(i); slot != kRoot && moved[slot] == kNone;
         slot = static_cast<uint32_t>(old[slot] >> 21) & kRoot) {
      way.push_back(slot);
    }
    for (; !way.empty(); way.pop_back()) {
      const uint64_t entry = old[way.back()];
      const uint32_t parent = static_cast<uint32_t>(entry >> 21) & kRoot;
      const auto c = static_cast<char32_t>(entry & kRoot);
      const uint32_t slot = probe(key_of(parent == kRoot ? kRoot : moved[parent], c));
      place(slot, (entry & ~kKeyMask) | key_of(parent == kRoot ? kRoot : moved[parent], c));
      moved[way.back()] = slot;
      if (parent == kRoot && code_of(c) < kCodes) first_[code_of(c)] = node_of(slot, slots_[slot]);
    }
  }
  return moved;
}

Trie::Node Trie::find(TextView word) const {
  Node node = first(word[0]);
  for (int64_t i = 1; i < word.size && node; ++i) node = next(node, word[i]);
  return node;
}

void Trie::finish(uint32_t parent, char32_t c, uint32_t slot, bool ends, uint32_t value) {
  uint64_t& entry = slots_[slot];
  entry = ends ? (entry & (kKeyMask | kHasChildren)) | uint64_t{value} << 42 : entry | kHasChildren;
  if (parent == kRoot && code_of(c) < kCodes) first_[code_of(c)] = node_of(slot, entry);
}

void Trie::check(int64_t length, uint32_t value) {
  MIAOBI_CHECK(length >= 1 && length <= kMaxWord, "[segmenter] expected a word of 1 to ", kMaxWord, " characters, got ",
               length);
  MIAOBI_CHECK(value <= kMaxValue, "[segmenter] expected at most ", kMaxValue, " different values, got more");
}

void Trie::set(TextView word, uint32_t value) {
  check(word.size, value);
  while (!has_room(word.size)) grow();
  uint32_t parent = kRoot;
  for (int64_t i = 0; i < word.size; ++i) {
    const uint32_t slot = add(parent, word[i]);
    finish(parent, word[i], slot, i + 1 == word.size, value);
    parent = slot;
  }
  longest_ = std::max(longest_, word.size);
}

// First all first characters, then all second ones, and so on: the slots of neighbours do not depend on each other
// then, so the cache misses, which are what all this costs, overlap.
void Trie::set_all(const std::u32string& text, const std::vector<Entry>& words) {
  constexpr size_t kAhead = 16;  // some misses of 100 ns at 10 ns of work for each
  struct Open {
    size_t at, end;
    uint32_t parent, value;
  };
  std::vector<Open> open;
  open.reserve(words.size());
  size_t begin = 0;
  for (const Entry& word : words) {
    const auto end = static_cast<size_t>(word.end);
    check(static_cast<int64_t>(end - begin), word.value);
    longest_ = std::max(longest_, static_cast<int64_t>(end - begin));
    open.push_back({begin, end, kRoot, word.value});
    begin = end;
  }
  while (!open.empty()) {
    while (!has_room(static_cast<int64_t>(open.size()))) {
      const std::vector<uint32_t> moved = grow();
      for (Open& word : open) word.parent = word.parent == kRoot ? kRoot : moved[word.parent];
    }
    size_t left = 0;
    uint32_t last_parent = kNone, slot = kNone;
    char32_t last = 0;
    for (size_t i = 0; i < open.size(); ++i) {
      if (i + kAhead < open.size()) {
        const Open& later = open[i + kAhead];
        prefetch(key_of(later.parent, text[later.at]));
      }
      Open word = open[i];
      const char32_t c = text[word.at];
      const bool ends = ++word.at == word.end;
      if (word.parent != last_parent || c != last) slot = add(last_parent = word.parent, last = c);
      finish(word.parent, c, slot, ends, word.value);
      word.parent = slot;
      if (!ends) open[left++] = word;
    }
    open.resize(left);
  }
}

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// The cut of jieba: blocks, the most probable path through a block, and what is made of single characters.
#include "miaobi/segmenter.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "miaobi/check.h"
#include "text/dictionary.h"

namespace miaobi {
namespace {

// Characters of the blocks that are cut by the dictionary; the others are words on their own.
bool in_block(char32_t c) {
  static constexpr auto kAscii = [] {
    std::array<bool, 128> belongs{};
    for (char32_t i = 0; i < 128; ++i) {
      belongs[i] =
          is_ascii_alnum(i) || i == '+' || i == '#' || i == '&' || i == '.' || i == '_' || i == '%' || i == '-';
    }
    return belongs;
  }();
  return c < 128 ? kAscii[c] : is_han(c);
}

// What Python's \s matches.
bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// Calls body with the text as a pointer to its code units.
template <class Body>
void with_units(TextView text, Body&& body) {
  if (text.width == 1) return body(static_cast<const uint8_t*>(text.data));
  if (text.width == 2) return body(static_cast<const char16_t*>(text.data));
  body(static_cast<const char32_t*>(text.data));
}

// A thread's memory for the block that is being cut.
struct Scratch {
  std::u16string block;
  std::vector<uint16_t> lengths;  // of the word that begins at each character
  std::vector<double> route;      // the best log-probability from a character to the end, for the last few
  std::vector<uint8_t> states;
};

constexpr size_t kKeptScratch = 1 << 16;  // characters; more is given back after the cut

Scratch& thread_scratch() {
  thread_local Scratch scratch;
  if (scratch.block.capacity() > kKeptScratch) scratch = Scratch{};
  return scratch;
}

// A word of jieba's dictionary or the user's: the user's entry hides jieba's, but its beginnings do not.
struct Cursor {
  Trie::Node base, user;
};

}  // namespace

struct Segmenter::Impl {
  explicit Impl(std::shared_ptr<const Dictionary> dictionary) : base(std::move(dictionary)) { set_total(base->total); }

  void set_total(int64_t value) {
    total = value;
    log_total = std::log(static_cast<double>(value));
  }

  Cursor find(TextView word) const {
    return {base->words.trie.find(word), user.trie.empty() ? Trie::Node{} : user.trie.find(word)};
  }
  int64_t frequency(Cursor at) const {
    if (at.user.value != 0) return user.frequency(at.user.value);
    return at.base || at.user ? base->words.frequency(at.base.value) : -1;
  }

  template <bool kUser>
  void best_path(const char16_t* s, int64_t n, Scratch& scratch) const;
  void find_words(const char16_t* s, int64_t n, Scratch& scratch) const {
    user.trie.empty() ? best_path<false>(s, n, scratch) : best_path<true>(s, n, scratch);
  }

  void cut_block(int64_t offset, bool hmm, Scratch& scratch, std::vector<int64_t>& ends) const;
  void cut_block_hmm(int64_t offset, Scratch& scratch, std::vector<int64_t>& ends) const;
  void recognize(const char16_t* s, int64_t n, int64_t offset, Scratch& scratch, std::vector<int64_t>& ends) const;
  void cut_block_all(const std::u16string& block, WordList& words) const;
  template <class Unit>
  void cut(const Unit* s, int64_t begin, int64_t end, bool hmm, std::vector<int64_t>& ends) const;

  std::shared_ptr<const Dictionary> base;
  WordTable user;
  Trie force_split;  // words that were once given the frequency 0
  Trie kept;
  int64_t total = 0;
  double log_total = 0.0;
};

// jieba's calc: route[i] is the largest of log(frequency) - log(total) + route[i + word], the longest word where
// several are equal. A character that begins no word is one of frequency 1.
template <bool kUser>
void Segmenter::Impl::best_path(const char16_t* s, int64_t n, Scratch& scratch) const {
  const Trie& trie = base->words.trie;
  const auto room = std::bit_ceil(static_cast<uint64_t>(std::max(trie.longest(), user.trie.longest())) + 1);
  const auto mask = static_cast<int64_t>(room) - 1;
  if (scratch.route.size() < room) scratch.route.resize(room);
  scratch.lengths.resize(static_cast<size_t>(n));
  double* const route = scratch.route.data();
  route[n & mask] = 0.0;
  for (int64_t i = n; i-- > 0;) {
    Trie::Node node = trie.first(s[i]);
    Trie::Node own = kUser ? user.trie.first(s[i]) : Trie::Node{};
    double best = -std::numeric_limits<double>::infinity();
    int64_t length = 0;
    for (int64_t end = i + 1; node || (kUser && own); ++end) {
      const bool hidden = kUser && own.value != 0;
      if (hidden ? own.value >= WordTable::kFirstWord : node.value >= WordTable::kFirstWord) {
        const double log_frequency = hidden ? user.log_frequency(own.value) : base->words.log_frequency(node.value);
        const double p = log_frequency - log_total + route[end & mask];
        if (p >= best) {
          best = p;
          length = end - i;
        }
      }
      if (end == n) break;
      node = trie.next(node, s[end]);
      if (kUser) own = user.trie.next(own, s[end]);
    }
    if (length == 0) {
      best = 0.0 - log_total + route[(i + 1) & mask];
      length = 1;
    }
    route[i & mask] = best;
    scratch.lengths[i] = static_cast<uint16_t>(length);
  }
}

// Without the HMM single letters and digits are joined, nothing else.
void Segmenter::Impl::cut_block(int64_t offset, bool hmm, Scratch& scratch, std::vector<int64_t>& ends) const {
  const auto n = static_cast<int64_t>(scratch.block.size());
  find_words(scratch.block.data(), n, scratch);
  if (hmm) return cut_block_hmm(offset, scratch, ends);
  bool joining = false;
  for (int64_t i = 0; i < n; i += scratch.lengths[i]) {
    const bool joins = scratch.lengths[i] == 1 && is_ascii_alnum(scratch.block[i]);
    if (joining && joins) {
      ++ends.back();
    } else {
      ends.push_back(offset + i + scratch.lengths[i]);
    }
    joining = joins;
  }
}

// With it runs of single characters are cut again, unless they make a word that the path did not take.
void Segmenter::Impl::cut_block_hmm(int64_t offset, Scratch& scratch, std::vector<int64_t>& ends) const {
  const char16_t* const s = scratch.block.data();
  const auto n = static_cast<int64_t>(scratch.block.size());
  int64_t i = 0;
  while (i < n) {
    int64_t begin = i;
    while (i < n && scratch.lengths[i] == 1) ++i;
    if (i - begin == 1) {
      ends.push_back(offset + i);
    } else if (i - begin > 1) {
      if (frequency(find({s + begin, i - begin, 2})) <= 0) {
        recognize(s + begin, i - begin, offset + begin, scratch, ends);
      } else {
        while (begin < i) ends.push_back(offset + ++begin);
      }
    }
    if (i < n) ends.push_back(offset + (i += scratch.lengths[i]));
  }
}

// jieba's finalseg.cut: Han goes through the HMM; of the rest, letters and digits with a fraction and a percent sign
// are words, and so is what lies between them.
void Segmenter::Impl::recognize(const char16_t* s, int64_t n, int64_t offset, Scratch& scratch,
                                std::vector<int64_t>& ends) const {
  const auto run = [&](int64_t from, auto&& belongs) {
    while (from < n && belongs(s[from])) ++from;
    return from;
  };
  for (int64_t i = 0; i < n;) {
    const int64_t begin = i;
    if (is_han(s[i])) {
      i = run(i, is_han);
      const auto before = static_cast<std::ptrdiff_t>(ends.size());
      base->hmm.cut(s + begin, i - begin, offset + begin, scratch.states, ends);
      if (force_split.empty()) continue;
      const std::vector<int64_t> found(ends.begin() + before, ends.end());
      ends.resize(static_cast<size_t>(before));
      int64_t from = begin;
      for (const int64_t end : found) {
        const int64_t to = end - offset;
        const bool splits = force_split.find({s + from, to - from, 2}).value != 0;
        for (from = splits ? from + 1 : to; from <= to; ++from) ends.push_back(offset + from);
        from = to;
      }
      continue;
    }
    if (is_ascii_alnum(s[i])) {
      i = run(i, is_ascii_alnum);
      if (i + 1 < n && s[i] == '.' && is_ascii_digit(s[i + 1])) i = run(i + 1, is_ascii_digit);
      if (i < n && s[i] == '%') ++i;
    } else {
      i = run(i, [](char32_t c) { return !is_han(c) && !is_ascii_alnum(c); });
    }
    ends.push_back(offset + i);
  }
}

// jieba's __cut_all, with its ways: a run of letters is given when something else comes, which may be after words that
// begin in it.
void Segmenter::Impl::cut_block_all(const std::u16string& block, WordList& words) const {
  const auto n = static_cast<int64_t>(block.size());
  const auto put = [&](int64_t begin, int64_t end) {
    words.text.append(block.begin() + begin, block.begin() + end);
    words.ends.push_back(static_cast<int64_t>(words.text.size()));
  };
  std::u32string letters;
  bool in_letters = false;
  const auto put_letters = [&] {
    words.text += letters;
    words.ends.push_back(static_cast<int64_t>(words.text.size()));
    letters.clear();
    in_letters = false;
  };
  std::vector<int64_t> found;  // ends of the words that begin at a character
  int64_t behind = 0;          // behind the last word that was given
  for (int64_t i = 0; i < n; ++i) {
    if (in_letters && !is_ascii_alnum(block[i])) put_letters();
    found.clear();
    Cursor at{base->words.trie.first(block[i]), user.trie.first(block[i])};
    for (int64_t end = i + 1; at.base || at.user; ++end) {
      if (frequency(at) > 0) found.push_back(end);
      if (end == n) break;
      at = {base->words.trie.next(at.base, block[end]), user.trie.next(at.user, block[end])};
    }
    if (found.empty()) found.push_back(i + 1);
    if (found.size() == 1 && i >= behind) {
      behind = found[0];
      if (is_ascii_alnum(block[i])) {
        letters.append(block.begin() + i, block.begin() + behind);
        in_letters = true;
      } else {
        put(i, behind);
      }
    } else {
      for (const int64_t end : found) {
        if (end > i + 1) put(i, behind = end);
      }
    }
  }
  if (in_letters) put_letters();
}

template <class Unit>
void Segmenter::Impl::cut(const Unit* s, int64_t begin, int64_t end, bool hmm, std::vector<int64_t>& ends) const {
  Scratch& scratch = thread_scratch();
  for (int64_t i = begin; i < end;) {
    if (!in_block(s[i])) {
      i += s[i] == '\r' && i + 1 < end && s[i + 1] == '\n' ? 2 : 1;
      ends.push_back(i);
      continue;
    }
    const int64_t first = i;
    while (i < end && in_block(s[i])) ++i;
    scratch.block.assign(s + first, s + i);
    cut_block(first, hmm, scratch, ends);
  }
}

Segmenter::Segmenter(std::shared_ptr<const Dictionary> dictionary)
    : impl_(std::make_unique<Impl>(std::move(dictionary))) {}
Segmenter::Segmenter(Segmenter&&) noexcept = default;
Segmenter::~Segmenter() = default;

void Segmenter::cut(TextView text, bool hmm, std::vector<int64_t>& ends) const {
  with_units(text, [&](const auto* s) {
    int64_t begin = 0;
    for (int64_t i = 0; !impl_->kept.empty() && i < text.size;) {
      int64_t match = 0;
      Trie::Node node = impl_->kept.first(s[i]);
      for (int64_t end = i + 1; node; ++end) {
        if (node.value != 0) match = end;
        if (end == text.size) break;
        node = impl_->kept.next(node, s[end]);
      }
      if (match == 0) {
        ++i;
        continue;
      }
      impl_->cut(s, begin, i, hmm, ends);
      ends.push_back(match);
      begin = i = match;
    }
    impl_->cut(s, begin, text.size, hmm, ends);
  });
}

void Segmenter::cut_for_search(TextView text, bool hmm, std::vector<Span>& words) const {
  std::vector<int64_t> ends;
  cut(text, hmm, ends);
  int64_t begin = 0;
  for (const int64_t end : ends) {
    for (const int64_t gram : {2, 3}) {
      for (int64_t i = begin; end - begin > gram && i + gram <= end; ++i) {
        if (frequency(text.part(i, i + gram)) > 0) words.push_back({i, i + gram});
      }
    }
    words.push_back({begin, end});
    begin = end;
  }
}

WordList Segmenter::cut_all(TextView text) const {
  WordList words;
  const auto put = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) words.text.push_back(text[i]);
    words.ends.push_back(static_cast<int64_t>(words.text.size()));
  };
  std::u16string block;
  for (int64_t i = 0; i < text.size;) {
    if (in_block(text[i])) {
      block.clear();
      while (i < text.size && in_block(text[i])) block.push_back(static_cast<char16_t>(text[i++]));
      impl_->cut_block_all(block, words);
      continue;
    }
    // Split at white space, the white space included, as re.split does: with "" before, between and after.
    int64_t begin = i;
    for (; i < text.size && !in_block(text[i]); ++i) {
      if (!is_space(text[i])) continue;
      put(begin, i);
      const int64_t space = i;
      if (text[i] == '\r' && i + 1 < text.size && text[i + 1] == '\n') ++i;
      put(space, i + 1);
      begin = i + 1;
    }
    put(begin, i);
  }
  return words;
}

int64_t Segmenter::frequency(TextView word) const { return word.size == 0 ? -1 : impl_->frequency(impl_->find(word)); }

int64_t Segmenter::total() const { return impl_->total; }

void Segmenter::add_word(TextView word, int64_t frequency) {
  MIAOBI_CHECK(frequency >= 0 && frequency <= kMaxTotal - impl_->total, "[segmenter] expected a frequency from 0 to ",
               kMaxTotal - impl_->total, ", got ", frequency);
  impl_->user.set(word, frequency);
  impl_->set_total(impl_->total + frequency);
  if (frequency == 0) impl_->force_split.set(word, 1);
}

int64_t Segmenter::suggest_frequency(TextView word) const {
  MIAOBI_CHECK(word.size > 0, "[segmenter] expected a word of at least one character, got none");
  std::vector<int64_t> ends;
  impl_->kept.empty() ? cut(word, false, ends)
                      : with_units(word, [&](const auto* s) { impl_->cut(s, 0, word.size, false, ends); });
  const auto total = static_cast<double>(impl_->total);
  const auto frequency_or = [&](TextView part, int64_t otherwise) {
    const int64_t found = frequency(part);
    return found < 0 ? otherwise : found;
  };
  double share = 1.0;
  int64_t begin = 0;
  for (const int64_t end : ends) {
    share *= static_cast<double>(frequency_or(word.part(begin, end), 1)) / total;
    begin = end;
  }
  return std::max(static_cast<int64_t>(share * total) + 1, frequency_or(word, 1));
}

int64_t Segmenter::suggest_frequency(std::span<const TextView> parts) const {
  MIAOBI_CHECK(!parts.empty(), "[segmenter] expected the parts of a word, got none");
  const auto total = static_cast<double>(impl_->total);
  double share = 1.0;
  std::u32string word;
  for (const TextView part : parts) {
    MIAOBI_CHECK(part.size > 0, "[segmenter] expected parts of at least one character, got an empty one");
    const int64_t found = frequency(part);
    share *= static_cast<double>(found < 0 ? 1 : found) / total;
    for (int64_t i = 0; i < part.size; ++i) word.push_back(part[i]);
  }
  return std::min(static_cast<int64_t>(share * total), std::max<int64_t>(frequency(TextView::of(word)), 0));
}

void Segmenter::keep_whole(TextView word) { impl_->kept.set(word, 1); }

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// The cut of jieba: blocks, the most probable path through a block, and what is made of single characters.
#include "miaobi/segmenter.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "miaobi/check.h"
#include "text/best_path.h"
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

// The blocks of a text are cut together up to so many characters; a longer block is cut whole.
constexpr int64_t kWindow = 4096;

// A thread's memory for the window that is being cut.
struct Scratch {
  // Makes room for so many characters, and what has to stand behind them.
  void reserve(int64_t n) {
    if (static_cast<int64_t>(text.size()) > n) return;
    text.resize(static_cast<size_t>(n) + 1);
    lengths.resize(static_cast<size_t>(n));
  }

  std::vector<char16_t> text;
  std::vector<uint16_t> lengths;  // of the word that begins at each character
  std::vector<uint8_t> states;
  PathScratch path;
};

constexpr size_t kKeptScratch = 1 << 16;  // characters; more is given back after the cut

Scratch& thread_scratch() {
  thread_local Scratch scratch;
  if (scratch.text.size() > kKeptScratch) scratch = Scratch{};
  return scratch;
}

// Room for n more ends; what is not used is to be taken off again.
int64_t* append(std::vector<int64_t>& ends, int64_t n) {
  ends.resize(ends.size() + static_cast<size_t>(n));
  return ends.data() + ends.size() - n;
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

  void cut_window(int64_t n, int64_t offset, Scratch& scratch, std::vector<int64_t>& ends) const;
  void cut_window_hmm(int64_t n, int64_t offset, Scratch& scratch, std::vector<int64_t>& ends) const;
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

// Without the HMM single letters and digits are joined, nothing else.
void Segmenter::Impl::cut_window(int64_t n, int64_t offset, Scratch& scratch, std::vector<int64_t>& ends) const {
  const char16_t* const s = scratch.text.data();
  int64_t* const first = append(ends, n);
  int64_t* end = first;
  bool joining = false;
  for (int64_t i = 0; i < n;) {
    const int64_t length = scratch.lengths[i];
    const bool joins = length == 1 && is_ascii_alnum(s[i]);
    end -= joining && joins;
    joining = joins;
    i += length;
    *end++ = offset + i;
  }
  ends.resize(ends.size() - static_cast<size_t>(n - (end - first)));
}

// With it runs of single characters are cut again, unless they make a word that the path did not take.
void Segmenter::Impl::cut_window_hmm(int64_t n, int64_t offset, Scratch& scratch, std::vector<int64_t>& ends) const {
  const char16_t* const s = scratch.text.data();
  for (int64_t i = 0; i < n;) {
    int64_t begin = i;
    while (i < n && scratch.lengths[i] == 1 && s[i] < kNoBlock) ++i;
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
  for (int64_t stop; begin < end; begin = stop) {
    stop = std::min(end, begin + kWindow);
    while (stop < end && ((in_block(s[stop - 1]) && in_block(s[stop])) || (s[stop - 1] == '\r' && s[stop] == '\n'))) {
      ++stop;
    }
    const int64_t n = stop - begin;
    scratch.reserve(n);
    char16_t* const text = scratch.text.data();
    for (int64_t i = 0; i < n; ++i) {
      const auto c = s[begin + i];
      text[i] = in_block(c) ? static_cast<char16_t>(c) : kAlone;
      if (c == '\n' && i > 0 && s[begin + i - 1] == '\r') text[i - 1] = kPair;
    }
    text[n] = kAlone;
    scratch.path.best_path(base->words, user.trie.empty() ? nullptr : &user, log_total, text, n,
                           scratch.lengths.data());
    hmm ? cut_window_hmm(n, begin, scratch, ends) : cut_window(n, begin, scratch, ends);
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

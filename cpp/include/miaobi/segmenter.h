// SPDX-License-Identifier: MIT
// Cuts Chinese text into words exactly as jieba 0.42.1 does, from jieba's own dictionary and HMM tables.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace miaobi {

// Text as Python's str holds it: `size` code points, each in `width` bytes (1, 2 or 4). Any values are text: halves of
// surrogate pairs are characters that no dictionary has.
struct TextView {
  static TextView of(std::u32string_view text) { return {text.data(), static_cast<int64_t>(text.size()), 4}; }

  char32_t operator[](int64_t i) const {
    if (width == 1) return static_cast<const uint8_t*>(data)[i];
    if (width == 2) return static_cast<const char16_t*>(data)[i];
    return static_cast<const char32_t*>(data)[i];
  }
  TextView part(int64_t begin, int64_t end) const {
    return {static_cast<const char*>(data) + begin * width, end - begin, width};
  }

  const void* data = nullptr;
  int64_t size = 0;
  int width = 4;
};

// Code points [begin, end) of a text.
struct Span {
  int64_t begin, end;
};

// Words that need not be parts of a text: word i is text[ends[i - 1], ends[i]).
struct WordList {
  std::u32string text;
  std::vector<int64_t> ends;
};

// The contents of jieba's files: dict.txt ("word frequency [tag]" a line, UTF-8) and
// finalseg/prob_{start,trans,emit}.py (each the literal of a dict P). `folder` is named in errors.
struct JiebaFiles {
  std::string folder;
  std::string_view dict, prob_start, prob_trans, prob_emit;
};

// jieba's dictionary and HMM tables: immutable, about 10 MB, shared by all segmenters that stand on it.
class Dictionary;
// Throws FormatError for anything that jieba would not read, too.
std::shared_ptr<const Dictionary> read_dictionary(const JiebaFiles& files);

// The cut is jieba's: runs of Han (U+4E00-U+9FD5), ASCII letters, digits and +#&._%- are cut along the most probable
// path through the dictionary's words (ties go to the longer word; the same doubles added in the same order as in
// jieba's `calc`), with `hmm` runs of single characters again by a hidden Markov model (Viterbi; ties go to the later
// of the states B < E < M < S). Every other character is a word, "\r\n" is one.
//
// Time is linear in the text, times the longest word of the dictionary (16 in jieba's) at worst; scratch memory is at
// most 6 bytes for a character of the longest run. Functions that are const may run in several threads at once; the
// others must have the object to themselves. Words of a user belong to this segmenter alone and cost what they hold.
class Segmenter {
 public:
  explicit Segmenter(std::shared_ptr<const Dictionary> dictionary);
  Segmenter(Segmenter&&) noexcept;
  ~Segmenter();

  // Appends the end of each word of `text`; the words are the text without gaps. As jieba.cut(text, HMM=hmm).
  void cut(TextView text, bool hmm, std::vector<int64_t>& ends) const;
  // Appends the words and, before each, the dictionary's words of two and three characters in it.
  // As jieba.cut_for_search(text, HMM=hmm).
  void cut_for_search(TextView text, bool hmm, std::vector<Span>& words) const;
  // All words of the dictionary that the text has, some of them empty, as jieba.cut(text, cut_all=True) gives them.
  WordList cut_all(TextView text) const;

  // Frequency of a word; 0 for one that is only the beginning of others or was deleted, -1 for one that is not there.
  int64_t frequency(TextView word) const;
  // Sum of all frequencies ever given; logarithms of probabilities are those of frequency / total.
  int64_t total() const;

  // As jieba's add_word(word, frequency): a frequency of 0 deletes the word and, for good, splits it where the HMM
  // finds it. Throws Error unless the word has 1 to 65535 characters, 0 <= frequency and the total stays below 2^53.
  void add_word(TextView word, int64_t frequency);
  // As jieba's suggest_freq(word): the frequency at which the word alone is not cut. Throws Error for an empty word.
  int64_t suggest_frequency(TextView word) const;
  // As jieba's suggest_freq(parts): the frequency at which the parts, joined, are cut. Throws Error for no parts.
  int64_t suggest_frequency(std::span<const TextView> parts) const;

  // Words that `cut` never cuts, whatever surrounds them and whatever characters they have: the text between them is
  // cut on its own. Where several begin or overlap, the first and then the longest is taken. Throws Error as add_word.
  void keep_whole(TextView word);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace miaobi

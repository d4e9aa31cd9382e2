// SPDX-License-Identifier: MIT
// From text to token ids in one pass, and counting words for a vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "miaobi/segmenter.h"

namespace miaobi {

// A vocabulary of characters and words. What the segmenter cuts is one token if it is in the vocabulary, else a token
// for each of its characters, else for each byte of the character's UTF-8.
class Encoder {
 public:
  // words[i] has the id first_word + i, byte b the id first_byte + b. Throws Error for an empty word, one that is there
  // twice or has more than 65535 characters.
  Encoder(std::span<const TextView> words, int32_t first_byte, int32_t first_word);
  ~Encoder();

  // Appends the ids of `text` and, unless null, the characters that each stands for (a byte: its whole character).
  // Throws Error for half of a surrogate pair, which has no UTF-8. Time and memory as Segmenter::cut. Safe in several
  // threads at once.
  void encode(const Segmenter& segmenter, TextView text, bool hmm, std::vector<int32_t>& ids,
              std::vector<Span>* offsets) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

// How often words and characters come. Sums are exact, so they do not depend on the number of threads.
class WordCounter {
 public:
  using Words = std::unordered_map<std::u32string, int64_t>;

  // Words of one character, and those of more than max_word, are not counted.
  explicit WordCounter(int64_t max_word) : max_word_(max_word) {}

  // Cuts the texts on all threads and adds each word `times[i]` times (once where `times` is empty).
  void add_words(const Segmenter& segmenter, std::span<const TextView> texts, std::span<const int64_t> times, bool hmm);
  void add_characters(TextView text);

  const Words& words() const { return words_; }
  const std::unordered_map<char32_t, int64_t>& characters() const { return characters_; }

 private:
  int64_t max_word_;
  Words words_;
  std::unordered_map<char32_t, int64_t> characters_;
};

}  // namespace miaobi

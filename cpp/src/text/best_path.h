// SPDX-License-Identifier: MIT
// The most probable words of a text, as jieba's `calc` finds them.
#pragma once

#include <cstdint>
#include <vector>

#include "text/dictionary.h"

namespace miaobi {

// Memory of one thread for best_path; it grows with the longest word, not with the text.
class PathScratch {
 public:
  // lengths[i] becomes that of the word that begins at s[i], wherever the path to there came from. s may have several
  // blocks, with what trie.h names between them, and s[n] has to be kAlone. `user` may be null; its entries hide those
  // of `base`.
  //
  // route[i] is the largest of log(frequency) - log_total + route[i + length], the longest word where several are
  // equal, and 0 at the end of a block. A character that begins no word is one of frequency 1.
  void best_path(const WordTable& base, const WordTable* user, double log_total, const char16_t* s, int64_t n,
                 uint16_t* lengths);

 private:
  // The path is found from the end, in parts of so many characters: their words are looked up at once, so that the
  // misses in the table overlap. What is kept for a part is 10 KB of the L1 cache.
  static constexpr int64_t kPart = 256;
  // Most words have up to four characters: these are compared without a branch, the few longer ones are in lists.
  static constexpr int64_t kShort = 4;
  static constexpr uint32_t kNone = ~0u;

  struct LongWord {
    double log_frequency;
    uint32_t length, next;
  };

  template <bool kHides>
  void find_words(const WordTable& table, const char16_t* s, int64_t begin, int64_t count);

  double log_frequency_[kShort][kPart];  // of the word of 1 + first index characters, -inf where there is none
  uint32_t first_long_[kPart];           // in long_words_, or kNone
  std::vector<LongWord> long_words_;
  std::vector<double> route_;  // of the last few characters, a ring
};

}  // namespace miaobi

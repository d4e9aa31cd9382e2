// SPDX-License-Identifier: MIT
// Words with their frequencies: jieba's own, and those that a user adds.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/hmm.h"
#include "text/trie.h"

namespace miaobi {

// Words and frequencies. Words share one entry for each frequency that occurs (5,000 for jieba's 350,000 words).
class WordTable {
 public:
  static constexpr uint32_t kFirstWord = 2;  // values from here on are words; 1 is a frequency of 0, 0 none

  explicit WordTable(int64_t nodes = 0) : trie(nodes) {}

  // The value in the trie of words of this frequency.
  uint32_t value_of(int64_t frequency);
  void set(TextView word, int64_t frequency) { trie.set(word, value_of(frequency)); }
  int64_t frequency(uint32_t value) const { return frequencies_[value]; }
  // -inf of a frequency of 0, and of none.
  double log_frequency(uint32_t value) const { return logs_[value]; }

  Trie trie;

 private:
  static constexpr double kNever = -std::numeric_limits<double>::infinity();
  std::vector<int64_t> frequencies_{0, 0};
  std::vector<double> logs_{kNever, kNever};
  std::unordered_map<int64_t, uint32_t> values_{{0, 1}};
};

class Dictionary {
 public:
  explicit Dictionary(const JiebaFiles& files);

  WordTable words;
  int64_t total = 0;
  HmmModel hmm;

 private:
  void read(std::string_view text, const std::string& path);
};

// The largest total: a double holds every integer up to here.
inline constexpr int64_t kMaxTotal = int64_t{1} << 53;

}  // namespace miaobi

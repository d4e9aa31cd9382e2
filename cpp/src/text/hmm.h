// SPDX-License-Identifier: MIT
// jieba's hidden Markov model of characters: begin, end, middle of a word, or a word alone.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/trie.h"

namespace miaobi {

class HmmModel {
 public:
  // The three tables as jieba's modules write them; throws FormatError.
  HmmModel(const std::string& folder, std::string_view start, std::string_view trans, std::string_view emit);

  // Appends the end of each word of the Han text s[0, n), each plus `offset`. `states` is scratch.
  void cut(const char16_t* s, int64_t n, int64_t offset, std::vector<uint8_t>& states,
           std::vector<int64_t>& ends) const;

 private:
  // In alphabetical order, by which jieba breaks ties.
  enum State { kB, kE, kM, kS, kStates };
  using Row = std::array<double, kStates>;

  static int state_of(char32_t letter);

  Row start_;
  std::array<Row, kStates> trans_;  // [from][to]
  std::vector<Row> emit_;           // [character - U+4E00]
};

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// Dynamic programming over the words that begin at each character, part by part from the end.
#include "text/best_path.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace miaobi {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

}  // namespace

// kHides: a word of the table takes the place of what is there, even if its own frequency is 0.
template <bool kHides>
void PathScratch::find_words(const WordTable& table, const char16_t* s, int64_t begin, int64_t count) {
  static_assert(kPart <= Trie::kSpan);
  table.trie.words_from(s + begin, count, [&](int64_t i, int64_t length, uint32_t value) {
    if (length <= kShort) {
      double& place = log_frequency_[length - 1][i];
      place = kHides && value == 0 ? place : table.log_frequency(value);
      return;
    }
    if (kHides ? value == 0 : value < WordTable::kFirstWord) return;
    if (kHides) {
      for (uint32_t at = first_long_[i]; at != kNone; at = long_words_[at].next) {
        if (long_words_[at].length == length) {
          long_words_[at].log_frequency = table.log_frequency(value);
          return;
        }
      }
    }
    long_words_.push_back({table.log_frequency(value), static_cast<uint32_t>(length), first_long_[i]});
    first_long_[i] = static_cast<uint32_t>(long_words_.size() - 1);
  });
}

void PathScratch::best_path(const WordTable& base, const WordTable* user, double log_total, const char16_t* s,
                            int64_t n, uint16_t* lengths) {
  const int64_t longest = std::max(base.trie.longest(), user != nullptr ? user->trie.longest() : 0);
  const auto room = std::bit_ceil(static_cast<uint64_t>(longest) + 1);
  if (route_.size() < room) route_.resize(room);
  const auto mask = static_cast<int64_t>(room) - 1;
  double* const route = route_.data();
  // The next four of the route, nearest first, in registers: the ring is for long words.
  double after_one = 0.0, after_two = 0.0, after_three = 0.0, after_four = 0.0;
  route[n & mask] = 0.0;
  for (int64_t end = n; end > 0;) {
    const int64_t begin = std::max<int64_t>(end - kPart, 0), count = end - begin;
    for (int64_t length = 1; length < kShort; ++length) {
      std::fill_n(log_frequency_[length], count, kNever);
    }
    std::fill_n(first_long_, count, kNone);
    long_words_.clear();
    find_words<false>(base, s, begin, count);
    if (user != nullptr) find_words<true>(*user, s, begin, count);
    for (int64_t k = count; k-- > 0;) {
      double one = log_frequency_[0][k];
      const double two = log_frequency_[1][k], three = log_frequency_[2][k], four = log_frequency_[3][k];
      double best = kNever;
      int64_t length = 1;
      for (uint32_t at = first_long_[k]; at != kNone; at = long_words_[at].next) {
        const LongWord& word = long_words_[at];
        const double p = word.log_frequency - log_total + route[(begin + k + word.length) & mask];
        const bool better = p > best || (p == best && word.length > length);
        best = better ? p : best;
        length = better ? word.length : length;
      }
      const bool begins = std::max(std::max(one, two), std::max(three, std::max(four, best))) > kNever;
      one = begins ? one : 0.0;
      const auto take = [&](double log_frequency, double after, int64_t of_length) {
        const double p = log_frequency - log_total + after;
        length = p > best ? of_length : length;
        best = best > p ? best : p;
      };
      take(four, after_four, 4);
      take(three, after_three, 3);
      take(two, after_two, 2);
      take(one, after_one, 1);
      const char16_t c = s[begin + k];
      best = c >= kNoBlock ? 0.0 : best;
      length = c >= kNoBlock ? 1 + (c == kPair) : length;
      lengths[begin + k] = static_cast<uint16_t>(length);
      after_four = after_three;
      after_three = after_two;
      after_two = after_one;
      after_one = route[(begin + k) & mask] = best;
    }
    end = begin;
  }
}

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// From logits to the next token.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "miaobi/rng.h"

namespace miaobi {

struct SampleRow;

struct SamplingOptions {
  bool do_sample = true;             // false: the most probable token
  float temperature = 1.0f;          // > 0
  int64_t top_k = 0;                 // the k most probable tokens; 0: all
  float top_p = 1.0f;                // (0, 1]: the smallest set of top tokens with at least this probability
                                     // (Holtzman et al. 2020)
  float min_p = 0.0f;                // [0, 1]: tokens with at least this share of the top one's probability
  float typical_p = 1.0f;            // (0, 1]: the smallest set with at least this probability of the tokens whose
                                     // -log p is nearest to the entropy (Meister et al. 2023)
  float repetition_penalty = 1.0f;   // > 0: positive logits of tokens in the window are divided by it, negative
                                     // ones multiplied (Keskar et al. 2019)
  float presence_penalty = 0.0f;     // taken off the logit of each written token in the window
  float frequency_penalty = 0.0f;    // and this for each time it was written there
  int64_t penalty_window = 0;        // how many of the last tokens the penalties look at; 0: the whole history
  int64_t no_repeat_ngram_size = 0;  // 0: off; no n-gram of the history is completed a second time
  int64_t history = 1024;            // > 0: how many of the last tokens are remembered

  void validate() const;  // throws Error that names the field
};

// Chooses the tokens of one text, of which it remembers the end: the last `history` tokens that accept() and
// sample() were given or gave. Draw number n of a seed is a function of (seed, n) alone, and the same logits give the
// same token on every instruction set. Ties go to the smaller id. A token takes some passes over the vocabulary: two,
// one or two more for top-p or typical-p, up to 30 for top-k and for top-p before typical-p. After the first call of a
// thread with a vocabulary nothing is allocated. Copies are independent.
class Sampler {
 public:
  using Bias = std::vector<std::pair<int32_t, float>>;

  // `bias` is added to logits by id. Throws Error for options out of range, and biases that are not finite.
  Sampler(const SamplingOptions& options, uint64_t seed, Bias bias = {});

  // Appends tokens to the text: of the prompt, or `written` after it. Presence and frequency penalties and
  // looping() count only what is written.
  void accept(std::span<const int32_t> ids, bool written);
  // The next token for logits (vocab), which it also accepts as written. Banned ids are never chosen; ids out of
  // the vocabulary are left alone. Order: bias, repetition, presence, frequency, n-grams, banned; greedy stops
  // here; temperature, min-p, top-k, top-p, typical-p, the draw, each on what the one before it left.
  // Throws Error where no logit is finite.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> banned);
  // log(softmax) of the logits after penalties and bans, -infinity where banned; out (vocab). No token is
  // accepted. Throws as sample().
  void log_probabilities(std::span<const float> logits, std::span<const int32_t> banned, float* out);
  // Whether the end of what was written is one sequence of at most 128 tokens at least three times in a row, and
  // 24 tokens or more.
  bool looping() const { return looping_; }

 private:
  // `history`, contiguous, oldest first.
  std::span<const int32_t> remembered() const { return {tokens_.data() + begin_, tokens_.size() - begin_}; }
  class Candidates;
  int32_t sample_with(std::span<const float> logits, std::span<const int32_t> banned, float* scratch);
  float adjust(Candidates& candidates, std::span<const int32_t> banned);
  void penalise(std::span<float> adjusted);
  void ban_repeated_ngrams(std::span<float> adjusted) const;
  friend void sample_rows(std::span<SampleRow> rows);

  SamplingOptions options_;
  Rng rng_;
  Bias bias_;
  uint64_t draws_ = 0;
  std::vector<int32_t> tokens_;  // capacity 2 * history; the oldest half goes when it is full
  size_t begin_ = 0;
  int64_t written_ = 0;        // of all tokens
  std::vector<int32_t> runs_;  // [p - 1]: how many of the last written tokens equal the one p before them
  bool looping_ = false;
  std::vector<int32_t> counts_;  // per token, all 0 between calls; empty without penalties
};

// One text of a batch: its sampler, of which no other row has the same, its logits and banned ids; gets its token.
struct SampleRow {
  Sampler* sampler;
  std::span<const float> logits;
  std::span<const int32_t> banned;
  int32_t token = -1;
};
// sampler->sample() of all rows, on all threads.
void sample_rows(std::span<SampleRow> rows);

}  // namespace miaobi

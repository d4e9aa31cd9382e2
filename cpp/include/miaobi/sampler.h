// SPDX-License-Identifier: MIT
// From logits to the next token.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "miaobi/rng.h"

namespace miaobi {

struct SamplingOptions {
  bool do_sample = true;             // false: the most probable token
  float temperature = 1.0f;          // > 0
  int64_t top_k = 0;                 // 0: all
  float top_p = 1.0f;                // (0, 1]: the smallest set of top tokens with at least this probability
  float min_p = 0.0f;                // [0, 1]: tokens with at least this share of the top one's probability
  float repetition_penalty = 1.0f;   // > 0: positive logits of tokens in the history are divided by it,
                                     // negative ones multiplied (Keskar et al. 2019)
  int64_t no_repeat_ngram_size = 0;  // 0: off; no n-gram of the history is completed a second time

  void validate() const;  // throws Error that names the field
};

// Draw number n of a seed is a function of (seed, n) alone. Ties go to the smaller id.
class Sampler {
 public:
  Sampler(const SamplingOptions& options, uint64_t seed);
  // The next token for logits (vocab), given all tokens so far. Banned ids are never chosen. Throws Error
  // where no logit is finite.
  int32_t sample(const float* logits, int64_t vocab, const int32_t* history, int64_t history_length,
                 const int32_t* banned, int64_t banned_count);

 private:
  void penalise(const int32_t* history, int64_t history_length);

  SamplingOptions options_;
  Rng rng_;
  uint64_t draws_ = 0;
  std::vector<float> logits_;
  std::vector<std::pair<float, int32_t>> candidates_;
  std::vector<uint8_t> seen_;
};

}  // namespace miaobi

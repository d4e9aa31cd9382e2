// SPDX-License-Identifier: MIT
// Penalties, truncation and the draw.
#include "miaobi/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "miaobi/check.h"

namespace miaobi {
namespace {
constexpr float kBanned = -std::numeric_limits<float>::infinity();

// Heap order: the most probable first, the smaller id first among equals.
bool less_probable(const std::pair<float, int32_t>& a, const std::pair<float, int32_t>& b) {
  return a.first < b.first || (a.first == b.first && a.second > b.second);
}
}  // namespace

void SamplingOptions::validate() const {
  MIAOBI_CHECK(temperature > 0 && std::isfinite(temperature), "expected temperature > 0, got ", temperature,
               "; for the most probable token use do_sample=False");
  MIAOBI_CHECK(top_k >= 0, "expected top_k >= 0, got ", top_k);
  MIAOBI_CHECK(top_p > 0 && top_p <= 1, "expected top_p in (0, 1], got ", top_p);
  MIAOBI_CHECK(min_p >= 0 && min_p <= 1, "expected min_p in [0, 1], got ", min_p);
  MIAOBI_CHECK(repetition_penalty > 0 && std::isfinite(repetition_penalty), "expected repetition_penalty > 0, got ",
               repetition_penalty);
  MIAOBI_CHECK(no_repeat_ngram_size >= 0, "expected no_repeat_ngram_size >= 0, got ", no_repeat_ngram_size);
}

Sampler::Sampler(const SamplingOptions& options, uint64_t seed) : options_(options), rng_(seed, 0x5a3d1e) {
  options.validate();
}

void Sampler::penalise(const int32_t* history, int64_t length) {
  const auto vocab = static_cast<int64_t>(logits_.size());
  const auto in_vocab = [&](int32_t id) { return id >= 0 && id < vocab; };
  if (options_.repetition_penalty != 1.0f) {
    seen_.assign(logits_.size(), 0);
    for (int64_t i = 0; i < length; ++i) {
      if (!in_vocab(history[i]) || seen_[static_cast<size_t>(history[i])]) continue;
      seen_[static_cast<size_t>(history[i])] = 1;
      float& x = logits_[static_cast<size_t>(history[i])];
      x = x > 0 ? x / options_.repetition_penalty : x * options_.repetition_penalty;
    }
  }
  const int64_t n = options_.no_repeat_ngram_size;
  if (n > 0 && length + 1 >= n) {
    const int32_t* suffix = history + length - (n - 1);
    for (int64_t i = 0; i + n <= length; ++i) {
      if (std::equal(suffix, suffix + n - 1, history + i) && in_vocab(history[i + n - 1])) {
        logits_[static_cast<size_t>(history[i + n - 1])] = kBanned;
      }
    }
  }
}

int32_t Sampler::sample(const float* logits, int64_t vocab, const int32_t* history, int64_t history_length,
                        const int32_t* banned, int64_t banned_count) {
  logits_.assign(logits, logits + vocab);
  penalise(history, history_length);
  for (int64_t i = 0; i < banned_count; ++i) {
    if (banned[i] >= 0 && banned[i] < vocab) logits_[static_cast<size_t>(banned[i])] = kBanned;
  }
  // max_element keeps the first of equals, and NaN never wins a comparison.
  const auto best = std::max_element(logits_.begin(), logits_.end(),
                                     [](float a, float b) { return a < b || (std::isnan(a) && !std::isnan(b)); });
  MIAOBI_CHECK(
      best != logits_.end() && std::isfinite(*best),
      "[sampler] expected at least one finite logit; the model's weights are damaged or every token is banned");
  if (!options_.do_sample) return static_cast<int32_t>(best - logits_.begin());

  // Unnormalised probabilities; those below exp(-30) of the best could not be drawn with 23 random bits.
  const float top = *best;
  candidates_.clear();
  float total = 0;
  for (size_t i = 0; i < logits_.size(); ++i) {
    const float shifted = (logits_[i] - top) / options_.temperature;
    if (!(shifted > -30.0f)) continue;
    const float p = std::exp(shifted);
    if (p < options_.min_p) continue;  // the best has p = 1
    candidates_.emplace_back(p, static_cast<int32_t>(i));
    total += p;
  }
  const bool truncated = options_.top_k > 0 || options_.top_p < 1.0f;
  if (truncated) {
    const auto limit = options_.top_k > 0 ? static_cast<size_t>(options_.top_k) : candidates_.size();
    if (limit < candidates_.size()) {
      std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<int64_t>(limit) - 1, candidates_.end(),
                       [](const auto& a, const auto& b) { return less_probable(b, a); });
      candidates_.resize(limit);
      total = 0;
      for (const auto& c : candidates_) total += c.first;
    }
    // Pop the most probable off a heap until top_p is reached: a few pops, not a sort of the vocabulary.
    std::make_heap(candidates_.begin(), candidates_.end(), less_probable);
    auto end = candidates_.end();
    float kept = 0;
    do {
      std::pop_heap(candidates_.begin(), end, less_probable);
      --end;
      kept += end->first;
    } while (end != candidates_.begin() && kept < options_.top_p * total);
    candidates_.erase(candidates_.begin(), end);
    std::reverse(candidates_.begin(), candidates_.end());
    total = kept;
  }
  float left = rng_.uniform(draws_++) * total;
  for (const auto& c : candidates_) {
    left -= c.first;
    if (left < 0) return c.second;
  }
  return candidates_.back().second;
}

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// Penalties, truncation and the draw, in passes over the vocabulary that need no sorting.
#include "miaobi/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/dispatch.h"
#include "miaobi/check.h"
#include "miaobi/threads.h"

namespace miaobi {
namespace {
constexpr float kBanned = -std::numeric_limits<float>::infinity();
constexpr float kLowest = -30.0f;  // exp(-30) of the most probable one could not be drawn with 23 random bits
constexpr float kSmallest = std::numeric_limits<float>::min();
constexpr int64_t kLongestLoop = 128, kLoopTokens = 24, kLoopTurns = 3;
// Digits of a radix selection over the 31 bits of a float that is not negative, highest first.
constexpr int kShifts[] = {20, 10, 0};
constexpr size_t kBuckets = size_t{1} << 11;
constexpr size_t kSorted = 64;  // few enough that sorting is cheaper than another pass over the buckets
constexpr size_t kDrawBlock = 128;

// Independent lanes let the compiler use vectors although sums and maxima of floats may not be reordered.
constexpr size_t kLanes = 8;

float max_of(std::span<const float> x) {
  float lanes[kLanes];
  std::fill(std::begin(lanes), std::end(lanes), kBanned);
  size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];  // NaN never wins
  }
  for (; i < x.size(); ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
  return *std::max_element(std::begin(lanes), std::end(lanes));
}

double sum_of(std::span<const float> x) {
  double lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(x[i + j]);
  }
  for (; i < x.size(); ++i) lanes[0] += static_cast<double>(x[i]);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

uint32_t bits(float x) { return std::bit_cast<uint32_t>(x); }

// Leaves the candidates with the largest keys that together weigh at least `target`, and sets the weights of all
// others to 0: among equal keys those with smaller ids stay. Keys are in [0, 1]; `by_count` gives every key above 0
// the weight 1. Keys below `floor`, which is above 0, are known to go. The place of the cut is found by radix selection
// until few are left to be sorted, so no vocabulary is slow, however flat.
void keep_top(std::span<const float> keys, std::span<float> weights, bool by_count, double target, float floor,
              std::vector<int32_t>& tied, std::vector<double>& buckets) {
  const auto weight_of = [&](int32_t id) {
    const auto i = static_cast<size_t>(id);
    return by_count ? (keys[i] > 0 ? 1.0 : 0.0) : double{weights[i]};
  };
  const auto key_bits = [&](int32_t id) { return bits(keys[static_cast<size_t>(id)]); };
  uint32_t cut = 0;
  double above = 0;
  size_t count = 0;  // ids are stored unconditionally, here and below, since a branch would be guessed wrong
  for (size_t i = 0; i < keys.size(); ++i) {
    tied[count] = static_cast<int32_t>(i);
    count += keys[i] >= floor;
  }
  for (const int shift : kShifts) {
    if (count <= kSorted) break;
    const bool first = shift == kShifts[0];
    const uint32_t mask = first ? kBuckets - 1 : kBuckets / 2 - 1;
    uint32_t digit = first ? bits(1.0f) >> shift : mask;  // the highest there is
    std::fill_n(buckets.begin(), digit + 1, 0.0);
    std::fill_n(buckets.begin() + kBuckets, digit + 1, 0.0);
    for (size_t n = 0; n < count; ++n) {
      // Two histograms in turns: neighbours often share a bucket, and would wait for each other.
      buckets[(n % 2) * kBuckets + ((key_bits(tied[n]) >> shift) & mask)] += weight_of(tied[n]);
    }
    const auto bucket = [&] { return buckets[digit] + buckets[kBuckets + digit]; };
    for (double next; digit > 0 && above + (next = bucket()) < target; --digit) above += next;
    cut |= digit << shift;
    size_t kept = 0;  // the ids in the bucket of the cut
    for (size_t n = 0; n < count; ++n) {
      const int32_t id = tied[n];
      tied[kept] = id;
      kept += ((key_bits(id) >> shift) & mask) == digit;
    }
    count = kept;
  }
  const auto rest = std::span(tied).first(count);
  if (count <= kSorted) {  // else they are equal, in order of id
    std::sort(rest.begin(), rest.end(),
              [&](int32_t a, int32_t b) { return key_bits(a) != key_bits(b) ? key_bits(a) > key_bits(b) : a < b; });
  }
  size_t kept = 0;
  while (kept < count && above < target) above += weight_of(rest[kept++]);
  if (kept > 0) cut = key_bits(rest[kept - 1]);
  for (size_t i = 0; i < keys.size(); ++i) weights[i] = bits(keys[i]) >= cut ? weights[i] : 0.0f;
  for (const int32_t id : rest.subspan(kept)) weights[static_cast<size_t>(id)] = 0.0f;
}
}  // namespace

void SamplingOptions::validate() const {
  const auto share = [](float x) { return x > 0 && x <= 1; };
  MIAOBI_CHECK(temperature > 0 && std::isfinite(temperature), "expected temperature > 0, got ", temperature,
               "; for the most probable token use do_sample=False");
  MIAOBI_CHECK(top_k >= 0, "expected top_k >= 0, got ", top_k);
  MIAOBI_CHECK(share(top_p), "expected top_p in (0, 1], got ", top_p);
  MIAOBI_CHECK(min_p >= 0 && min_p <= 1, "expected min_p in [0, 1], got ", min_p);
  MIAOBI_CHECK(share(typical_p), "expected typical_p in (0, 1], got ", typical_p);
  MIAOBI_CHECK(repetition_penalty > 0 && std::isfinite(repetition_penalty), "expected repetition_penalty > 0, got ",
               repetition_penalty);
  MIAOBI_CHECK(std::isfinite(presence_penalty), "expected a finite presence_penalty, got ", presence_penalty);
  MIAOBI_CHECK(std::isfinite(frequency_penalty), "expected a finite frequency_penalty, got ", frequency_penalty);
  MIAOBI_CHECK(penalty_window >= 0, "expected penalty_window >= 0, got ", penalty_window);
  MIAOBI_CHECK(no_repeat_ngram_size >= 0, "expected no_repeat_ngram_size >= 0, got ", no_repeat_ngram_size);
  MIAOBI_CHECK(history > 0, "expected history > 0, got ", history);
}

Sampler::Sampler(const SamplingOptions& options, uint64_t seed, Bias bias)
    : options_(options), rng_(seed, 0x5a3d1e), bias_(std::move(bias)), runs_(kLongestLoop), buckets_(2 * kBuckets) {
  options.validate();
  for (const auto& [id, value] : bias_) {
    MIAOBI_CHECK(std::isfinite(value), "expected finite biases, got ", value, " for token ", id);
  }
  options_.history = std::max(options_.history, kLongestLoop);  // looping() looks that far back
  tokens_.reserve(static_cast<size_t>(2 * options_.history));
}

void Sampler::accept(std::span<const int32_t> ids, bool written) {
  const auto history = static_cast<size_t>(options_.history);
  if (ids.size() > history) ids = ids.last(history);
  for (const int32_t id : ids) {
    if (tokens_.size() == 2 * history) {
      tokens_.erase(tokens_.begin(), tokens_.begin() + static_cast<int64_t>(history));
      begin_ = 0;
    }
    if (written) {
      looping_ = false;
      const int64_t longest = std::min(kLongestLoop, written_);
      for (int64_t period = 1; period <= longest; ++period) {
        int32_t& run = runs_[static_cast<size_t>(period - 1)];
        run = tokens_[tokens_.size() - static_cast<size_t>(period)] == id ? run + 1 : 0;
        looping_ |= run + period >= std::max(kLoopTurns * period, kLoopTokens);
      }
      ++written_;
    }
    tokens_.push_back(id);
    begin_ = tokens_.size() > history ? tokens_.size() - history : 0;
  }
}

void Sampler::penalise() {
  const auto history = remembered();
  const auto in_vocab = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < logits_.size(); };
  const auto limit = static_cast<size_t>(options_.penalty_window);
  const auto window = limit > 0 && limit < history.size() ? history.last(limit) : history;
  const size_t written = std::min(window.size(), static_cast<size_t>(written_));
  // counts_[id] - 1 is how often it was written; 0 is not in the window.
  for (size_t i = 0; i < window.size(); ++i) {
    if (!in_vocab(window[i])) continue;
    int32_t& count = counts_[static_cast<size_t>(window[i])];
    count = std::max(count, 1) + (i + written >= window.size());
  }
  for (const int32_t id : window) {
    if (!in_vocab(id)) continue;
    int32_t& count = counts_[static_cast<size_t>(id)];
    if (count == 0) continue;
    float& x = logits_[static_cast<size_t>(id)];
    x = x > 0 ? x / options_.repetition_penalty : x * options_.repetition_penalty;
    if (count > 1) x -= options_.presence_penalty + static_cast<float>(count - 1) * options_.frequency_penalty;
    count = 0;
  }
}

void Sampler::ban_repeated_ngrams() {
  const auto history = remembered();
  const auto n = static_cast<size_t>(options_.no_repeat_ngram_size);
  if (history.size() < n) return;
  const auto suffix = history.last(n - 1);
  for (size_t i = 0; i + n <= history.size(); ++i) {
    const int32_t id = history[i + n - 1];
    if (std::equal(suffix.begin(), suffix.end(), history.begin() + static_cast<int64_t>(i)) && id >= 0 &&
        static_cast<size_t>(id) < logits_.size()) {
      logits_[static_cast<size_t>(id)] = kBanned;
    }
  }
}

// Fills logits_ and gives the largest of them.
float Sampler::adjust(std::span<const float> logits, std::span<const int32_t> banned) {
  logits_.assign(logits.begin(), logits.end());
  counts_.resize(logits.size());
  const auto in_vocab = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < logits.size(); };
  for (const auto& [id, value] : bias_) {
    if (in_vocab(id)) logits_[static_cast<size_t>(id)] += value;
  }
  if (options_.repetition_penalty != 1 || options_.presence_penalty != 0 || options_.frequency_penalty != 0) penalise();
  if (options_.no_repeat_ngram_size > 0) ban_repeated_ngrams();
  for (const int32_t id : banned) {
    if (in_vocab(id)) logits_[static_cast<size_t>(id)] = kBanned;
  }
  const float top = max_of(logits_);
  MIAOBI_CHECK(std::isfinite(top),
               "[sampler] expected at least one finite logit, got none: either the rules of this text leave no token "
               "(bad words, no_repeat_ngram_size, constraints), or the model's weights are damaged");
  return top;
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> banned) {
  const float top = adjust(logits, banned);
  const int32_t token = options_.do_sample
                            ? draw(top)
                            : static_cast<int32_t>(std::find(logits_.begin(), logits_.end(), top) - logits_.begin());
  accept({&token, 1}, true);
  return token;
}

void Sampler::log_probabilities(std::span<const float> logits, std::span<const int32_t> banned, float* out) {
  adjust(logits, banned);
  const float lse = kernels_in_use().logsumexp_row(logits_.data(), static_cast<int64_t>(logits_.size()));
  for (size_t i = 0; i < logits_.size(); ++i) out[i] = std::isnan(logits_[i]) ? kBanned : logits_[i] - lse;
}

void Sampler::keep_typical(double total) {
  // -log p = log(total) - x, where x is what logits_ holds now; its mean is the entropy.
  const double log_total = std::log(total);
  double entropy = 0;
  for (size_t i = 0; i < probs_.size(); ++i) {
    if (probs_[i] > 0) entropy += double{probs_[i]} / total * (log_total - double{logits_[i]});
  }
  const auto middle = static_cast<float>(log_total - entropy);  // the x of a token that is as likely as typical
  for (size_t i = 0; i < probs_.size(); ++i) {
    keys_[i] = probs_[i] > 0 ? 1.0f / (1.0f + std::abs(logits_[i] - middle)) : 0.0f;
  }
  keep_top(keys_, probs_, false, double{options_.typical_p} * total, kSmallest, tied_, buckets_);
}

int32_t Sampler::draw(float top) {
  const size_t vocab = logits_.size();
  keys_.resize(vocab);
  probs_.resize(vocab);
  tied_.resize(vocab + 1);  // the selection stores one element past those it keeps
  const float scale = 1.0f / options_.temperature;
  for (float& x : logits_) x = (x - top) * scale;
  kernels_in_use().exp(logits_.data(), static_cast<int64_t>(vocab), probs_.data());
  // The most probable has p = 1. NaN fails both comparisons.
  for (size_t i = 0; i < vocab; ++i) {
    const bool candidate = (logits_[i] > kLowest) & (probs_[i] >= options_.min_p);
    probs_[i] = candidate ? probs_[i] : 0.0f;
  }
  if (options_.top_k > 0 && options_.top_k < static_cast<int64_t>(vocab)) {
    std::copy(probs_.begin(), probs_.end(), keys_.begin());
    keep_top(keys_, probs_, true, static_cast<double>(options_.top_k), kSmallest, tied_, buckets_);
  }
  double total = sum_of(probs_);
  if (options_.top_p < 1) {
    std::copy(probs_.begin(), probs_.end(), keys_.begin());
    // All below this add up to less than half of what goes.
    const double floor = 0.5 * (1 - double{options_.top_p}) * total / static_cast<double>(vocab);
    keep_top(keys_, probs_, false, double{options_.top_p} * total, std::max(static_cast<float>(floor), kSmallest),
             tied_, buckets_);
    total = sum_of(probs_);
  }
  if (options_.typical_p < 1) {
    keep_typical(total);
    total = sum_of(probs_);
  }
  // The token is where the sum of all up to it, in order of id, passes the draw: first the block, then the place.
  double left = static_cast<double>(rng_.uniform(draws_++)) * total;
  size_t begin = 0;
  for (size_t size = 0; begin < vocab; begin += size) {
    size = std::min(kDrawBlock, vocab - begin);
    const double sum = sum_of(std::span(probs_).subspan(begin, size));
    if (left < sum) break;
    left -= sum;
  }
  size_t chosen = vocab;
  for (size_t i = begin; i < vocab && (left >= 0 || chosen == vocab); ++i) {
    left -= static_cast<double>(probs_[i]);
    if (probs_[i] > 0) chosen = i;
  }
  while (chosen == vocab || probs_[chosen] <= 0) --chosen;  // rounding left nothing: the last one
  return static_cast<int32_t>(chosen);
}

void sample_rows(std::span<SampleRow> rows) {
  parallel_for(static_cast<int64_t>(rows.size()), [&](int64_t i) {
    SampleRow& row = rows[static_cast<size_t>(i)];
    row.token = row.sampler->sample(row.logits, row.banned);
  });
}

}  // namespace miaobi

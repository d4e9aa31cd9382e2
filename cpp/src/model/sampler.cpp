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
#include "miaobi/memory.h"
#include "miaobi/threads.h"

namespace miaobi {
namespace {
constexpr float kBanned = -std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLowest = 0x1p-43f;   // of the most probable one's weight: could not be drawn with 23 random bits
constexpr float kLowestLog = -30.0f;  // below its logarithm
constexpr int64_t kLongestLoop = 128, kLoopTokens = 24, kLoopTurns = 3;
constexpr int kAttemptBits = 8;         // random numbers of one draw; it hardly ever takes more than four
constexpr SampleRank kAll = {0.0f, 0};  // comes after every key above 0

int64_t rounded_up(size_t n, int64_t unit) { return (static_cast<int64_t>(n) + unit - 1) / unit * unit; }
uint32_t bits(float x) { return std::bit_cast<uint32_t>(x); }
float float_of(uint32_t x) { return std::bit_cast<float>(x); }
float float_before(float x) { return x > 0 ? float_of(bits(x) - 1) : x; }  // of those that are not negative

}  // namespace

// The tokens that may be drawn, by the weights exp((logit - top) / temperature); 0 is no candidate. A rule ranks them
// by keys, the weights themselves but for typical-p, and keeps those that come before some rank.
class Sampler::Candidates {
 public:
  static int64_t scratch_floats(size_t vocab) {
    return 3 * rounded_up(vocab, kSampleLanes) + rounded_up(vocab, kSampleBlock) / kSampleBlock * kSampleLanes;
  }

  // Copies the logits into scratch.
  Candidates(std::span<const float> logits, float* scratch)
      : vocab_(logits.size()),
        size_(rounded_up(vocab_, kSampleLanes)),
        logits_(scratch),
        weights_(scratch + size_),
        keys_(weights_ + size_),
        strata_(keys_ + size_, scratch + scratch_floats(vocab_)) {
    std::copy(logits.begin(), logits.end(), logits_);
    std::fill(logits_ + vocab_, logits_ + size_, kBanned);
  }

  std::span<float> logits() { return {logits_, vocab_}; }
  float top() const { return table_.sample_max(logits_, size_); }
  // The first token with this logit, which there is.
  int32_t first(float logit) const {
    int64_t row = 0;
    const auto there = [&] {  // without a way out of the loop, for the compiler to use vectors
      int found = 0;
      for (int64_t i = row; i < row + kSampleLanes; ++i) found |= logits_[i] == logit;
      return found != 0;
    };
    while (!there()) row += kSampleLanes;
    return static_cast<int32_t>(std::find(logits_ + row, logits_ + row + kSampleLanes, logit) - logits_);
  }

  // Draw `number`. Instead of looking for the place where top-p or typical-p cuts, a token is drawn and kept if those
  // before it weigh less than the share; else the draw goes on among those. What is kept has the distribution of what
  // the rule leaves, for every draw has, given that it is kept.
  int32_t draw(const SamplingOptions& options, float top, const Rng& rng, uint64_t number) {
    const float scale = std::min(kLog2E / options.temperature, std::numeric_limits<float>::max());
    const float floor = float_before(std::max(options.min_p, kLowest));  // weights above it are not below min_p
    table_.sample_weights(logits_, size_, top, scale, floor, weights_, strata_.data());
    const float* keys = weights_;
    SampleRank end = kAll;
    double weight = total();
    if (options.top_k > 0 && options.top_k < size_) {
      end = cut(nullptr, static_cast<double>(options.top_k));
      weight = weigh(keys, weights_, end);
    }
    double target = options.top_p < 1 ? double{options.top_p} * weight : std::numeric_limits<double>::infinity();
    if (options.typical_p < 1) {
      if (options.top_p < 1) {
        end = cut(weights_, target);
        weight = weigh(keys, weights_, end);
      }
      rank_by_typicality(top, scale / kLog2E, end, weight);
      keys = keys_;
      end = kAll;
      target = double{options.typical_p} * weight;
      weigh(keys, weights_, end);
    }
    for (uint64_t attempt = 0;; ++attempt) {
      const double u = double{rng.uniform((number << kAttemptBits) + attempt)};
      const int64_t token = find(keys, end, u * weight);
      if (target > weight) return static_cast<int32_t>(token);
      const SampleRank rank{keys[token], token};
      const double before = weigh(keys, weights_, rank);
      if (before < target) return static_cast<int32_t>(token);
      end = rank;
      weight = before;
    }
  }

 private:
  double total() const {
    double sums[4] = {};  // the count of strata is a multiple of four
    for (size_t i = 0; i < strata_.size(); i += 4) {
      for (size_t j = 0; j < 4; ++j) sums[j] += double{strata_[i + j]};
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  // What is before `end` weighs; w null: how many there are.
  double weigh(const float* keys, const float* w, SampleRank end) {
    table_.sample_above(keys, w, size_, end, strata_.data());
    return total();
  }

  // The end of the smallest set of the most probable candidates that together weigh at least `target`; with w null, of
  // the first `target` of them. The bits of a float that is not negative are in its order.
  SampleRank cut(const float* w, double target) {
    uint32_t low = bits(kLowest) - 1, high = bits(1.0f);
    if (weigh(weights_, w, {float_of(low), 0}) <= target) return kAll;
    while (high - low > 1) {
      const uint32_t middle = low + (high - low) / 2;
      const double above = weigh(weights_, w, {float_of(middle), 0});
      if (above == target) return {float_of(middle), 0};
      (above > target ? low : high) = middle;
    }
    // Those above the key `high` are too few; those equal to it are taken by id.
    const float key = float_of(high);
    double above = weigh(weights_, w, {key, 0});
    int64_t id = 0;
    for (; above < target; ++id) {
      if (weights_[id] == key) above += w == nullptr ? 1.0 : double{key};
    }
    return {key, id};
  }

  // keys_ of those before `end`, which weigh `weight`: the larger the nearer -log p is to the entropy. The loops have
  // no branch, for the compiler to use vectors.
  void rank_by_typicality(float top, float scale, SampleRank end, double weight) {
    // -log p = log(weight) - x, x = (logit - top) * scale. Its mean is the entropy, so the distance is that of x to the
    // mean of x.
    const auto x = [=, this](int64_t i) {
      const float shifted = (logits_[i] - top) * scale;
      return shifted > kLowestLog ? shifted : kLowestLog;  // finite for all, also for what is no candidate
    };
    for (int64_t i = 0; i < size_; ++i) keys_[i] = weights_[i] * x(i);
    const auto mean = static_cast<float>(weigh(weights_, keys_, end) / weight);
    const auto fill = [&](int64_t first, int64_t last, float limit) {
      for (int64_t i = first; i < last; ++i) {
        const float there = weights_[i] > limit ? 1.0f : 0.0f;
        keys_[i] = there / (1.0f + std::abs(x(i) - mean));
      }
    };
    fill(0, end.id, float_before(end.key));
    fill(end.id, size_, end.key);
  }

  static bool before(float key, int64_t id, SampleRank rank) {
    return (key > rank.key) | ((key == rank.key) & (id < rank.id));
  }

  // The token where the sum of what comes before `end`, stratum by stratum, passes `left`.
  int64_t find(const float* keys, SampleRank end, double left) const {
    size_t stratum = 0, last = 0;
    for (; stratum < strata_.size(); ++stratum) {
      if (strata_[stratum] > 0) last = stratum;
      if (left < double{strata_[stratum]}) break;
      left -= double{strata_[stratum]};
    }
    if (stratum == strata_.size()) stratum = last;  // rounding left nothing
    const auto block = static_cast<int64_t>(stratum) / kSampleLanes * kSampleBlock;
    const int64_t stop = std::min(block + kSampleBlock, size_);
    int64_t chosen = -1;
    for (int64_t i = block + static_cast<int64_t>(stratum) % kSampleLanes; i < stop && (left >= 0 || chosen < 0);
         i += kSampleLanes) {
      if (weights_[i] > 0 && before(keys[i], i, end)) {
        chosen = i;
        left -= double{weights_[i]};
      }
    }
    return chosen;
  }

  const KernelTable& table_ = kernels_in_use();
  size_t vocab_;
  int64_t size_;
  float *logits_, *weights_, *keys_;
  std::span<float> strata_;
};

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
    : options_(options), rng_(seed, 0x5a3d1e), bias_(std::move(bias)), runs_(kLongestLoop) {
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

void Sampler::penalise(std::span<float> adjusted) {
  counts_.resize(adjusted.size());
  const auto history = remembered();
  const auto in_vocab = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < adjusted.size(); };
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
    float& x = adjusted[static_cast<size_t>(id)];
    x = x > 0 ? x / options_.repetition_penalty : x * options_.repetition_penalty;
    if (count > 1) x -= options_.presence_penalty + static_cast<float>(count - 1) * options_.frequency_penalty;
    count = 0;
  }
}

void Sampler::ban_repeated_ngrams(std::span<float> adjusted) const {
  const auto history = remembered();
  const auto n = static_cast<size_t>(options_.no_repeat_ngram_size);
  if (history.size() < n) return;
  const auto suffix = history.last(n - 1);
  for (size_t i = 0; i + n <= history.size(); ++i) {
    const int32_t id = history[i + n - 1];
    if (std::equal(suffix.begin(), suffix.end(), history.begin() + static_cast<int64_t>(i)) && id >= 0 &&
        static_cast<size_t>(id) < adjusted.size()) {
      adjusted[static_cast<size_t>(id)] = kBanned;
    }
  }
}

// Applies biases, penalties and bans, and gives the largest logit.
float Sampler::adjust(Candidates& candidates, std::span<const int32_t> banned) {
  const std::span<float> logits = candidates.logits();
  const auto in_vocab = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < logits.size(); };
  for (const auto& [id, value] : bias_) {
    if (in_vocab(id)) logits[static_cast<size_t>(id)] += value;
  }
  if (options_.repetition_penalty != 1 || options_.presence_penalty != 0 || options_.frequency_penalty != 0) {
    penalise(logits);
  }
  if (options_.no_repeat_ngram_size > 0) ban_repeated_ngrams(logits);
  for (const int32_t id : banned) {
    if (in_vocab(id)) logits[static_cast<size_t>(id)] = kBanned;
  }
  const float top = candidates.top();
  MIAOBI_CHECK(std::isfinite(top),
               "[sampler] expected at least one finite logit, got none: either the rules of this text leave no token "
               "(bad words, no_repeat_ngram_size, constraints), or the model's weights are damaged");
  return top;
}

int32_t Sampler::sample_with(std::span<const float> logits, std::span<const int32_t> banned, float* scratch) {
  Candidates candidates(logits, scratch);
  const float top = adjust(candidates, banned);
  const int32_t token = options_.do_sample ? candidates.draw(options_, top, rng_, draws_++) : candidates.first(top);
  accept({&token, 1}, true);
  return token;
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> banned) {
  return sample_with(logits, banned, thread_scratch(Scratch::kSampling, Candidates::scratch_floats(logits.size())));
}

void Sampler::log_probabilities(std::span<const float> logits, std::span<const int32_t> banned, float* out) {
  Candidates candidates(logits, thread_scratch(Scratch::kSampling, Candidates::scratch_floats(logits.size())));
  adjust(candidates, banned);
  const std::span<const float> adjusted = candidates.logits();
  const float lse = kernels_in_use().logsumexp_row(adjusted.data(), static_cast<int64_t>(adjusted.size()));
  for (size_t i = 0; i < adjusted.size(); ++i) out[i] = std::isnan(adjusted[i]) ? kBanned : adjusted[i] - lse;
}

void sample_rows(std::span<SampleRow> rows) {
  size_t vocab = 0;
  for (const SampleRow& row : rows) vocab = std::max(vocab, row.logits.size());
  const LoopScratch scratch(Scratch::kSampling, Sampler::Candidates::scratch_floats(vocab));
  parallel_for_slots(static_cast<int64_t>(rows.size()), scratch.slots, [&](int64_t i, int slot) {
    SampleRow& row = rows[static_cast<size_t>(i)];
    row.token = row.sampler->sample_with(row.logits, row.banned, scratch[slot]);
  });
}

}  // namespace miaobi

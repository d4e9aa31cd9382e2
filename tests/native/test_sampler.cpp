// SPDX-License-Identifier: MIT
// The sampler: its passes against plain loops, and the same tokens on every instruction set and at every width.
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "miaobi/sampler.h"
#include "support.h"

namespace miaobi::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Logits of a vocabulary; every third row has few different ones, so that many are equal.
std::vector<float> logits_of(uint64_t seed, int64_t vocab, float spread) {
  std::vector<float> logits = Random(seed).vector(vocab, -spread, spread);
  if (seed % 3 == 0) {
    for (float& x : logits) x = std::round(2 * x / spread) * spread / 2;
  }
  if (seed % 5 == 1) logits[static_cast<size_t>(vocab / 2)] = std::numeric_limits<float>::quiet_NaN();
  return logits;
}

std::vector<SamplingOptions> ways() {
  std::vector<SamplingOptions> all(8);
  all[0].do_sample = false;
  all[1].temperature = 0.8f;
  all[2].top_k = 7;
  all[3].top_p = 0.9f;
  all[4].typical_p = 0.5f;
  all[5].min_p = 0.1f;
  all[6].top_p = 0.01f;
  all[7] = {.temperature = 1.3f,
            .top_k = 40,
            .top_p = 0.8f,
            .min_p = 0.01f,
            .typical_p = 0.7f,
            .repetition_penalty = 1.2f,
            .frequency_penalty = 0.3f,
            .penalty_window = 5,
            .no_repeat_ngram_size = 2};
  return all;
}

std::vector<int32_t> tokens_of(const SamplingOptions& options, int64_t vocab) {
  std::vector<int32_t> tokens;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    Sampler sampler(options, seed);
    for (uint64_t i = 0; i < 12; ++i) {
      const std::vector<int32_t> banned = {static_cast<int32_t>(vocab), -1, static_cast<int32_t>(i) + 1};
      tokens.push_back(sampler.sample(logits_of(i, vocab, i % 2 == 0 ? 3.0f : 0.01f), banned));
    }
  }
  return tokens;
}

// The sums of strata as documented: down the rows of a block, each rounded.
std::vector<float> strata_of(const std::vector<float>& values) {
  const auto n = static_cast<int64_t>(values.size());
  std::vector<float> sums(static_cast<size_t>((n + kSampleBlock - 1) / kSampleBlock * kSampleLanes));
  for (int64_t i = 0; i < n; ++i) {
    sums[static_cast<size_t>(i / kSampleBlock * kSampleLanes + i % kSampleLanes)] += values[static_cast<size_t>(i)];
  }
  return sums;
}

TEST_CASE("all instruction sets choose the same tokens") {
  const KernelsInForce restore;
  for (const int64_t vocab : around({kSampleLanes, kSampleBlock})) {
    if (vocab < 20) continue;  // some are banned
    for (const SamplingOptions& options : ways()) {
      use_kernels("generic");
      const std::vector<int32_t> want = tokens_of(options, vocab);
      for (const KernelTable* table : supported_kernels()) {
        CAPTURE(table->name);
        use_kernels(table->name);
        CHECK(tokens_of(options, vocab) == want);
      }
    }
  }
}

TEST_CASE("the same tokens on every machine") {
  // Found with this code: what is checked is that other compilers and processors find them, too.
  std::vector<int32_t> found;
  for (const SamplingOptions& options : ways()) found.push_back(tokens_of(options, 1500).back());
  CHECK(found == std::vector<int32_t>{38, 171, 551, 171, 935, 171, 38, 74});
}

TEST_CASE("sums over what comes before a rank are those of plain loops") {
  const KernelTable& table = kernels_in_use();
  for (const int64_t rows : {1, 2, 31, 32, 33, 65}) {
    const int64_t n = rows * kSampleLanes;
    Random random(static_cast<uint64_t>(rows));
    std::vector<float> keys = random.vector(n, 0, 1), weights = random.vector(n, 0, 1);
    for (int64_t i = 0; i < n; i += 3) keys[static_cast<size_t>(i)] = 0.5f;  // ties
    for (const SampleRank rank : {SampleRank{0, 0}, SampleRank{0.5f, 0}, SampleRank{0.5f, 1}, SampleRank{0.5f, n - 1},
                                  SampleRank{0.5f, n / 2}, SampleRank{0.5f, n}, SampleRank{keys[5], 5}}) {
      std::vector<float> kept(weights), ones(weights.size());
      for (int64_t i = 0; i < n; ++i) {
        const auto k = static_cast<size_t>(i);
        const bool before = keys[k] > rank.key || (keys[k] == rank.key && i < rank.id);
        kept[k] = before ? weights[k] : 0.0f;
        ones[k] = before ? 1.0f : 0.0f;
      }
      std::vector<float> sums(strata_of(weights).size());
      table.sample_above(keys.data(), weights.data(), n, rank, sums.data());
      CHECK(sums == strata_of(kept));
      table.sample_above(keys.data(), nullptr, n, rank, sums.data());
      CHECK(sums == strata_of(ones));
    }
  }
}

TEST_CASE("weights are exponentials of the distance to the top, and of nothing else") {
  const KernelTable& table = kernels_in_use();
  std::vector<float> logits = Random(1).vector(1056, -50, 2);
  logits[3] = std::numeric_limits<float>::quiet_NaN();
  logits[4] = -kInf;
  logits[700] = 2.0f;
  const auto n = static_cast<int64_t>(logits.size());
  CHECK(table.sample_max(logits.data(), n) == 2.0f);
  std::vector<float> weights(logits.size()), sums(strata_of(logits).size());
  const float floor = 1e-9f;
  table.sample_weights(logits.data(), n, 2.0f, 1.25f, floor, weights.data(), sums.data());
  CHECK(sums == strata_of(weights));
  CHECK(weights[700] == 1.0f);
  for (size_t i = 0; i < logits.size(); ++i) {
    const double want = std::exp2((double{logits[i]} - 2.0) * 1.25);
    // The argument is rounded twice, at up to 65 in magnitude; then come 3 ulp.
    const double bound = want * (65 * 0x1p-23 + 3 * 0x1p-23);
    const bool is_kept = weights[i] > 0;
    CHECK(is_kept == (want > double{floor}));
    if (is_kept) CHECK(std::fabs(double{weights[i]} - want) <= bound);
  }
}

TEST_CASE("extreme options leave the most probable token") {
  std::vector<float> logits = Random(2).vector(100, -1, 1);
  logits[42] = 1.5f;
  SamplingOptions cold, minimal;
  cold.temperature = std::numeric_limits<float>::denorm_min();
  minimal.min_p = 1.0f;
  minimal.top_p = std::numeric_limits<float>::min();
  for (const SamplingOptions& options : {cold, minimal}) {
    Sampler sampler(options, 1);
    for (int i = 0; i < 20; ++i) CHECK(sampler.sample(logits, {}) == 42);
  }
  std::vector<float> huge = {std::numeric_limits<float>::max(), -std::numeric_limits<float>::max()};
  CHECK(Sampler({}, 1).sample(huge, {}) == 0);
}

}  // namespace
}  // namespace miaobi::test

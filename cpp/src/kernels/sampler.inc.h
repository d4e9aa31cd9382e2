// SPDX-License-Identifier: MIT
// The sampler's passes over a vocabulary. Products and sums are rounded one by one and added in an order that is the
// same for every width of vector, so that the same logits give the same token on every instruction set.
#pragma once

#include "kernels/math.inc.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

// strata[...] = sums of value(i), which is of the elements i .. i + kW; row by row in each block.
template <class Value>
MIAOBI_INLINE void sum_strata(int64_t n, float* strata, Value&& value) {
  constexpr int kVecs = kSampleLanes / kW;
  for (int64_t begin = 0; begin < n; begin += kSampleBlock, strata += kSampleLanes) {
    const int64_t end = begin + kSampleBlock < n ? begin + kSampleBlock : n;
    Vec sums[kVecs];
    MIAOBI_UNROLL
    for (int j = 0; j < kVecs; ++j) sums[j] = Vec::zero();
    for (int64_t row = begin; row < end; row += kSampleLanes) {
      MIAOBI_UNROLL
      for (int j = 0; j < kVecs; ++j) sums[j] = sums[j] + value(row, j * kW);
    }
    MIAOBI_UNROLL
    for (int j = 0; j < kVecs; ++j) sums[j].store(strata + j * kW);
  }
}

inline float sample_max(const float* x, int64_t n) {
  constexpr int kVecs = kSampleLanes / kW;
  Vec best[kVecs];
  for (int j = 0; j < kVecs; ++j) best[j] = Vec::set1(-__builtin_inff());
  for (int64_t i = 0; i < n; i += kSampleLanes) {
    MIAOBI_UNROLL
    for (int j = 0; j < kVecs; ++j) best[j] = max(Vec::load(x + i + j * kW), best[j]);  // NaN never wins
  }
  for (int j = 1; j < kVecs; ++j) best[0] = max(best[j], best[0]);
  return reduce_max(best[0]);
}

inline void sample_weights(const float* x, int64_t n, float top, float scale, float floor, float* w, float* strata) {
  const Vec shift = Vec::set1(top), factor = Vec::set1(scale), least = Vec::set1(floor);
  sum_strata(n, strata, [&](int64_t row, int64_t lane) {
    const Vec all = exp2<false>((Vec::load(x + row + lane) - shift) * factor);
    const Vec kept = select_lt(least, all, all, Vec::zero());  // NaN is not kept
    kept.store(w + row + lane);
    return kept;
  });
}

inline void sample_above(const float* keys, const float* w, int64_t n, SampleRank rank, float* strata) {
  // Keys equal to the rank's count where the id is smaller: there the limit is the float before.
  float before = rank.key, limits[3][kSampleLanes];
  if (before > 0) {
    uint32_t bits;
    __builtin_memcpy(&bits, &before, 4);
    --bits;
    __builtin_memcpy(&before, &bits, 4);
  }
  const int64_t mixed = rank.id / kSampleLanes * kSampleLanes;  // the row in which both limits are
  for (int64_t j = 0; j < kSampleLanes; ++j) {
    limits[0][j] = before;
    limits[1][j] = mixed + j < rank.id ? before : rank.key;
    limits[2][j] = rank.key;
  }
  const auto sum = [&](auto&& weight) {
    sum_strata(n, strata, [&](int64_t row, int64_t lane) {
      const float* limit = limits[row < mixed ? 0 : row == mixed ? 1 : 2];
      return select_lt(Vec::load(limit + lane), Vec::load(keys + row + lane), weight(row + lane), Vec::zero());
    });
  };
  if (w == nullptr) {
    sum([](int64_t) { return Vec::set1(1.0f); });
  } else {
    sum([&](int64_t i) { return Vec::load(w + i); });
  }
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

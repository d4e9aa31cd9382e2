// SPDX-License-Identifier: MIT
// The peak kernels on the engine's vector type; included by peak_<isa>.cpp after MIAOBI_ISA_NAMESPACE is defined and
// the vector header included. Includes nothing of the C++ library, see cpp/src/kernels/table.inc.h.
#pragma once

#include "peak.h"

namespace miaobi::bench::MIAOBI_ISA_NAMESPACE {
namespace {

using kernels::MIAOBI_ISA_NAMESPACE::Vec;

// Enough to cover a latency of 4 or 5 cycles on two units, few enough for 16 registers with both operands.
constexpr int kChains = 12;

float multiply_add(int64_t rounds, float a, float b) {
  const Vec x = Vec::set1(a), y = Vec::set1(b);
  Vec sum[kChains];
  MIAOBI_UNROLL
  for (int i = 0; i < kChains; ++i) sum[i] = Vec::set1(static_cast<float>(i));
  for (int64_t r = 0; r < rounds; ++r) {
    MIAOBI_UNROLL
    for (int i = 0; i < kChains; ++i) sum[i] = fma(sum[i], x, y);
  }
  Vec total = Vec::zero();
  MIAOBI_UNROLL
  for (int i = 0; i < kChains; ++i) total = total + sum[i];
  return reduce_add(total);
}

float read(const float* x, int64_t n) {
  // Four streams, because the prefetchers of many machines follow one stream more slowly than memory could give it.
  constexpr int kStreams = 4, kVectors = 2;
  Vec sum[kStreams * kVectors];
  MIAOBI_UNROLL
  for (int i = 0; i < kStreams * kVectors; ++i) sum[i] = Vec::zero();
  const int64_t quarter = n / kStreams;
  for (int64_t at = 0; at < quarter; at += kVectors * Vec::kWidth) {
    MIAOBI_UNROLL
    for (int i = 0; i < kStreams * kVectors; ++i) {
      sum[i] = sum[i] + Vec::load(x + i / kVectors * quarter + at + i % kVectors * Vec::kWidth);
    }
  }
  Vec total = Vec::zero();
  MIAOBI_UNROLL
  for (int i = 0; i < kStreams * kVectors; ++i) total = total + sum[i];
  return reduce_add(total);
}

}  // namespace

const PeakKernels kPeak = {multiply_add, 2.0 * kChains * Vec::kWidth, read};

}  // namespace miaobi::bench::MIAOBI_ISA_NAMESPACE

// SPDX-License-Identifier: MIT
// The peak of AVX-512-BF16: dot products of pairs of bfloat16, added in float32.
#include <immintrin.h>

#include "peak.h"

namespace miaobi::bench::avx512_bf16 {
namespace {

constexpr int kChains = 12;

float multiply_add(int64_t rounds, float a, float b) {
  const __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(a), _mm512_set1_ps(a));
  const __m512bh y = _mm512_cvtne2ps_pbh(_mm512_set1_ps(b), _mm512_set1_ps(b));
  __m512 sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], x, y);
  }
  __m512 total = _mm512_setzero_ps();
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) total = _mm512_add_ps(total, sum[i]);
  return _mm512_reduce_add_ps(total);
}

}  // namespace

const PeakKernels kPeak = {multiply_add, 4.0 * kChains * 16, nullptr};

}  // namespace miaobi::bench::avx512_bf16

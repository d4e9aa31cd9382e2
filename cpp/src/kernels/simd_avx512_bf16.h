// SPDX-License-Identifier: MIT
// Sixteen pairs of bfloat16 in an AVX-512 register, and their dot products (BF16).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/inline.h"
#include "kernels/simd_avx512.h"

#define MIAOBI_HAS_PAIRS

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

// The first of a pair is in the low half of its 32 bits.
struct Pairs {
  __m512i v;

  static MIAOBI_INLINE Pairs set1(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
  static MIAOBI_INLINE Pairs load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
};

// c + a0 b0 + a1 b1 in each lane: float32 sums, the odd element first, denormals as zero.
MIAOBI_INLINE Vec dot(Pairs a, Pairs b, Vec c) {
  return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}

// One pair of each lane: `even` and `odd` rounded to bfloat16, ties to even.
MIAOBI_INLINE void store_pairs(Vec even, Vec odd, uint32_t* p) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(round_to_bf16(even).v), 16);
  _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_castps_si512(round_to_bf16(odd).v)));
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

// SPDX-License-Identifier: MIT
// Eight floats in an AVX2 register, with FMA.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/inline.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

struct Vec {
  static constexpr int kWidth = 8;
  __m256 v;

  static MIAOBI_INLINE __m256i mask(int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
  }
  static MIAOBI_INLINE Vec zero() { return {_mm256_setzero_ps()}; }
  static MIAOBI_INLINE Vec set1(float x) { return {_mm256_set1_ps(x)}; }
  static MIAOBI_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static MIAOBI_INLINE Vec load_n(const float* p, int64_t n) { return {_mm256_maskload_ps(p, mask(n))}; }
  static MIAOBI_INLINE Vec load_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  // The lower and the upper halves of the kW words at p, as bfloat16.
  static MIAOBI_INLINE Vec load_lower(const uint16_t* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), 16))};
  }
  static MIAOBI_INLINE Vec load_upper(const uint16_t* p) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))))};
  }
  MIAOBI_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  // Not vmaskmovps: its store form is microcoded on AMD before Zen 4.
  MIAOBI_INLINE void store_n(float* p, int64_t n) const {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, v);
    for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
  }
};

MIAOBI_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
MIAOBI_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
MIAOBI_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
MIAOBI_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
MIAOBI_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// The second operand where either is NaN.
MIAOBI_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
MIAOBI_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
MIAOBI_INLINE Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
// yes where a < b (ordered: NaN chooses no), else no.
MIAOBI_INLINE Vec select_lt(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
MIAOBI_INLINE Vec round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// 2^n for integral n in [-126, 127].
MIAOBI_INLINE Vec pow2(Vec n) {
  const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(e, 23))};
}
// The float whose exponent is the low eight bits of a: 2^(b - 127) where they are b, 0 where they are 0.
MIAOBI_INLINE Vec low_bits_to_exponent(Vec a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.v), 23))};
}
MIAOBI_INLINE Vec round_to_bf16(Vec a) {
  const __m256i u = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x00400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i r = _mm256_blendv_epi8(up, quiet, nan);
  return {_mm256_castsi256_ps(_mm256_and_si256(r, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
MIAOBI_INLINE void store_bf16(Vec a, uint16_t* p) {
  const __m256i u = _mm256_srli_epi32(_mm256_castps_si256(round_to_bf16(a).v), 16);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1)));
}
MIAOBI_INLINE float reduce_add(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  x = _mm_add_ss(x, _mm_movehdup_ps(x));
  return _mm_cvtss_f32(x);
}
MIAOBI_INLINE float reduce_max(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  x = _mm_max_ss(x, _mm_movehdup_ps(x));
  return _mm_cvtss_f32(x);
}
MIAOBI_INLINE void transpose(Vec (&r)[8]) {
  __m256 t[8], s[8];
  MIAOBI_UNROLL
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
  MIAOBI_UNROLL
  for (int i = 0; i < 2; ++i) {
    s[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    s[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    s[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    s[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  MIAOBI_UNROLL
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm256_permute2f128_ps(s[i], s[i + 4], 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(s[i], s[i + 4], 0x31);
  }
}
// r[c] = column c of the 8 x 4 block at p: upper halves come in through the load ports, the rest is shuffles within
// 128 bits.
MIAOBI_INLINE void load_columns(const float* p, int64_t stride, Vec (&r)[4]) {
  __m256 a[4], t[4];
  MIAOBI_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float* q = p + i * stride;
    a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(q)), _mm_loadu_ps(q + 4 * stride), 1);
  }
  t[0] = _mm256_unpacklo_ps(a[0], a[1]);
  t[1] = _mm256_unpackhi_ps(a[0], a[1]);
  t[2] = _mm256_unpacklo_ps(a[2], a[3]);
  t[3] = _mm256_unpackhi_ps(a[2], a[3]);
  r[0].v = _mm256_shuffle_ps(t[0], t[2], 0x44);
  r[1].v = _mm256_shuffle_ps(t[0], t[2], 0xee);
  r[2].v = _mm256_shuffle_ps(t[1], t[3], 0x44);
  r[3].v = _mm256_shuffle_ps(t[1], t[3], 0xee);
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

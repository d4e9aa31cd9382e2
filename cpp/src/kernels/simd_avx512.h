// SPDX-License-Identifier: MIT
// Sixteen floats in an AVX-512 register (F, BW, DQ, VL).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/inline.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

struct Vec {
  static constexpr int kWidth = 16;
  __m512 v;

  static MIAOBI_INLINE __mmask16 mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static MIAOBI_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
  static MIAOBI_INLINE Vec set1(float x) { return {_mm512_set1_ps(x)}; }
  static MIAOBI_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static MIAOBI_INLINE Vec load_n(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  static MIAOBI_INLINE Vec load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  // The lower and the upper halves of the kW words at p, as bfloat16.
  static MIAOBI_INLINE Vec load_lower(const uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
  }
  static MIAOBI_INLINE Vec load_upper(const uint16_t* p) {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), mask))};
  }
  MIAOBI_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  MIAOBI_INLINE void store_n(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
};

MIAOBI_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
MIAOBI_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
MIAOBI_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
MIAOBI_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
MIAOBI_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// The second operand where either is NaN.
MIAOBI_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
MIAOBI_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
MIAOBI_INLINE Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
// yes where a < b (ordered: NaN chooses no), else no.
MIAOBI_INLINE Vec select_lt(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
MIAOBI_INLINE Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// 2^n for integral n in [-126, 127].
MIAOBI_INLINE Vec pow2(Vec n) {
  const __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(e, 23))};
}
// The float whose exponent is the low eight bits of a: 2^(b - 127) where they are b, 0 where they are 0.
MIAOBI_INLINE Vec low_bits_to_exponent(Vec a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23))};
}
MIAOBI_INLINE Vec round_to_bf16(Vec a) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x00400000));
  const __m512i r = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), up, quiet);
  return {_mm512_castsi512_ps(_mm512_and_si512(r, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
MIAOBI_INLINE void store_bf16(Vec a, uint16_t* p) {
  const __m512i u = _mm512_srli_epi32(_mm512_castps_si512(round_to_bf16(a).v), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(u));
}
// Halves are added first, so that a sum over eight lanes has AVX2's order below that.
MIAOBI_INLINE float reduce_add(Vec a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  x = _mm_add_ss(x, _mm_movehdup_ps(x));
  return _mm_cvtss_f32(x);
}
MIAOBI_INLINE float reduce_max(Vec a) {
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  x = _mm_max_ss(x, _mm_movehdup_ps(x));
  return _mm_cvtss_f32(x);
}
MIAOBI_INLINE void transpose(Vec (&r)[16]) {
  __m512 t[16], s[16];
  MIAOBI_UNROLL
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
  // s[4g + c]: column c of each 128-bit lane over rows 4g..4g+3.
  MIAOBI_UNROLL
  for (int g = 0; g < 4; ++g) {
    s[4 * g] = _mm512_shuffle_ps(t[4 * g], t[4 * g + 2], 0x44);
    s[4 * g + 1] = _mm512_shuffle_ps(t[4 * g], t[4 * g + 2], 0xee);
    s[4 * g + 2] = _mm512_shuffle_ps(t[4 * g + 1], t[4 * g + 3], 0x44);
    s[4 * g + 3] = _mm512_shuffle_ps(t[4 * g + 1], t[4 * g + 3], 0xee);
  }
  // Lane l of s[4g + c] holds column 4l + c: gather lane l of the four groups g.
  MIAOBI_UNROLL
  for (int c = 0; c < 4; ++c) {
    const __m512 lo01 = _mm512_shuffle_f32x4(s[c], s[4 + c], 0x44);  // g0 l0, g0 l1, g1 l0, g1 l1
    const __m512 hi01 = _mm512_shuffle_f32x4(s[c], s[4 + c], 0xee);  // g0 l2, g0 l3, g1 l2, g1 l3
    const __m512 lo23 = _mm512_shuffle_f32x4(s[8 + c], s[12 + c], 0x44);
    const __m512 hi23 = _mm512_shuffle_f32x4(s[8 + c], s[12 + c], 0xee);
    r[c].v = _mm512_shuffle_f32x4(lo01, lo23, 0x88);
    r[4 + c].v = _mm512_shuffle_f32x4(lo01, lo23, 0xdd);
    r[8 + c].v = _mm512_shuffle_f32x4(hi01, hi23, 0x88);
    r[12 + c].v = _mm512_shuffle_f32x4(hi01, hi23, 0xdd);
  }
}
// r[c] = column c of the 16 x 4 block at p: quarters come in through the load ports, the rest is shuffles within
// 128 bits.
MIAOBI_INLINE void load_columns(const float* p, int64_t stride, Vec (&r)[4]) {
  __m512 a[4], t[4];
  MIAOBI_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float* q = p + i * stride;
    a[i] = _mm512_castps128_ps512(_mm_loadu_ps(q));
    a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(q + 4 * stride), 1);
    a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(q + 8 * stride), 2);
    a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(q + 12 * stride), 3);
  }
  t[0] = _mm512_unpacklo_ps(a[0], a[1]);
  t[1] = _mm512_unpackhi_ps(a[0], a[1]);
  t[2] = _mm512_unpacklo_ps(a[2], a[3]);
  t[3] = _mm512_unpackhi_ps(a[2], a[3]);
  r[0].v = _mm512_shuffle_ps(t[0], t[2], 0x44);
  r[1].v = _mm512_shuffle_ps(t[0], t[2], 0xee);
  r[2].v = _mm512_shuffle_ps(t[1], t[3], 0x44);
  r[3].v = _mm512_shuffle_ps(t[1], t[3], 0xee);
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

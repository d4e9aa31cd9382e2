// SPDX-License-Identifier: MIT
// Four floats in an Advanced SIMD register of arm64, with FMA.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/inline.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

struct Vec {
  static constexpr int kWidth = 4;
  float32x4_t v;

  static MIAOBI_INLINE Vec zero() { return {vdupq_n_f32(0.0f)}; }
  static MIAOBI_INLINE Vec set1(float x) { return {vdupq_n_f32(x)}; }
  static MIAOBI_INLINE Vec load(const float* p) { return {vld1q_f32(p)}; }
  static MIAOBI_INLINE Vec load_n(const float* p, int64_t n) {
    float lanes[4] = {0, 0, 0, 0};
    for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
    return {vld1q_f32(lanes)};
  }
  static MIAOBI_INLINE Vec load_bf16(const uint16_t* p) {
    return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))};
  }
  // The lower and the upper halves of the kW words at p, as bfloat16.
  static MIAOBI_INLINE Vec load_lower(const uint16_t* p) {
    return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u16(vld1q_u16(p)), 16))};
  }
  static MIAOBI_INLINE Vec load_upper(const uint16_t* p) {
    return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(vld1q_u16(p)), vdupq_n_u32(0xFFFF0000u)))};
  }
  MIAOBI_INLINE void store(float* p) const { vst1q_f32(p, v); }
  MIAOBI_INLINE void store_n(float* p, int64_t n) const {
    float lanes[4];
    vst1q_f32(lanes, v);
    for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
  }
};

MIAOBI_INLINE Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
MIAOBI_INLINE Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
MIAOBI_INLINE Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
MIAOBI_INLINE Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
MIAOBI_INLINE Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
// The second operand where either is NaN: a comparison, since vmaxq_f32 would return the NaN.
MIAOBI_INLINE Vec max(Vec a, Vec b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
MIAOBI_INLINE Vec min(Vec a, Vec b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
MIAOBI_INLINE Vec sqrt(Vec a) { return {vsqrtq_f32(a.v)}; }
// yes where a < b (ordered: NaN chooses no), else no.
MIAOBI_INLINE Vec select_lt(Vec a, Vec b, Vec yes, Vec no) { return {vbslq_f32(vcltq_f32(a.v, b.v), yes.v, no.v)}; }
MIAOBI_INLINE Vec round(Vec a) { return {vrndnq_f32(a.v)}; }
// 2^n for integral n in [-126, 127].
MIAOBI_INLINE Vec pow2(Vec n) {
  const int32x4_t e = vaddq_s32(vcvtnq_s32_f32(n.v), vdupq_n_s32(127));
  return {vreinterpretq_f32_s32(vshlq_n_s32(e, 23))};
}
// The float whose exponent is the low eight bits of a: 2^(b - 127) where they are b, 0 where they are 0.
MIAOBI_INLINE Vec low_bits_to_exponent(Vec a) {
  return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a.v), 23))};
}
MIAOBI_INLINE Vec round_to_bf16(Vec a) {
  const uint32x4_t u = vreinterpretq_u32_f32(a.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  const uint32x4_t up = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x00400000));
  const uint32x4_t r = vbslq_u32(vceqq_f32(a.v, a.v), up, quiet);
  return {vreinterpretq_f32_u32(vandq_u32(r, vdupq_n_u32(0xffff0000u)))};
}
MIAOBI_INLINE void store_bf16(Vec a, uint16_t* p) {
  vst1_u16(p, vshrn_n_u32(vreinterpretq_u32_f32(round_to_bf16(a).v), 16));
}
MIAOBI_INLINE float reduce_add(Vec a) { return vaddvq_f32(a.v); }
MIAOBI_INLINE float reduce_max(Vec a) { return vmaxvq_f32(a.v); }
MIAOBI_INLINE void transpose(Vec (&r)[4]) {
  const float32x4x2_t p = vtrnq_f32(r[0].v, r[1].v);
  const float32x4x2_t q = vtrnq_f32(r[2].v, r[3].v);
  r[0].v = vcombine_f32(vget_low_f32(p.val[0]), vget_low_f32(q.val[0]));
  r[1].v = vcombine_f32(vget_low_f32(p.val[1]), vget_low_f32(q.val[1]));
  r[2].v = vcombine_f32(vget_high_f32(p.val[0]), vget_high_f32(q.val[0]));
  r[3].v = vcombine_f32(vget_high_f32(p.val[1]), vget_high_f32(q.val[1]));
}
// r[c] = column c of the 4 x 4 block at p.
MIAOBI_INLINE void load_columns(const float* p, int64_t stride, Vec (&r)[4]) {
  MIAOBI_UNROLL
  for (int i = 0; i < 4; ++i) r[i] = Vec::load(p + i * stride);
  transpose(r);
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

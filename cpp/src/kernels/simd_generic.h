// SPDX-License-Identifier: MIT
// Four floats in plain C++: the vector of machines without a table of their own. No fused multiply-add, so
// its results may differ from the other instruction sets in the last bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/inline.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

struct Vec {
  static constexpr int kWidth = 4;
  float v[4];

  static MIAOBI_INLINE Vec zero() { return {{0, 0, 0, 0}}; }
  static MIAOBI_INLINE Vec set1(float x) { return {{x, x, x, x}}; }
  static MIAOBI_INLINE Vec load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static MIAOBI_INLINE Vec load_n(const float* p, int64_t n) {
    Vec r = zero();
    for (int64_t i = 0; i < n; ++i) r.v[i] = p[i];
    return r;
  }
  static MIAOBI_INLINE Vec load_bf16(const uint16_t* p) { return widen(p, 1); }
  // The lower and the upper halves of the kW words at p, as bfloat16.
  static MIAOBI_INLINE Vec load_lower(const uint16_t* p) { return widen(p, 2); }
  static MIAOBI_INLINE Vec load_upper(const uint16_t* p) { return widen(p + 1, 2); }
  static MIAOBI_INLINE Vec widen(const uint16_t* p, int step) {
    Vec r;
    for (int i = 0; i < 4; ++i) {
      const uint32_t u = static_cast<uint32_t>(p[i * step]) << 16;
      std::memcpy(&r.v[i], &u, 4);
    }
    return r;
  }
  MIAOBI_INLINE void store(float* p) const {
    for (int i = 0; i < 4; ++i) p[i] = v[i];
  }
  MIAOBI_INLINE void store_n(float* p, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
  }
};

#define MIAOBI_LANES(expression)                               \
  Vec r;                                                       \
  for (int i = 0; i < Vec::kWidth; ++i) r.v[i] = (expression); \
  return r

MIAOBI_INLINE Vec operator+(Vec a, Vec b) { MIAOBI_LANES(a.v[i] + b.v[i]); }
MIAOBI_INLINE Vec operator-(Vec a, Vec b) { MIAOBI_LANES(a.v[i] - b.v[i]); }
MIAOBI_INLINE Vec operator*(Vec a, Vec b) { MIAOBI_LANES(a.v[i] * b.v[i]); }
MIAOBI_INLINE Vec operator/(Vec a, Vec b) { MIAOBI_LANES(a.v[i] / b.v[i]); }
MIAOBI_INLINE Vec fma(Vec a, Vec b, Vec c) { MIAOBI_LANES(a.v[i] * b.v[i] + c.v[i]); }
// The second operand where either is NaN, as the x86 instructions do.
MIAOBI_INLINE Vec max(Vec a, Vec b) { MIAOBI_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
MIAOBI_INLINE Vec min(Vec a, Vec b) { MIAOBI_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
MIAOBI_INLINE Vec sqrt(Vec a) { MIAOBI_LANES(__builtin_sqrtf(a.v[i])); }
// yes where a < b (ordered: NaN chooses no), else no.
MIAOBI_INLINE Vec select_lt(Vec a, Vec b, Vec yes, Vec no) { MIAOBI_LANES(a.v[i] < b.v[i] ? yes.v[i] : no.v[i]); }
// Nearest integer, ties to even; |a| < 2^22, where adding and taking away 1.5 * 2^23 rounds exactly.
MIAOBI_INLINE Vec round(Vec a) {
  const float magic = 12582912.0f;
  MIAOBI_LANES((a.v[i] + magic) - magic);
}
// 2^n for integral n in [-126, 127].
MIAOBI_INLINE Vec pow2(Vec n) {
  Vec r;
  for (int i = 0; i < Vec::kWidth; ++i) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23;
    std::memcpy(&r.v[i], &bits, 4);
  }
  return r;
}
// The float whose exponent is the low eight bits of a: 2^(b - 127) where they are b, 0 where they are 0.
MIAOBI_INLINE Vec low_bits_to_exponent(Vec a) {
  Vec r;
  for (int i = 0; i < Vec::kWidth; ++i) {
    uint32_t u;
    std::memcpy(&u, &a.v[i], 4);
    u <<= 23;
    std::memcpy(&r.v[i], &u, 4);
  }
  return r;
}
MIAOBI_INLINE Vec round_to_bf16(Vec a) {
  Vec r;
  for (int i = 0; i < Vec::kWidth; ++i) {
    uint32_t u;
    std::memcpy(&u, &a.v[i], 4);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    u = nan ? (u | 0x00400000u) & 0xffff0000u : (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
    std::memcpy(&r.v[i], &u, 4);
  }
  return r;
}
MIAOBI_INLINE void store_bf16(Vec a, uint16_t* p) {
  const Vec r = round_to_bf16(a);
  for (int i = 0; i < Vec::kWidth; ++i) {
    uint32_t u;
    std::memcpy(&u, &r.v[i], 4);
    p[i] = static_cast<uint16_t>(u >> 16);
  }
}
MIAOBI_INLINE float reduce_add(Vec a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }
MIAOBI_INLINE float reduce_max(Vec a) {
  const float x = a.v[0] > a.v[1] ? a.v[0] : a.v[1];
  const float y = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return x > y ? x : y;
}
MIAOBI_INLINE void transpose(Vec (&r)[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < i; ++j) {
      const float t = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = t;
    }
  }
}
#undef MIAOBI_LANES
// r[c] = column c of the 4 x 4 block at p.
MIAOBI_INLINE void load_columns(const float* p, int64_t stride, Vec (&r)[4]) {
  MIAOBI_UNROLL
  for (int i = 0; i < 4; ++i) r[i] = Vec::load(p + i * stride);
  transpose(r);
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

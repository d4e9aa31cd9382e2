// SPDX-License-Identifier: MIT
// Softmax and its parts by rows, and the tiles of attention with online softmax (Milakov and Gimelshein
// 2018; Dao et al. 2022).
#pragma once

#include "kernels/math.inc.h"
#include "kernels/norm.inc.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

constexpr float kMinusInf = -__builtin_inff();

inline float max_over(const float* x, int64_t n) {
  Vec m = Vec::set1(kMinusInf);
  int64_t i = 0;
  for (; i + kW <= n; i += kW) m = max(Vec::load(x + i), m);
  float best = reduce_max(m);
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// sum of exp(x - shift); lanes past n count as 0.
inline float sum_exp(const float* x, int64_t n, float shift) {
  const Vec s = Vec::set1(shift);
  const int64_t whole = n - n % kW;
  float total = sum_over(whole, [&](int64_t i, int64_t) { return exp(Vec::load(x + i) - s); });
  if (whole < n) {
    float lanes[kW];
    exp(Vec::load_n(x + whole, n - whole) - s).store(lanes);
    for (int64_t i = 0; i < n - whole; ++i) total += lanes[i];
  }
  return total;
}

// log1p form of the natural logarithm for s >= 1, which a shifted sum of exponentials always is: s = 2^e m
// with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m - 1) / (m + 1)).
inline float log_of_sum(float s) {
  if (!(s < __builtin_inff())) return s;
  uint32_t bits;
  __builtin_memcpy(&bits, &s, 4);
  int32_t e = static_cast<int32_t>(bits >> 23) - 127;
  bits = (bits & 0x007fffffu) | 0x3f800000u;
  float mf;
  __builtin_memcpy(&mf, &bits, 4);
  double m = mf;
  if (m > 1.4142135623730951) {
    m *= 0.5;
    e += 1;
  }
  const double t = (m - 1.0) / (m + 1.0), t2 = t * t;
  const double series = 1.0 + t2 * (1.0 / 3 + t2 * (1.0 / 5 + t2 * (1.0 / 7 + t2 * (1.0 / 9 + t2 / 11))));
  return static_cast<float>(e * 0.6931471805599453 + 2.0 * t * series);
}

inline float logsumexp_row(const float* x, int64_t n) {
  const float m = max_over(x, n);
  if (m == kMinusInf || m == -kMinusInf) return m;
  return m + log_of_sum(sum_exp(x, n, m));
}

inline void softmax_row(const float* x, int64_t n, float* y) {
  const Vec m = Vec::set1(max_over(x, n));
  const Vec f = Vec::set1(1.0f / sum_exp(x, n, max_over(x, n)));
  map(x, n, y, [&](Vec v) { return exp(v - m) * f; });
}

inline void softmax_scale_row(float* x, int64_t n, float lse, float factor) {
  const Vec l = Vec::set1(lse), f = Vec::set1(factor);
  map(x, n, x, [&](Vec v) { return exp(v - l) * f; });
}

// --- attention tiles -------------------------------------------------------------------------------------

// 0, 1, 2, ... as floats: positions are compared as floats, exact below 2^24.
MIAOBI_INLINE Vec lane_index() {
  float lanes[kW];
  for (int i = 0; i < kW; ++i) lanes[i] = static_cast<float>(i);
  return Vec::load(lanes);
}

inline void attention_softmax_tile(float* st, int64_t ld, int64_t keys, int64_t queries, int64_t key0, int64_t query0,
                                   bool causal, float* row_max, float* row_sum, float* alpha) {
  const Vec minus_inf = Vec::set1(kMinusInf);
  for (int64_t i = 0; i < queries; i += kW) {
    float* column = st + i;
    const Vec position = lane_index() + Vec::set1(static_cast<float>(query0 + i));
    const auto score = [&](int64_t j) {
      const Vec s = Vec::load(column + j * ld);
      if (!causal || key0 + j <= query0 + i) return s;
      return select_lt(position, Vec::set1(static_cast<float>(key0 + j)), minus_inf, s);
    };
    const Vec old_max = Vec::load(row_max + i);
    Vec m = old_max;
    for (int64_t j = 0; j < keys; ++j) m = max(score(j), m);
    // A query that has seen no key yet keeps -inf; exp(-inf - -inf) would be NaN, so it is shifted by 0.
    const Vec shift = select_lt(minus_inf, m, m, Vec::zero());
    const Vec a = exp(old_max - shift);
    Vec sum = Vec::load(row_sum + i) * a;
    for (int64_t j = 0; j < keys; ++j) {
      const Vec p = exp(score(j) - shift);
      p.store(column + j * ld);
      sum = sum + p;
    }
    m.store(row_max + i);
    sum.store(row_sum + i);
    a.store(alpha + i);
  }
}

inline void attention_softmax_row(float* s, int64_t keys, float* row_max, float* row_sum, float* alpha) {
  const float old_max = *row_max;
  const float best = max_over(s, keys);
  const float m = best > old_max ? best : old_max;
  const float shift = m > kMinusInf ? m : 0.0f;
  const Vec shifts = Vec::set1(shift);
  map(s, keys, s, [&](Vec v) { return exp(v - shifts); });
  float a[kW];
  exp(Vec::set1(old_max) - shifts).store(a);
  // Key by key, as down a column of the tile.
  float sum = *row_sum * a[0];
  for (int64_t j = 0; j < keys; ++j) sum += s[j];
  *row_max = m;
  *row_sum = sum;
  *alpha = a[0];
}

inline void scale_rows(float* x, int64_t stride, int64_t rows, int64_t cols, const float* factors) {
  for (int64_t r = 0; r < rows; ++r) scale(factors[r], cols, x + r * stride);
}

inline void row_dots(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t rows, int64_t cols, float* out) {
  for (int64_t r = 0; r < rows; ++r, a += lda, b += ldb) {
    out[r] = sum_over(cols, [&](int64_t i, int64_t n) { return get(a + i, n) * get(b + i, n); });
  }
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

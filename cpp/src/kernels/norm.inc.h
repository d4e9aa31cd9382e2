// SPDX-License-Identifier: MIT
// LayerNorm by rows (Ba, Kiros and Hinton 2016), forward and backward.
#pragma once

#include "kernels/math.inc.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

// sum of f(i, n) over vectors that start at i and hold n elements. Two accumulators hide the latency of
// the additions; their order is fixed by n alone. f gives 0 in lanes past n.
template <class F>
MIAOBI_INLINE float sum_over(int64_t n, F&& f) {
  Vec s0 = Vec::zero(), s1 = Vec::zero();
  int64_t i = 0;
  for (; i + 2 * kW <= n; i += 2 * kW) {
    s0 = s0 + f(i, kW);
    s1 = s1 + f(i + kW, kW);
  }
  for (; i < n; i += kW) s0 = s0 + f(i, n - i < kW ? n - i : kW);
  return reduce_add(s0 + s1);
}

MIAOBI_INLINE Vec get(const float* p, int64_t n) { return n == kW ? Vec::load(p) : Vec::load_n(p, n); }
MIAOBI_INLINE void put(Vec v, float* p, int64_t n) {
  if (n == kW) {
    v.store(p);
  } else {
    v.store_n(p, n);
  }
}

// Two passes over a row that stays in L1: the variance of differences from the mean does not cancel.
inline void layer_norm_stats(const float* x, int64_t stride, int64_t rows, int64_t cols, float eps, float* mean,
                             float* rstd) {
  const float inv = 1.0f / static_cast<float>(cols);
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    const float mu = sum_over(cols, [&](int64_t i, int64_t n) { return get(x + i, n); }) * inv;
    const Vec m = Vec::set1(mu);
    float var = sum_over(cols - cols % kW, [&](int64_t i, int64_t n) {
      const Vec d = get(x + i, n) - m;
      return d * d;
    });
    for (int64_t i = cols - cols % kW; i < cols; ++i) var += (x[i] - mu) * (x[i] - mu);
    mean[r] = mu;
    rstd[r] = 1.0f / __builtin_sqrtf(var * inv + eps);
  }
}

inline void layer_norm_apply(const float* x, int64_t stride, int64_t rows, int64_t cols, const float* mean,
                             const float* rstd, const float* gamma, const float* beta, float* y, int64_t y_stride) {
  for (int64_t r = 0; r < rows; ++r, x += stride, y += y_stride) {
    const Vec m = Vec::set1(mean[r]), s = Vec::set1(rstd[r]);
    const auto step = [&](int64_t i, int64_t n) {
      const Vec xhat = (get(x + i, n) - m) * s;
      put(fma(xhat, get(gamma + i, n), get(beta + i, n)), y + i, n);
    };
    for_each_vec(cols, [&](int64_t i) { step(i, kW); }, step);
  }
}

inline void layer_norm_backward_rows(const float* dy, int64_t dy_stride, const float* x, int64_t x_stride, int64_t rows,
                                     int64_t cols, const float* mean, const float* rstd, const float* gamma, float* dx,
                                     int64_t dx_stride, bool accumulate) {
  const float inv = 1.0f / static_cast<float>(cols);
  for (int64_t r = 0; r < rows; ++r, dy += dy_stride, x += x_stride, dx += dx_stride) {
    const Vec m = Vec::set1(mean[r]), s = Vec::set1(rstd[r]);
    // Lanes past the end have dy = 0, so g and its products are 0 there.
    const Vec mean_g =
        Vec::set1(inv * sum_over(cols, [&](int64_t i, int64_t n) { return get(dy + i, n) * get(gamma + i, n); }));
    const Vec mean_gx = Vec::set1(inv * sum_over(cols, [&](int64_t i, int64_t n) {
                                    return (get(dy + i, n) * get(gamma + i, n)) * ((get(x + i, n) - m) * s);
                                  }));
    const auto step = [&](int64_t i, int64_t n) {
      const Vec g = get(dy + i, n) * get(gamma + i, n);
      const Vec xhat = (get(x + i, n) - m) * s;
      Vec d = s * (g - mean_g - xhat * mean_gx);
      if (accumulate) d = d + get(dx + i, n);
      put(d, dx + i, n);
    };
    for_each_vec(cols, [&](int64_t i) { step(i, kW); }, step);
  }
}

// Column by column in vectors, rows ascending within: the sums of a row range continue those before it.
inline void layer_norm_backward_params(const float* dy, int64_t dy_stride, const float* x, int64_t x_stride,
                                       int64_t rows, int64_t cols, const float* mean, const float* rstd, float* dgamma,
                                       float* dbeta) {
  const auto step = [&](int64_t i, int64_t n) {
    Vec dg = get(dgamma + i, n), db = get(dbeta + i, n);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec g = get(dy + r * dy_stride + i, n);
      const Vec xhat = (get(x + r * x_stride + i, n) - Vec::set1(mean[r])) * Vec::set1(rstd[r]);
      dg = fma(g, xhat, dg);
      db = db + g;
    }
    put(dg, dgamma + i, n);
    put(db, dbeta + i, n);
  };
  for_each_vec(cols, [&](int64_t i) { step(i, kW); }, step);
}

inline void column_sums_add(const float* x, int64_t stride, int64_t rows, int64_t cols, float* sums) {
  const auto step = [&](int64_t i, int64_t n) {
    Vec s = get(sums + i, n);
    for (int64_t r = 0; r < rows; ++r) s = s + get(x + r * stride + i, n);
    put(s, sums + i, n);
  };
  for_each_vec(cols, [&](int64_t i) { step(i, kW); }, step);
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

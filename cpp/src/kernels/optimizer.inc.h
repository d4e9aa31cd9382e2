// SPDX-License-Identifier: MIT
// AdamW (Loshchilov and Hutter 2019) over a stretch of the arena, and the sum of squares for clipping.
#pragma once

#include "kernels/math.inc.h"
#include "kernels/norm.inc.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

inline void adamw(const AdamWParams& p, int64_t n, const float* grad, float* value, float* m, float* v) {
  const Vec scale = Vec::set1(p.grad_scale);
  const Vec b1 = Vec::set1(p.beta1), c1 = Vec::set1(1.0f - p.beta1);
  const Vec b2 = Vec::set1(p.beta2), c2 = Vec::set1(1.0f - p.beta2);
  const Vec step = Vec::set1(p.lr * p.bias1), bias2 = Vec::set1(p.bias2);
  const Vec eps = Vec::set1(p.eps), keep = Vec::set1(1.0f - p.lr * p.weight_decay);
  const auto update = [&](int64_t i, int64_t k) {
    const Vec g = get(grad + i, k) * scale;
    const Vec mi = fma(b1, get(m + i, k), c1 * g);
    const Vec vi = fma(b2, get(v + i, k), c2 * (g * g));
    put(mi, m + i, k);
    put(vi, v + i, k);
    const Vec delta = (step * mi) / (sqrt(vi * bias2) + eps);
    put(fma(get(value + i, k), keep, Vec::zero() - delta), value + i, k);
  };
  for_each_vec(n, [&](int64_t i) { update(i, kW); }, update);
}

// float squares in short runs, double between them: a gradient of 10^8 elements loses no digits.
inline double sum_squares(const float* x, int64_t n) {
  constexpr int64_t kSpan = 1024;
  double total = 0;
  for (int64_t i = 0; i < n; i += kSpan) {
    const float* p = x + i;
    total += sum_over(n - i < kSpan ? n - i : kSpan, [&](int64_t j, int64_t k) {
      const Vec g = get(p + j, k);
      return g * g;
    });
  }
  return total;
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

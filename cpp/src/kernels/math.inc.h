// SPDX-License-Identifier: MIT
// exp, tanh and the activations on a vector; error bounds are tested over the whole range.
#pragma once

#include "kernels/kernel_table.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

constexpr int kW = Vec::kWidth;
constexpr int kLine = 16;  // floats in a cache line

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln2 / 2. The polynomial is the Taylor series with its
// last terms refitted (as in Cephes expf); 2^n is applied in two factors so that results down to the
// denormals and up to the largest float come out. At most 2 ulp; exp(-inf) = 0, exp(inf) = inf, NaN stays.
MIAOBI_INLINE Vec exp(Vec x) {
  const Vec hi = Vec::set1(89.0f), lo = Vec::set1(-104.0f);
  // min and max give their second operand for NaN, so x goes second and NaN goes through.
  const Vec clamped = max(lo, min(hi, x));
  const Vec n = round(clamped * Vec::set1(1.44269504088896341f));
  // ln 2 in two parts: n * 0.693359375 is exact.
  Vec r = fma(n, Vec::set1(-0.693359375f), clamped);
  r = fma(n, Vec::set1(2.12194440e-4f), r);
  Vec p = Vec::set1(1.9875691500e-4f);
  p = fma(p, r, Vec::set1(1.3981999507e-3f));
  p = fma(p, r, Vec::set1(8.3334519073e-3f));
  p = fma(p, r, Vec::set1(4.1665795894e-2f));
  p = fma(p, r, Vec::set1(1.6666665459e-1f));
  p = fma(p, r, Vec::set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + Vec::set1(1.0f);
  const Vec half = round(n * Vec::set1(0.5f));
  return (p * pow2(half)) * pow2(n - half);
}

// 2^x for x <= 128. At most 2 ulp, but 0 below 2^-126.5 and infinity from 2^127.5 on; exp2(0) = 1, NaN stays. 2^r on
// |r| <= 1/2 is a minimax polynomial of relative error 2.6e-9. Half the cost of exp. Without fused multiply-adds, which
// instruction sets round in their own ways, at most 3 ulp.
template <bool kFused = true>
MIAOBI_INLINE Vec exp2(Vec x) {
  x = max(Vec::set1(-127.0f), x);
  // Adding 1.5 * 2^23 + 127 leaves round(x) + 127, the exponent of 2^round(x), in the low bits.
  const Vec magic = Vec::set1(12583039.0f);
  const Vec shifted = x + magic;
  const Vec r = x - (shifted - magic);
  Vec p = Vec::set1(1.5594677540e-4f);
  const auto next = [&](float c) { p = kFused ? fma(p, r, Vec::set1(c)) : p * r + Vec::set1(c); };
  next(1.3406643905e-3f);
  next(9.6176929749e-3f);
  next(5.5503105510e-2f);
  next(2.4022652783e-1f);
  next(6.9314721497e-1f);
  next(1.0f);
  return p * low_bits_to_exponent(shifted);
}

constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

// 1 / (1 + 2^x): the logistic function of -x ln 2. Absolute error below 1e-6; 0 from x = 127.5 on, 1 below -126.5.
MIAOBI_INLINE Vec logistic2(Vec x) {
  const Vec one = Vec::set1(1.0f);
  return one / (one + exp2(min(Vec::set1(128.0f), x)));
}

// tanh(x) = 2 / (1 + exp(-2x)) - 1; absolute error below 1e-6.
MIAOBI_INLINE Vec tanh(Vec x) {
  return fma(Vec::set1(2.0f), logistic2(x * Vec::set1(-2.0f * kLog2E)), Vec::set1(-1.0f));
}

// GELU, tanh form (Hendrycks and Gimpel 2016): x/2 (1 + tanh u) = x / (1 + exp(-2u)),
// u = sqrt(2/pi) (x + 0.044715 x^3).
constexpr float kGeluScale = 1.5957691216057308f;  // 2 sqrt(2/pi)
constexpr float kGeluCubic = 0.044715f;

MIAOBI_INLINE Vec gelu_gate(Vec x) {
  constexpr float kScale = -kLog2E * kGeluScale;
  return logistic2(x * fma(Vec::set1(kScale * kGeluCubic), x * x, Vec::set1(kScale)));
}
MIAOBI_INLINE Vec gelu(Vec x) { return x * gelu_gate(x); }
// gelu' = s + x s (1 - s) (2u)'. Far out s (1 - s) is 0, and x^2 is kept from infinity: 0 * inf would be NaN.
MIAOBI_INLINE Vec gelu_grad(Vec x) {
  const Vec s = gelu_gate(x);
  const Vec x2 = min(x * x, Vec::set1(1e30f));
  const Vec du = fma(Vec::set1(3.0f * kGeluScale * kGeluCubic), x2, Vec::set1(kGeluScale));
  return fma((s * (Vec::set1(1.0f) - s)) * x, du, s);
}
MIAOBI_INLINE Vec relu(Vec x) { return select_lt(x, Vec::zero(), Vec::zero(), x); }
MIAOBI_INLINE Vec relu_grad(Vec x) { return select_lt(Vec::zero(), x, Vec::set1(1.0f), Vec::zero()); }

// Calls body(i) for whole vectors and tail(i, rest) for what is left, if anything.
template <class Body, class Tail>
MIAOBI_INLINE void for_each_vec(int64_t n, Body&& body, Tail&& tail) {
  int64_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) body(i);
  if (i < n) tail(i, n - i);
}

// y[i] = f(x[i]); reads before it writes, so y may be x.
template <class F>
MIAOBI_INLINE void map(const float* x, int64_t n, float* y, F&& f) {
  for_each_vec(
      n, [&](int64_t i) { f(Vec::load(x + i)).store(y + i); },
      [&](int64_t i, int64_t r) { f(Vec::load_n(x + i, r)).store_n(y + i, r); });
}

inline void exp_array(const float* x, int64_t n, float* y) {
  map(x, n, y, [](Vec v) { return exp(v); });
}
inline void exp2_array(const float* x, int64_t n, float* y) {
  map(x, n, y, [](Vec v) { return exp2(v); });
}
inline void tanh_array(const float* x, int64_t n, float* y) {
  map(x, n, y, [](Vec v) { return tanh(v); });
}

inline void activation(Activation kind, const float* x, int64_t n, float* y) {
  switch (kind) {
    case Activation::kGelu: return map(x, n, y, [](Vec v) { return gelu(v); });
    case Activation::kRelu: return map(x, n, y, [](Vec v) { return relu(v); });
    case Activation::kNone: return map(x, n, y, [](Vec v) { return v; });
  }
}

template <class F>
MIAOBI_INLINE void map_backward(const float* x, const float* dy, int64_t n, float* dx, F&& grad) {
  for_each_vec(
      n, [&](int64_t i) { (Vec::load(dy + i) * grad(Vec::load(x + i))).store(dx + i); },
      [&](int64_t i, int64_t r) { (Vec::load_n(dy + i, r) * grad(Vec::load_n(x + i, r))).store_n(dx + i, r); });
}

inline void activation_backward(Activation kind, const float* x, const float* dy, int64_t n, float* dx) {
  switch (kind) {
    case Activation::kGelu: return map_backward(x, dy, n, dx, [](Vec v) { return gelu_grad(v); });
    case Activation::kRelu: return map_backward(x, dy, n, dx, [](Vec v) { return relu_grad(v); });
    case Activation::kNone: return map(dy, n, dx, [](Vec v) { return v; });
  }
}

inline void add(const float* x, int64_t n, float* y) {
  for_each_vec(
      n, [&](int64_t i) { (Vec::load(y + i) + Vec::load(x + i)).store(y + i); },
      [&](int64_t i, int64_t r) { (Vec::load_n(y + i, r) + Vec::load_n(x + i, r)).store_n(y + i, r); });
}

inline void scale(float a, int64_t n, float* y) {
  const Vec f = Vec::set1(a);
  map(y, n, y, [&](Vec v) { return v * f; });
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

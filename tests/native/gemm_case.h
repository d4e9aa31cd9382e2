// SPDX-License-Identifier: MIT
// One matrix product of a test: its operands, what it should give, and how far from that it may be.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "miaobi/gemm.h"
#include "reference/reference.h"
#include "support.h"

namespace miaobi::test {

struct Case {
  int64_t m, n, k;
  bool transpose_a = false, transpose_b = false, accumulate = false;
  Layout layout = kTight;
  bool bias = false, residual = false;
  Activation activation = Activation::kNone;
  bool grad_of = false;

  std::string name() const {
    std::string s = "gemm " + std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k);
    for (const auto& [on, text] :
         {std::pair(transpose_a, " A^T"), std::pair(transpose_b, " B^T"), std::pair(accumulate, " +C"),
          std::pair(layout.pad > 0, " loose"), std::pair(bias, " bias"), std::pair(residual, " residual"),
          std::pair(activation != Activation::kNone, " f"), std::pair(grad_of, "'")}) {
      if (on) s += text;
    }
    return s;
  }
};

// Operands, what C held before, and the engine's C.
struct Run {
  Guarded a, b, before, grad_of, residual, c;
  std::vector<float> bias;

  Run(const Case& t, Random& random, bool integers)
      : a(t.transpose_a ? t.k : t.m, t.transpose_a ? t.m : t.k, t.layout),
        b(t.transpose_b ? t.n : t.k, t.transpose_b ? t.k : t.n, t.layout),
        before(t.m, t.n),
        grad_of(t.m, t.n, t.layout),
        residual(t.m, t.n, t.layout),
        c(output(t.m, t.n, t.layout)),
        bias(random.vector(t.n)) {
    for (Guarded* g : {&a, &b, &before, &residual}) {
      if (integers) {
        g->fill_integers(random, -4, 4);
      } else {
        g->fill(random);
      }
    }
    grad_of.fill(random, -3.0f, 3.0f);
    if (integers) {
      for (float& x : bias) x = static_cast<float>(random.integer(-4, 4));
    }
  }

  Epilogue epilogue(const Case& t) const {
    Epilogue e;
    if (t.bias) e.bias = bias.data();
    if (t.grad_of) e.grad_of = grad_of.mat().data;
    e.grad_of_stride = grad_of.mat().stride;
    if (t.residual) e.residual = residual.mat().data;
    e.residual_stride = residual.mat().stride;
    e.activation = t.activation;
    return e;
  }

  void compute(const Case& t) {
    fill_c(t);
    gemm(t.m, t.n, t.k, left_operand(a.mat(), t.transpose_a), right_operand(b.mat(), t.transpose_b), c.mat().data,
         c.mat().stride, t.accumulate, epilogue(t));
    CHECK_MESSAGE(c.guards_intact(), t.name());
  }
  void fill_c(const Case& t) {
    for (int64_t i = 0; i < t.m; ++i) {
      for (int64_t j = 0; j < t.n; ++j) c(i, j) = t.accumulate ? before(i, j) : NAN;
    }
  }

  float left(const Case& t, int64_t i, int64_t p) const { return t.transpose_a ? a(p, i) : a(i, p); }
  float right(const Case& t, int64_t p, int64_t j) const { return t.transpose_b ? b(j, p) : b(p, j); }

  // The promise of gemm.h, bit for bit: one chain in ascending k, then bias, then residual.
  Guarded chains(const Case& t) const {
    const bool fused = fuses(kernels_in_use());
    Guarded want(t.m, t.n);
    for (int64_t i = 0; i < t.m; ++i) {
      for (int64_t j = 0; j < t.n; ++j) {
        float sum = t.accumulate ? before(i, j) : 0.0f;
        for (int64_t p = 0; p < t.k; ++p) {
          const float x = left(t, i, p), y = right(t, p, j);
          sum = fused ? std::fma(x, y, sum) : sum + x * y;
        }
        if (t.bias) sum += bias[static_cast<size_t>(j)];
        if (t.residual) sum += residual(i, j);
        want(i, j) = sum;
      }
    }
    return want;
  }

  // Exact in double for small integers; in general with the bound (K+2)u/(1-(K+2)u) (|A||B| + |C| + |bias|), one
  // unit of depth more for the residual.
  Matrix<Tracked> bounded(const Case& t) const {
    const double depth = static_cast<double>(t.k + 2 + (t.residual ? 1 : 0)) * kUnit;
    Matrix<Tracked> want(t.m, t.n);
    for (int64_t i = 0; i < t.m; ++i) {
      for (int64_t j = 0; j < t.n; ++j) {
        double sum = 0, absolute = 0;
        const auto add = [&](double x) {
          sum += x;
          absolute += std::fabs(x);
        };
        if (t.accumulate) add(before(i, j));
        for (int64_t p = 0; p < t.k; ++p) {
          add(static_cast<double>(left(t, i, p)) * static_cast<double>(right(t, p, j)));
        }
        if (t.bias) add(bias[static_cast<size_t>(j)]);
        if (t.residual) add(residual(i, j));
        want(i, j) = Tracked(sum, depth / (1 - depth) * absolute);
      }
    }
    return want;
  }
};

template <class Body>
void for_each_mode(Body&& body) {
  for (const bool transpose_a : {false, true}) {
    for (const bool transpose_b : {false, true}) {
      for (const bool accumulate : {false, true}) body(transpose_a, transpose_b, accumulate);
    }
  }
}

// Puts backend and precision back at the end of a test that changes them.
struct Settings {
  ~Settings() {
    set_backend(backend);
    set_matmul_precision(precision);
  }
  std::string backend = get_backend(), precision = get_matmul_precision();
};

}  // namespace miaobi::test

// SPDX-License-Identifier: MIT
// What happens to elements of C after their last product.
#pragma once

#include "kernels/kernel_table.h"
#include "kernels/math.inc.h"
#include "miaobi/philox.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

// The factors of `n` elements, at most a vector of them, from (row, col) of the matrix on. A block serves eight
// columns.
inline Vec dropout_factors(const DropoutMask& mask, int64_t row, int64_t col, int64_t n) {
  float factors[kW];
  uint32_t words[4];
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t c = static_cast<uint64_t>(mask.col + col + i);
    if (i == 0 || c % 8 == 0) {
      philox(mask.seed, mask.stream, (static_cast<uint64_t>(mask.row + row) << 32) + c / 8, words);
    }
    const uint32_t number = words[c % 8 / 2] >> (c % 2 * 16) & 0xffff;
    factors[i] = number < mask.threshold ? 0.0f : mask.scale;
  }
  return n == kW ? Vec::load(factors) : Vec::load_n(factors, n);
}

// Rows of C through an epilogue with this activation, or with its derivative at `grad_of`; c is where they begin.
template <Activation kKind, bool kGrad, bool kDropout>
MIAOBI_INLINE void epilogue_rows(const Epilogue& e, int64_t row0, int64_t rows, int64_t col0, int64_t cols, float* c,
                                 int64_t ldc) {
  for (int64_t row = row0; row < row0 + rows; ++row, c += ldc) {
    const float* bias = e.bias ? e.bias + col0 : nullptr;
    const float* grad_of = kGrad ? e.grad_of + row * e.grad_of_stride + col0 : nullptr;
    const float* residual = e.residual ? e.residual + row * e.residual_stride + col0 : nullptr;
    const auto one = [&](int64_t j, int64_t n, auto load) {
      Vec y = load(c + j);
      if (bias) y = y + load(bias + j);
      if constexpr (kKind == Activation::kGelu) y = kGrad ? y * gelu_grad(load(grad_of + j)) : gelu(y);
      if constexpr (kKind == Activation::kRelu) y = kGrad ? y * relu_grad(load(grad_of + j)) : relu(y);
      if constexpr (kDropout) y = y * dropout_factors(e.dropout, row, col0 + j, n);
      return residual ? y + load(residual + j) : y;
    };
    for_each_vec(
        cols, [&](int64_t j) { one(j, kW, [](const float* p) { return Vec::load(p); }).store(c + j); },
        [&](int64_t j, int64_t n) { one(j, n, [n](const float* p) { return Vec::load_n(p, n); }).store_n(c + j, n); });
  }
}

// Apart, for the mask's numbers leave no registers for anything else.
template <Activation kKind, bool kGrad>
void epilogue_of(const Epilogue& e, int64_t row0, int64_t rows, int64_t col0, int64_t cols, float* c, int64_t ldc) {
  if (e.dropout.is_on()) {
    epilogue_rows<kKind, kGrad, true>(e, row0, rows, col0, cols, c, ldc);
  } else {
    epilogue_rows<kKind, kGrad, false>(e, row0, rows, col0, cols, c, ldc);
  }
}

// Rows and columns of C that were just written, from (row0, col0) on; c is where they begin.
inline void apply_epilogue(const Epilogue& e, int64_t row0, int64_t rows, int64_t col0, int64_t cols, float* c,
                           int64_t ldc) {
  constexpr Activation kNone = Activation::kNone, kGelu = Activation::kGelu, kRelu = Activation::kRelu;
  const auto f = e.activation == kGelu   ? e.grad_of ? epilogue_of<kGelu, true> : epilogue_of<kGelu, false>
                 : e.activation == kRelu ? e.grad_of ? epilogue_of<kRelu, true> : epilogue_of<kRelu, false>
                                         : epilogue_of<kNone, false>;
  f(e, row0, rows, col0, cols, c, ldc);
}

inline void epilogue_block(const Epilogue& e, int64_t rows, int64_t cols, float* c, int64_t ldc) {
  apply_epilogue(e, 0, rows, 0, cols, c, ldc);
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

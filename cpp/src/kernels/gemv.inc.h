// SPDX-License-Identifier: MIT
// One row times a matrix where it lies: y (+)= x op(B). Each y[n] is the same chain of fused multiply-adds in
// ascending k that a GEMM tile computes, so a row alone and in a batch has the same bits.
#pragma once

#include "kernels/math.inc.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

// B is stored (K, N). Eight rows at a time pass over y, which stays in L1: long runs for the prefetcher, and the
// store of y is shared by eight products.
template <int Depth>
inline void gemv_rows(int64_t n, const float* x, const float* MIAOBI_RESTRICT b, int64_t ldb, float* MIAOBI_RESTRICT y,
                      bool load_y) {
  Vec xv[Depth];
  MIAOBI_UNROLL
  for (int d = 0; d < Depth; ++d) xv[d] = Vec::set1(x[d]);
  int64_t j = 0;
  for (; j + kW <= n; j += kW) {
    Vec acc = load_y ? Vec::load(y + j) : Vec::zero();
    MIAOBI_UNROLL
    for (int d = 0; d < Depth; ++d) acc = fma(xv[d], Vec::load(b + d * ldb + j), acc);
    acc.store(y + j);
  }
  if (j < n) {
    Vec acc = load_y ? Vec::load_n(y + j, n - j) : Vec::zero();
    MIAOBI_UNROLL
    for (int d = 0; d < Depth; ++d) acc = fma(xv[d], Vec::load_n(b + d * ldb + j, n - j), acc);
    acc.store_n(y + j, n - j);
  }
}

constexpr int64_t kAhead = 4 * kLine;  // the prefetcher of the machine follows fewer streams than there are rows

// B is stored (N, K): the dot products of Groups * kW of its rows with x, four columns at a time, which become vectors
// over the rows. Several groups are under way at once, for the sum of each is one chain.
template <int Groups>
inline void gemv_dots(int64_t k, const float* x, const float* MIAOBI_RESTRICT b, int64_t ldb, float* y, bool load_y) {
  Vec acc[Groups];
  MIAOBI_UNROLL
  for (int g = 0; g < Groups; ++g) acc[g] = load_y ? Vec::load(y + g * kW) : Vec::zero();
  int64_t i = 0;
  for (; i + 4 <= k; i += 4) {
    if (i % kLine == 0) {
      for (int w = 0; w < Groups * kW; ++w) MIAOBI_PREFETCH(b + w * ldb + i + kAhead);
    }
    Vec t[Groups][4];
    MIAOBI_UNROLL
    for (int g = 0; g < Groups; ++g) load_columns(b + g * kW * ldb + i, ldb, t[g]);
    MIAOBI_UNROLL
    for (int d = 0; d < 4; ++d) {
      const Vec xv = Vec::set1(x[i + d]);
      MIAOBI_UNROLL
      for (int g = 0; g < Groups; ++g) acc[g] = fma(xv, t[g][d], acc[g]);
    }
  }
  for (; i < k; ++i) {
    MIAOBI_UNROLL
    for (int g = 0; g < Groups; ++g) {
      float column[kW];
      for (int w = 0; w < kW; ++w) column[w] = b[(g * kW + w) * ldb + i];
      acc[g] = fma(Vec::set1(x[i]), Vec::load(column), acc[g]);
    }
  }
  MIAOBI_UNROLL
  for (int g = 0; g < Groups; ++g) acc[g].store(y + g * kW);
}

// Fewer rows of B than a vector has lanes: the multiply-adds of one lane.
inline void gemv_dot(int64_t k, const float* x, const float* b, float* y, bool load_y) {
  Vec acc = load_y ? Vec::set1(*y) : Vec::zero();
  for (int64_t i = 0; i < k; ++i) acc = fma(Vec::set1(x[i]), Vec::set1(b[i]), acc);
  acc.store_n(y, 1);
}

inline void gemv(int64_t n, int64_t k, const float* x, const float* b, int64_t ldb, bool k_major, float* y,
                 bool accumulate) {
  if (!k_major) {
    constexpr int kGroups = kW < 16 ? 3 : 6;  // as many chains as the registers hold
    int64_t j = 0;
    // Rows that lie a multiple of 4 KB apart share one set of L1: no more of them at once than it has ways.
    const bool crowded = ldb % 1024 == 0;
    for (; !crowded && j + kGroups * kW <= n; j += kGroups * kW)
      gemv_dots<kGroups>(k, x, b + j * ldb, ldb, y + j, accumulate);
    for (; j + kW <= n; j += kW) gemv_dots<1>(k, x, b + j * ldb, ldb, y + j, accumulate);
    for (; j < n; ++j) gemv_dot(k, x, b + j * ldb, y + j, accumulate);
    return;
  }
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) gemv_rows<8>(n, x + i, b + i * ldb, ldb, y, accumulate || i > 0);
  for (; i < k; ++i) gemv_rows<1>(n, x + i, b + i * ldb, ldb, y, accumulate || i > 0);
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

// SPDX-License-Identifier: MIT
// Matrix products by OpenBLAS. What the built-in product fuses into packing and epilogue happens here in
// blocks of rows that stay in L2 between the steps.
#include <cblas.h>

#include <algorithm>

#include "gemm/backend.h"
#include "kernels/dispatch.h"
#include "miaobi/cpu.h"
#include "miaobi/threads.h"

namespace miaobi {
namespace {

void sgemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, bool a_k_major, const Operand& b, float* c,
           int64_t ldc, bool accumulate) {
  // One pool at a time: ours sleeps while this one works.
  openblas_set_num_threads(get_num_threads());
  const auto i = [](int64_t x) { return static_cast<blasint>(x); };
  cblas_sgemm(CblasRowMajor, a_k_major ? CblasTrans : CblasNoTrans, b.k_major ? CblasNoTrans : CblasTrans, i(m), i(n),
              i(k), 1.0f, a, i(std::max<int64_t>(lda, 1)), b.data, i(std::max<int64_t>(b.stride, 1)),
              accumulate ? 1.0f : 0.0f, c, i(ldc));
}

// f of the stored rows [row, row + rows) of x, dense, at dst.
void transform_rows(const KernelTable& table, const Operand& x, int64_t row, int64_t rows, int64_t cols, float* dst) {
  const float* src = x.data + row * x.stride;
  if (x.transform == Transform::kLayerNorm) {
    table.layer_norm_apply(src, x.stride, rows, cols, x.mean + row, x.rstd + row, x.gamma, x.beta, dst, cols);
    return;
  }
  const Activation kind = x.transform == Transform::kGelu ? Activation::kGelu : Activation::kRelu;
  for (int64_t r = 0; r < rows; ++r) table.activation(kind, src + r * x.stride, cols, dst + r * cols);
}

}  // namespace

void gemm_openblas(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c, int64_t ldc,
                   bool accumulate, const Epilogue& epilogue) {
  const KernelTable& table = kernels_in_use();
  const bool transformed = a.transform != Transform::kNone;
  if (!transformed && epilogue.empty()) {
    sgemm(m, n, k, a.data, a.stride, a.k_major, b, c, ldc, accumulate);
    return;
  }
  // Rows of the stored A that go through at a time: half of L2 of each thread.
  const int64_t stored_rows = a.k_major ? k : m, stored_cols = a.k_major ? m : k;
  const int64_t l2_rows = cache_sizes().l2 / 2 / std::max<int64_t>(stored_cols * 4, 1) * get_num_threads();
  const int64_t block = std::clamp<int64_t>(l2_rows, 32, std::max<int64_t>(stored_rows, 32));
  float* f = transformed ? thread_scratch(Scratch::kPackB, std::min(block, stored_rows) * stored_cols) : nullptr;
  const auto fill = [&](int64_t row, int64_t rows) {
    parallel_ranges(rows, 8, [&](int64_t begin, int64_t end) {
      transform_rows(table, a, row + begin, end - begin, stored_cols, f + begin * stored_cols);
    });
  };
  const auto finish = [&](int64_t row, int64_t rows) {
    if (epilogue.empty()) return;
    parallel_ranges(rows, 8, [&](int64_t begin, int64_t end) {
      table.epilogue(epilogue.at(row + begin, 0), end - begin, n, c + (row + begin) * ldc, ldc);
    });
  };
  if (a.k_major && transformed) {  // f(X)^T B: blocks of X's rows are blocks of depth
    if (k == 0) sgemm(m, n, 0, a.data, a.stride, true, b, c, ldc, accumulate);
    for (int64_t k0 = 0; k0 < k; k0 += block) {
      const int64_t rows = std::min(block, k - k0);
      fill(k0, rows);
      Operand part = b;
      part.data += k0 * (b.k_major ? b.stride : 1);
      sgemm(m, n, rows, f, stored_cols, true, part, c, ldc, accumulate || k0 > 0);
    }
    finish(0, m);
    return;
  }
  for (int64_t i0 = 0; i0 < m; i0 += block) {
    const int64_t rows = std::min(block, m - i0);
    if (transformed) {
      fill(i0, rows);
      sgemm(rows, n, k, f, stored_cols, false, b, c + i0 * ldc, ldc, accumulate);
    } else {
      sgemm(rows, n, k, a.data + i0 * (a.k_major ? 1 : a.stride), a.stride, a.k_major, b, c + i0 * ldc, ldc,
            accumulate);
    }
    finish(i0, rows);
  }
}

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// LayerNorm: checks and the split over threads.
#include "miaobi/layer_norm.h"

#include "kernels/dispatch.h"
#include "miaobi/check.h"
#include "ops/split.h"

namespace miaobi {

void layer_norm_statistics(ConstMat x, float eps, float* mean, float* rstd) {
  MIAOBI_CHECK(x.cols > 0, "[layer_norm] expected at least one column, got none");
  const KernelTable& table = kernels_in_use();
  parallel_ranges(x.rows, rows_per_task(x.cols), [&](int64_t begin, int64_t end) {
    table.layer_norm_stats(x.row(begin), x.stride, end - begin, x.cols, eps, mean + begin, rstd + begin);
  });
}

void layer_norm_forward(ConstMat x, const float* gamma, const float* beta, float eps, Mat y, float* mean, float* rstd) {
  MIAOBI_CHECK(x.cols > 0, "[layer_norm] expected at least one column, got none");
  check_same_shape("layer_norm", "y", y, "x", x);
  const KernelTable& table = kernels_in_use();
  parallel_ranges(x.rows, rows_per_task(x.cols), [&](int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    table.layer_norm_stats(x.row(begin), x.stride, rows, x.cols, eps, mean + begin, rstd + begin);
    table.layer_norm_apply(x.row(begin), x.stride, rows, x.cols, mean + begin, rstd + begin, gamma, beta, y.row(begin),
                           y.stride);
  });
}

void layer_norm_backward(ConstMat dy, ConstMat x, const float* gamma, const float* mean, const float* rstd, Mat dx,
                         bool accumulate_dx, float* dgamma_add, float* dbeta_add) {
  check_same_shape("layer_norm_backward", "dy", dy, "x", x);
  check_same_shape("layer_norm_backward", "dx", dx, "x", x);
  const KernelTable& table = kernels_in_use();
  // The sums first: dx may overwrite dy.
  if (dgamma_add != nullptr) {
    parallel_ranges(x.cols, kColumnsPerTask, [&](int64_t begin, int64_t end) {
      table.layer_norm_backward_params(dy.data + begin, dy.stride, x.data + begin, x.stride, x.rows, end - begin, mean,
                                       rstd, dgamma_add + begin, dbeta_add + begin);
    });
  }
  parallel_ranges(x.rows, rows_per_task(x.cols), [&](int64_t begin, int64_t end) {
    table.layer_norm_backward_rows(dy.row(begin), dy.stride, x.row(begin), x.stride, end - begin, x.cols, mean + begin,
                                   rstd + begin, gamma, dx.row(begin), dx.stride, accumulate_dx);
  });
}

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// Elementwise ops, softmax and column sums over the threads.
#include "miaobi/elementwise.h"

#include "kernels/dispatch.h"
#include "ops/split.h"

namespace miaobi {

void activation_forward(Activation kind, const float* x, int64_t n, float* y) {
  const KernelTable& table = kernels_in_use();
  parallel_ranges(n, kElementsPerTask,
                  [&](int64_t begin, int64_t end) { table.activation(kind, x + begin, end - begin, y + begin); });
}

void activation_backward(Activation kind, const float* x, const float* dy, int64_t n, float* dx) {
  const KernelTable& table = kernels_in_use();
  parallel_ranges(n, kElementsPerTask, [&](int64_t begin, int64_t end) {
    table.activation_backward(kind, x + begin, dy + begin, end - begin, dx + begin);
  });
}

void add_to(const float* x, int64_t n, float* y) {
  const KernelTable& table = kernels_in_use();
  parallel_ranges(n, kElementsPerTask,
                  [&](int64_t begin, int64_t end) { table.add(x + begin, end - begin, y + begin); });
}

void softmax_forward(ConstMat x, Mat y) {
  check_same_shape("softmax", "y", y, "x", x);
  const KernelTable& table = kernels_in_use();
  parallel_ranges(x.rows, rows_per_task(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) table.softmax_row(x.row(r), x.cols, y.row(r));
  });
}

void column_sums_add(ConstMat x, float* sums_add) {
  const KernelTable& table = kernels_in_use();
  parallel_ranges(x.cols, kColumnsPerTask, [&](int64_t begin, int64_t end) {
    table.column_sums_add(x.data + begin, x.stride, x.rows, end - begin, sums_add + begin);
  });
}

void exp_forward(const float* x, int64_t n, float* y) { kernels_in_use().exp(x, n, y); }
void tanh_forward(const float* x, int64_t n, float* y) { kernels_in_use().tanh(x, n, y); }

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// Activations, softmax and sums over whole arrays.
#pragma once

#include <cstdint>

#include "miaobi/gemm_types.h"
#include "miaobi/mat.h"

namespace miaobi {

// y = activation(x), n elements; y may be x. GELU is the tanh form; absolute error below 1e-6 + 1e-6 |x|.
void activation_forward(Activation kind, const float* x, int64_t n, float* y);
// dx = dy activation'(x); dx may be dy.
void activation_backward(Activation kind, const float* x, const float* dy, int64_t n, float* dx);

void add_to(const float* x, int64_t n, float* y);  // y += x

// y = softmax of each row of x; y may be x.
void softmax_forward(ConstMat x, Mat y);

// sums[c] += sum over rows of x[r][c], in ascending order of rows.
void column_sums_add(ConstMat x, float* sums_add);

// exp and tanh of n elements, for tests of their error bounds (2 ulp; absolute 1e-6). y may be x.
void exp_forward(const float* x, int64_t n, float* y);
void tanh_forward(const float* x, int64_t n, float* y);

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// LayerNorm over the columns of each row (Ba, Kiros and Hinton 2016).
#pragma once

#include "miaobi/mat.h"

namespace miaobi {

// y = xhat gamma + beta, xhat = (x - mean) rstd, rstd = 1 / sqrt(var + eps), var the biased variance.
// x, y (M, C); gamma, beta (C); mean, rstd (M) are filled. y may be x. Throws Error if C = 0.
void layer_norm_forward(ConstMat x, const float* gamma, const float* beta, float eps, Mat y, float* mean, float* rstd);

// With g = dy gamma:   dx = rstd (g - mean_c(g) - xhat mean_c(g xhat))   (added to dx where accumulate_dx)
// dgamma += sum_rows dy xhat,  dbeta += sum_rows dy.   dx may be dy, not x. Null dgamma/dbeta: both left out.
// Threads: over rows for dx, over columns for the sums, whose rows go in ascending order.
void layer_norm_backward(ConstMat dy, ConstMat x, const float* gamma, const float* mean, const float* rstd, Mat dx,
                         bool accumulate_dx, float* dgamma_add, float* dbeta_add);

// The statistics alone.
void layer_norm_statistics(ConstMat x, float eps, float* mean, float* rstd);

}  // namespace miaobi

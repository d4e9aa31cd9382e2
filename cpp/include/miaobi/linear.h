// SPDX-License-Identifier: MIT
// Linear layers, plain and with what comes before them fused into the packing of their input.
//
// One contract for all. X is (M, in), W (in, out), b (out), Y and dY (M, out):
//
//   Y  = f(X) W + b                      f: identity, LayerNorm or an activation
//   dW += f(X)^T dY     db += sum over rows of dY     dX = (dY W^T) through the derivative of f
//
// f(X) is never in memory: forward applies f while it packs X, backward again (recomputed, not stored).
// Null b, dW, db or dX leave that result out. dX is overwritten (or added to, where it says so) and may be
// neither X nor dY. M = 0 gives nothing and leaves accumulated gradients alone. Accuracy and threads: gemm.h.
// Forward takes W as it is stored or packed (gemm.h).
// Throws Error where shapes do not fit each other.
#pragma once

#include "miaobi/gemm.h"
#include "miaobi/mat.h"
#include "miaobi/memory.h"

namespace miaobi {

// `residual`, where not null, is added to Y: Y = f(X) W + b + R. R is (M, out) and may be Y itself. A dropout mask,
// where there is one, is on what is added to R, Y = mask (f(X) W + b) + R, and then R may not be Y; backward wants mask
// dY.
void linear_forward(ConstMat x, ConstMat w, const float* b, Mat y, ConstMat residual = {});
void linear_backward(ConstMat dy, ConstMat x, ConstMat w, Mat dx, Mat dw_add, float* db_add);

// The parameters and row statistics of a LayerNorm in front of a product: gamma, beta (in), mean, rstd (M).
struct LayerNormView {
  const float* gamma;
  const float* beta;
  float* mean;
  float* rstd;
};

// f = LayerNorm. Forward fills mean and rstd, backward reads them.
// dgamma += sum dF xhat, dbeta += sum dF, with dF = dY W^T before dX is formed from it.
// With accumulate_dx, dX += (the gradient of a residual stream that bypasses the LayerNorm).
void layer_norm_linear_forward(ConstMat x, const LayerNormView& ln, float eps, ConstMat w, const float* b, Mat y);
void layer_norm_linear_forward(ConstMat x, const LayerNormView& ln, float eps, const PackedMatrix& w, const float* b,
                               Mat y);
void layer_norm_linear_backward(ConstMat dy, ConstMat x, const LayerNormView& ln, ConstMat w, Mat dx,
                                bool accumulate_dx, float* dgamma_add, float* dbeta_add, Mat dw_add, float* db_add,
                                Workspace& workspace);

// f = activation; `kind` kNone is the plain layer.
void activation_linear_forward(Activation kind, ConstMat x, ConstMat w, const float* b, Mat y, ConstMat residual = {},
                               const DropoutMask& dropout = {});
void activation_linear_forward(Activation kind, ConstMat x, const PackedMatrix& w, const float* b, Mat y,
                               ConstMat residual = {});
void activation_linear_backward(Activation kind, ConstMat dy, ConstMat x, ConstMat w, Mat dx, Mat dw_add,
                                float* db_add);

}  // namespace miaobi

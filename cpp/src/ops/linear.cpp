// SPDX-License-Identifier: MIT
// Linear layers and their fusions, all on one forward and one backward over gemm.
#include "miaobi/linear.h"

#include "miaobi/elementwise.h"
#include "miaobi/layer_norm.h"
#include "ops/split.h"

namespace miaobi {
namespace {

// in and out of a weight, stored or packed.
int64_t in_dim(ConstMat w) { return w.rows; }
int64_t out_dim(ConstMat w) { return w.cols; }
int64_t in_dim(const PackedMatrix& w) { return w.k(); }
int64_t out_dim(const PackedMatrix& w) { return w.n(); }

template <class Weight>
void check_forward(const char* op, ConstMat x, const Weight& w, ConstMat y, ConstMat residual) {
  MIAOBI_CHECK(x.cols == in_dim(w), "[", op, "] expected x with ", in_dim(w), " columns (the rows of weight), got ",
               x.cols);
  MIAOBI_CHECK(y.rows == x.rows && y.cols == out_dim(w), "[", op, "] expected y (", x.rows, ", ", out_dim(w),
               "), got (", y.rows, ", ", y.cols, ")");
  if (residual.data != nullptr) check_same_shape(op, "residual", residual, "y", y);
}

void check_backward(const char* op, ConstMat dy, ConstMat x, ConstMat w, ConstMat dx, ConstMat dw) {
  MIAOBI_CHECK(x.cols == w.rows && dy.cols == w.cols && dy.rows == x.rows, "[", op, "] expected dy (", x.rows, ", ",
               w.cols, "), got (", dy.rows, ", ", dy.cols, ")");
  if (dx.data != nullptr) check_same_shape(op, "dx", dx, "x", x);
  if (dw.data != nullptr) check_same_shape(op, "dw", dw, "weight", w);
}

void product(int64_t rows, const Operand& x, ConstMat w, Mat y, bool accumulate, const Epilogue& epilogue) {
  gemm(rows, w.cols, w.rows, x, right_operand(w), y.data, y.stride, accumulate, epilogue);
}
void product(int64_t rows, const Operand& x, const PackedMatrix& w, Mat y, bool accumulate, const Epilogue& epilogue) {
  gemm(rows, x, w, y.data, y.stride, accumulate, epilogue);
}

template <class Weight>
void forward(const Operand& x, int64_t rows, const Weight& w, const float* b, Mat y, ConstMat residual,
             const DropoutMask& dropout = {}) {
  Epilogue epilogue;
  epilogue.bias = b;
  epilogue.dropout = dropout;
  // The product overwrites Y before an epilogue can read it: a residual that lies there is what the sums start from.
  const bool in_place = residual.data != nullptr && residual.data == y.data;
  MIAOBI_CHECK(!in_place || !dropout.is_on(), "[linear] expected dropout with a residual that is not y");
  if (!in_place) {
    epilogue.residual = residual.data;
    epilogue.residual_stride = residual.stride;
  }
  product(rows, x, w, y, in_place, epilogue);
}

// dW += f(X)^T dY and db; `x` is the stored X with its transform.
void backward_parameters(ConstMat dy, Operand x, Mat dw_add, float* db_add) {
  if (dw_add.data != nullptr) {
    x.k_major = true;  // X^T: the rows of X run over K
    gemm(dw_add.rows, dw_add.cols, dy.rows, x, right_operand(dy), dw_add.data, dw_add.stride, true);
  }
  if (db_add != nullptr) column_sums_add(dy, db_add);
}

Operand with_layer_norm(ConstMat x, const LayerNormView& ln) {
  Operand a = left_operand(x);
  a.transform = Transform::kLayerNorm;
  a.mean = ln.mean;
  a.rstd = ln.rstd;
  a.gamma = ln.gamma;
  a.beta = ln.beta;
  return a;
}

template <class Weight>
void norm_forward(ConstMat x, const LayerNormView& ln, float eps, const Weight& w, const float* b, Mat y) {
  check_forward("layer_norm_linear", x, w, y, {});
  layer_norm_statistics(x, eps, ln.mean, ln.rstd);
  forward(with_layer_norm(x, ln), x.rows, w, b, y, {});
}

Operand with_activation(ConstMat x, Activation kind) {
  Operand a = left_operand(x);
  a.transform = kind == Activation::kGelu   ? Transform::kGelu
                : kind == Activation::kRelu ? Transform::kRelu
                                            : Transform::kNone;
  return a;
}

}  // namespace

void linear_forward(ConstMat x, ConstMat w, const float* b, Mat y, ConstMat residual) {
  activation_linear_forward(Activation::kNone, x, w, b, y, residual);
}

void linear_backward(ConstMat dy, ConstMat x, ConstMat w, Mat dx, Mat dw_add, float* db_add) {
  activation_linear_backward(Activation::kNone, dy, x, w, dx, dw_add, db_add);
}

void layer_norm_linear_forward(ConstMat x, const LayerNormView& ln, float eps, ConstMat w, const float* b, Mat y) {
  norm_forward(x, ln, eps, w, b, y);
}

void layer_norm_linear_forward(ConstMat x, const LayerNormView& ln, float eps, const PackedMatrix& w, const float* b,
                               Mat y) {
  norm_forward(x, ln, eps, w, b, y);
}

void layer_norm_linear_backward(ConstMat dy, ConstMat x, const LayerNormView& ln, ConstMat w, Mat dx,
                                bool accumulate_dx, float* dgamma_add, float* dbeta_add, Mat dw_add, float* db_add,
                                Workspace& workspace) {
  check_backward("layer_norm_linear_backward", dy, x, w, dx, dw_add);
  backward_parameters(dy, with_layer_norm(x, ln), dw_add, db_add);
  const Workspace::Mark mark(workspace);
  const Mat df = accumulate_dx || dx.data == nullptr ? workspace.mat(x.rows, x.cols) : dx;
  gemm(x.rows, x.cols, dy.cols, left_operand(dy), right_operand(w, true), df.data, df.stride);
  layer_norm_backward(df, x, ln.gamma, ln.mean, ln.rstd, dx.data != nullptr ? dx : df,
                      accumulate_dx && dx.data != nullptr, dgamma_add, dbeta_add);
}

void activation_linear_forward(Activation kind, ConstMat x, ConstMat w, const float* b, Mat y, ConstMat residual,
                               const DropoutMask& dropout) {
  check_forward("linear", x, w, y, residual);
  forward(with_activation(x, kind), x.rows, w, b, y, residual, dropout);
}

void activation_linear_forward(Activation kind, ConstMat x, const PackedMatrix& w, const float* b, Mat y,
                               ConstMat residual) {
  check_forward("linear", x, w, y, residual);
  forward(with_activation(x, kind), x.rows, w, b, y, residual);
}

void activation_linear_backward(Activation kind, ConstMat dy, ConstMat x, ConstMat w, Mat dx, Mat dw_add,
                                float* db_add) {
  check_backward("linear_backward", dy, x, w, dx, dw_add);
  backward_parameters(dy, with_activation(x, kind), dw_add, db_add);
  if (dx.data == nullptr) return;
  Epilogue epilogue;
  if (kind != Activation::kNone) {
    epilogue.activation = kind;
    epilogue.grad_of = x.data;
    epilogue.grad_of_stride = x.stride;
  }
  gemm(x.rows, x.cols, dy.cols, left_operand(dy), right_operand(w, true), dx.data, dx.stride, false, epilogue);
}

}  // namespace miaobi

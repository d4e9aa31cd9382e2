// SPDX-License-Identifier: MIT
// The plain data that describes a matrix product: its operands, what happens to them on the way in, and
// what happens to the result on the way out.
#pragma once

#include <cstdint>

#include "miaobi/dropout_mask.h"
#include "miaobi/mat.h"

namespace miaobi {

// What happens to an element of the left operand while it is packed.
enum class Transform : int32_t {
  kNone,
  kLayerNorm,  // (x - mean[row]) * rstd[row] * gamma[col] + beta[col], row and col of the stored matrix
  kGelu,       // tanh form
  kRelu,
};

// One operand of a matrix product. Element (i, k) is data[k * stride + i] where `k_major`, else
// data[i * stride + k]. i runs over M for the left operand and over N for the right one.
struct Operand {
  const float* data = nullptr;
  int64_t stride = 0;
  bool k_major = false;
  bool bf16 = false;  // round every packed element to bfloat16, ties to even
  Transform transform = Transform::kNone;
  const float* mean = nullptr;  // kLayerNorm: per stored row
  const float* rstd = nullptr;
  const float* gamma = nullptr;  // kLayerNorm: per stored column
  const float* beta = nullptr;
};

// op(A), M x K: A is stored (M, K), or (K, M) where it enters transposed.
inline Operand left_operand(ConstMat a, bool transpose = false) {
  Operand x;
  x.data = a.data;
  x.stride = a.stride;
  x.k_major = transpose;
  return x;
}
// op(B), K x N: B is stored (K, N), or (N, K) where it enters transposed.
inline Operand right_operand(ConstMat b, bool transpose = false) { return left_operand(b, !transpose); }

enum class Activation : int32_t { kNone, kGelu, kRelu };

// What happens to an element of C after its last product:
//   c = activation(c + bias[n]);  c *= activation'(grad_of[m][n]);  c *= dropout[m][n];  c += residual[m][n]
// Null pointers, and a mask that is off, leave their step out. `activation` serves the first step where grad_of is null
// and names the derivative of the second where it is not. Pointers are to row 0, column 0 of C.
struct Epilogue {
  const float* bias = nullptr;
  const float* grad_of = nullptr;
  int64_t grad_of_stride = 0;
  const float* residual = nullptr;
  int64_t residual_stride = 0;
  Activation activation = Activation::kNone;
  DropoutMask dropout;

  bool empty() const {
    return bias == nullptr && grad_of == nullptr && residual == nullptr && activation == Activation::kNone &&
           !dropout.is_on();
  }
  // The same for the part of C that starts at (row, col).
  Epilogue at(int64_t row, int64_t col) const {
    Epilogue e = *this;
    if (e.bias) e.bias += col;
    if (e.grad_of) e.grad_of += row * grad_of_stride + col;
    if (e.residual) e.residual += row * residual_stride + col;
    e.dropout.row += row;
    e.dropout.col += col;
    return e;
  }
};

}  // namespace miaobi

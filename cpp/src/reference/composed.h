// SPDX-License-Identifier: MIT
// The oracle's fused ops, as compositions of the plain ones, and its optimizer.
#pragma once

#include <cmath>
#include <cstdint>

#include "reference/reference.h"

namespace miaobi::reference {

// --- y = LayerNorm(x) w + b ---------------------------------------------------------------------------------------

template <class T>
Matrix<T> layer_norm_linear_forward(const Matrix<T>& x, const Vector<T>& gamma, const Vector<T>& beta, T eps,
                                    const Matrix<T>& w, const Vector<T>& b) {
  return linear_forward(layer_norm_forward(x, gamma, beta, eps).y, w, b);
}
template <class T>
Matrix<T> layer_norm_linear_backward(const Matrix<T>& dy, const Matrix<T>& x, const Vector<T>& gamma,
                                     const Vector<T>& beta, T eps, const Matrix<T>& w, Vector<T>& dgamma_add,
                                     Vector<T>& dbeta_add, Matrix<T>& dw_add, Vector<T>& db_add) {
  const LayerNorm<T> f = layer_norm_forward(x, gamma, beta, eps);
  const Matrix<T> df = linear_backward(dy, f.y, w, dw_add, db_add);
  return layer_norm_backward(df, x, gamma, f.mean, f.rstd, dgamma_add, dbeta_add);
}

// --- y = activation(x) w + b --------------------------------------------------------------------------------------

template <class T>
Matrix<T> activation_linear_forward(Activation kind, const Matrix<T>& x, const Matrix<T>& w, const Vector<T>& b) {
  return linear_forward(activation_forward(kind, x), w, b);
}
template <class T>
Matrix<T> activation_linear_backward(Activation kind, const Matrix<T>& dy, const Matrix<T>& x, const Matrix<T>& w,
                                     Matrix<T>& dw_add, Vector<T>& db_add) {
  return activation_backward(kind, linear_backward(dy, activation_forward(kind, x), w, dw_add, db_add), x);
}

// --- LM head: logits = x w^T and their cross-entropy --------------------------------------------------------------

template <class T>
Vector<T> lm_head_cross_entropy_forward(const Matrix<T>& x, const Matrix<T>& w, const Vector<int32_t>& targets) {
  return cross_entropy_forward(matmul(x, w, false, true), targets);
}
// Of scale * sum of the losses:  dx = G w,  dw += G^T x,  G = cross_entropy_backward
template <class T>
Matrix<T> lm_head_cross_entropy_backward(const Matrix<T>& x, const Matrix<T>& w, const Vector<int32_t>& targets,
                                         T scale, Matrix<T>& dw_add) {
  const Matrix<T> g = cross_entropy_backward(matmul(x, w, false, true), targets, scale);
  matmul_add(g, true, x, false, dw_add);
  return matmul(g, w);
}

// --- Optimizer ----------------------------------------------------------------------------------------------------

template <class T>
T sum_squares(const Vector<T>& g) {
  T sum(0);
  for (const T& e : g) sum += e * e;
  return sum;
}
// The factor that brings the norm of all gradients together down to max_norm; 1 if it is below.
template <class T>
T clip_factor(T squares, T max_norm) {
  using std::sqrt;
  const T norm = sqrt(squares);
  return norm > max_norm ? max_norm / norm : T(1);
}

template <class T>
struct AdamW {
  T lr, beta1, beta2, eps, weight_decay;
};
// Step t = 1, 2, ... (Loshchilov and Hutter 2019), on gradients that are clipped already:
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
//   value = value (1 - lr weight_decay) - lr mhat / (sqrt(vhat) + eps),  mhat = m / (1 - beta1^t), vhat likewise
template <class T>
void adamw_step(const AdamW<T>& p, int64_t t, const Vector<T>& g, Vector<T>& value, Vector<T>& m, Vector<T>& v) {
  using std::sqrt;
  T power1(1), power2(1);
  for (int64_t i = 0; i < t; ++i) {
    power1 = power1 * p.beta1;
    power2 = power2 * p.beta2;
  }
  for (size_t i = 0; i < g.size(); ++i) {
    m[i] = p.beta1 * m[i] + (T(1) - p.beta1) * g[i];
    v[i] = p.beta2 * v[i] + (T(1) - p.beta2) * (g[i] * g[i]);
    const T mhat = m[i] / (T(1) - power1), vhat = v[i] / (T(1) - power2);
    value[i] = value[i] * (T(1) - p.lr * p.weight_decay) - p.lr * mhat / (sqrt(vhat) + p.eps);
  }
}

}  // namespace miaobi::reference

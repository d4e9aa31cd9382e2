// SPDX-License-Identifier: MIT
// The oracle: every op of the engine in its plainest form, templated on the scalar, forward and backward side by side.
//
// The loops are the formulas. Tests run them in double against central differences (the oracle itself), and with a
// scalar that carries its own rounding error against the fast kernels. Sums are written with +=, everything else with
// single operators, so that such a scalar can tell the two apart. What ends in _add accumulates.
//
// M, N, K are a product's; R rows, C channels, H heads, D head size, V vocabulary elsewhere.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "miaobi/cross_entropy.h"
#include "miaobi/gemm_types.h"
#include "reference/matrix.h"

namespace miaobi::reference {

inline size_t at(int64_t i) { return static_cast<size_t>(i); }

// --- Activations --------------------------------------------------------------------------------------------------

// gelu(x) = x/2 (1 + tanh u),  u = sqrt(2/pi) (x + 0.044715 x^3)
template <class T>
T gelu_inner(T x) {
  return T(0.7978845608028654) * (x + T(0.044715) * (x * x * x));
}
template <class T>
T gelu(T x) {
  using std::tanh;
  return T(0.5) * x * (T(1) + tanh(gelu_inner(x)));
}
// gelu'(x) = (1 + t)/2 + x/2 (1 - t^2) u',  t = tanh u,  u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2)
template <class T>
T gelu_grad(T x) {
  using std::tanh;
  const T t = tanh(gelu_inner(x));
  const T du = T(0.7978845608028654) * (T(1) + T(3 * 0.044715) * (x * x));
  return T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * du;
}

template <class T>
T activation(Activation kind, T x) {
  switch (kind) {
    case Activation::kGelu: return gelu(x);
    case Activation::kRelu: return x > T(0) ? x : T(0);
    case Activation::kNone: break;
  }
  return x;
}
template <class T>
T activation_grad(Activation kind, T x) {
  switch (kind) {
    case Activation::kGelu: return gelu_grad(x);
    case Activation::kRelu: return x > T(0) ? T(1) : T(0);
    case Activation::kNone: break;
  }
  return T(1);
}

template <class T>
Matrix<T> activation_forward(Activation kind, const Matrix<T>& x) {
  Matrix<T> y = x;
  for (T& e : y.data) e = activation(kind, e);
  return y;
}
// dx = dy activation'(x)
template <class T>
Matrix<T> activation_backward(Activation kind, const Matrix<T>& dy, const Matrix<T>& x) {
  Matrix<T> dx = dy;
  for (size_t i = 0; i < dx.data.size(); ++i) dx.data[i] = dy.data[i] * activation_grad(kind, x.data[i]);
  return dx;
}

// --- Matrix product -----------------------------------------------------------------------------------------------

// c += op(A) op(B),  op(A): M x K,  op(B): K x N
template <class T>
void matmul_add(const Matrix<T>& a, bool transpose_a, const Matrix<T>& b, bool transpose_b, Matrix<T>& c_add) {
  const int64_t K = transpose_a ? a.rows : a.cols;
  for (int64_t m = 0; m < c_add.rows; ++m) {
    for (int64_t n = 0; n < c_add.cols; ++n) {
      for (int64_t k = 0; k < K; ++k) {
        c_add(m, n) += (transpose_a ? a(k, m) : a(m, k)) * (transpose_b ? b(n, k) : b(k, n));
      }
    }
  }
}
template <class T>
Matrix<T> matmul(const Matrix<T>& a, const Matrix<T>& b, bool transpose_a = false, bool transpose_b = false) {
  Matrix<T> c(transpose_a ? a.cols : a.rows, transpose_b ? b.rows : b.cols);
  matmul_add(a, transpose_a, b, transpose_b, c);
  return c;
}

// What may follow a product; null leaves a step out.
//   c = f(c + bias[n]);  c *= f'(grad_of[m][n]);  c += residual[m][n]
// `kind` is the f of the first step without grad_of, and of the second with it.
template <class T>
struct MatmulEpilogue {
  const Vector<T>* bias = nullptr;
  const Matrix<T>* grad_of = nullptr;
  const Matrix<T>* residual = nullptr;
  Activation kind = Activation::kNone;
};
template <class T>
void apply_epilogue(const MatmulEpilogue<T>& e, Matrix<T>& c) {
  for (int64_t m = 0; m < c.rows; ++m) {
    for (int64_t n = 0; n < c.cols; ++n) {
      T y = c(m, n);
      if (e.bias != nullptr) y = y + (*e.bias)[at(n)];
      y = e.grad_of != nullptr ? y * activation_grad(e.kind, (*e.grad_of)(m, n)) : activation(e.kind, y);
      if (e.residual != nullptr) y = y + (*e.residual)(m, n);
      c(m, n) = y;
    }
  }
}

// --- Linear: y = x w + b.  x (R, in), w (in, out), b (out) ----------------------------------------------------------

template <class T>
Matrix<T> linear_forward(const Matrix<T>& x, const Matrix<T>& w, const Vector<T>& b) {
  Matrix<T> y = matmul(x, w);
  apply_epilogue(MatmulEpilogue<T>{.bias = &b}, y);
  return y;
}
// dw += x^T dy,  db += sum_r dy.  Returns dx = dy w^T.
template <class T>
Matrix<T> linear_backward(const Matrix<T>& dy, const Matrix<T>& x, const Matrix<T>& w, Matrix<T>& dw_add,
                          Vector<T>& db_add) {
  matmul_add(x, true, dy, false, dw_add);
  for (int64_t r = 0; r < dy.rows; ++r) {
    for (int64_t c = 0; c < dy.cols; ++c) db_add[at(c)] += dy(r, c);
  }
  return matmul(dy, w, false, true);
}

// --- LayerNorm over the columns of each row -----------------------------------------------------------------------

template <class T>
struct LayerNorm {
  Matrix<T> y;
  Vector<T> mean, rstd;
};
// y = xhat gamma + beta,  xhat = (x - mean) rstd,  rstd = 1 / sqrt(var + eps),  var = sum (x - mean)^2 / C
template <class T>
LayerNorm<T> layer_norm_forward(const Matrix<T>& x, const Vector<T>& gamma, const Vector<T>& beta, T eps) {
  using std::sqrt;
  const T C(static_cast<double>(x.cols));
  LayerNorm<T> out{x, Vector<T>(at(x.rows)), Vector<T>(at(x.rows))};
  for (int64_t r = 0; r < x.rows; ++r) {
    T sum(0), squares(0);
    for (int64_t c = 0; c < x.cols; ++c) sum += x(r, c);
    const T mean = sum / C;
    for (int64_t c = 0; c < x.cols; ++c) squares += (x(r, c) - mean) * (x(r, c) - mean);
    const T rstd = T(1) / sqrt(squares / C + eps);
    for (int64_t c = 0; c < x.cols; ++c) out.y(r, c) = (x(r, c) - mean) * rstd * gamma[at(c)] + beta[at(c)];
    out.mean[at(r)] = mean;
    out.rstd[at(r)] = rstd;
  }
  return out;
}
// With g = dy gamma:  dx = rstd (g - mean_c(g) - xhat mean_c(g xhat)),  dgamma += sum_r dy xhat,  dbeta += sum_r dy
template <class T>
Matrix<T> layer_norm_backward(const Matrix<T>& dy, const Matrix<T>& x, const Vector<T>& gamma, const Vector<T>& mean,
                              const Vector<T>& rstd, Vector<T>& dgamma_add, Vector<T>& dbeta_add) {
  const T C(static_cast<double>(x.cols));
  Matrix<T> dx(x.rows, x.cols);
  for (int64_t r = 0; r < x.rows; ++r) {
    const auto xhat = [&](int64_t c) { return (x(r, c) - mean[at(r)]) * rstd[at(r)]; };
    T sum_g(0), sum_gx(0);
    for (int64_t c = 0; c < x.cols; ++c) {
      const T g = dy(r, c) * gamma[at(c)];
      sum_g += g;
      sum_gx += g * xhat(c);
      dgamma_add[at(c)] += dy(r, c) * xhat(c);
      dbeta_add[at(c)] += dy(r, c);
    }
    for (int64_t c = 0; c < x.cols; ++c) {
      dx(r, c) = rstd[at(r)] * (dy(r, c) * gamma[at(c)] - sum_g / C - xhat(c) * (sum_gx / C));
    }
  }
  return dx;
}

// --- Softmax of each row, and the logarithm of its denominator ----------------------------------------------------

// y[j] = exp(x[j] - max) / sum,  returns lse = max + log(sum); n entries
template <class T>
T softmax_row(const T* x, int64_t n, T* y) {
  using std::exp;
  using std::log;
  T max = x[0], sum(0);
  for (int64_t j = 1; j < n; ++j) max = x[j] > max ? x[j] : max;
  for (int64_t j = 0; j < n; ++j) {
    y[j] = exp(x[j] - max);
    sum += y[j];
  }
  for (int64_t j = 0; j < n; ++j) y[j] = y[j] / sum;
  return max + log(sum);
}
template <class T>
Matrix<T> softmax_forward(const Matrix<T>& x) {
  Matrix<T> y = x;
  for (int64_t r = 0; r < x.rows; ++r) softmax_row(&x(r, 0), x.cols, &y(r, 0));
  return y;
}

// --- Cross-entropy of logits (R, V); a target kIgnoreIndex is not scored ------------------------------------------

// losses[r] = lse(logits[r]) - logits[r][target]
template <class T>
Vector<T> cross_entropy_forward(const Matrix<T>& logits, const Vector<int32_t>& targets) {
  Vector<T> losses(at(logits.rows), T(0)), p(at(logits.cols));
  for (int64_t r = 0; r < logits.rows; ++r) {
    const int32_t target = targets[at(r)];
    if (target == kIgnoreIndex) continue;
    losses[at(r)] = softmax_row(&logits(r, 0), logits.cols, p.data()) - logits(r, target);
  }
  return losses;
}
// dlogits[r] = scale (softmax(logits[r]) - onehot(target))
template <class T>
Matrix<T> cross_entropy_backward(const Matrix<T>& logits, const Vector<int32_t>& targets, T scale) {
  Matrix<T> dlogits(logits.rows, logits.cols);
  for (int64_t r = 0; r < logits.rows; ++r) {
    if (targets[at(r)] == kIgnoreIndex) continue;
    softmax_row(&logits(r, 0), logits.cols, &dlogits(r, 0));
    for (int64_t v = 0; v < logits.cols; ++v) {
      const T onehot(v == targets[at(r)] ? 1.0 : 0.0);
      dlogits(r, v) = scale * (dlogits(r, v) - onehot);
    }
  }
  return dlogits;
}

// --- Attention: O = softmax(Q K^T / sqrt(D)) V for each sequence and head -----------------------------------------

// Sequence s has the rows offsets[s] .. offsets[s + 1) of q, k, v (R, H D); head h the columns h D .. (h + 1) D. Query
// i sees the keys up to itself where causal, else all of its sequence.
struct AttentionLayout {
  Vector<int64_t> offsets;
  int64_t heads;
  bool causal;
};
template <class Body>  // body(first row of the sequence, row of the query, keys it sees, head)
void for_each_query(const AttentionLayout& layout, Body&& body) {
  for (size_t s = 0; s + 1 < layout.offsets.size(); ++s) {
    const int64_t begin = layout.offsets[s], end = layout.offsets[s + 1];
    for (int64_t h = 0; h < layout.heads; ++h) {
      for (int64_t i = begin; i < end; ++i) body(begin, i, (layout.causal ? i + 1 : end) - begin, h);
    }
  }
}
// p[j] = softmax over the visible keys of  q_i . k_j / sqrt(D); returns lse
template <class T>
T attention_probabilities(const Matrix<T>& q, const Matrix<T>& k, int64_t begin, int64_t i, int64_t visible, int64_t h,
                          int64_t D, Vector<T>& p) {
  Vector<T> scores(at(visible), T(0));
  p.assign(at(visible), T(0));
  for (int64_t j = 0; j < visible; ++j) {
    for (int64_t d = 0; d < D; ++d) scores[at(j)] += q(i, h * D + d) * k(begin + j, h * D + d);
    scores[at(j)] = scores[at(j)] / T(std::sqrt(static_cast<double>(D)));
  }
  return softmax_row(scores.data(), visible, p.data());
}

template <class T>
struct Attention {
  Matrix<T> o, lse;  // (R, H D), (R, H)
};
template <class T>
Attention<T> attention_forward(const Matrix<T>& q, const Matrix<T>& k, const Matrix<T>& v,
                               const AttentionLayout& layout) {
  const int64_t D = q.cols / layout.heads;
  Attention<T> out{Matrix<T>(q.rows, q.cols), Matrix<T>(q.rows, layout.heads)};
  Vector<T> p;
  for_each_query(layout, [&](int64_t begin, int64_t i, int64_t visible, int64_t h) {
    out.lse(i, h) = attention_probabilities(q, k, begin, i, visible, h, D, p);
    for (int64_t j = 0; j < visible; ++j) {
      for (int64_t d = 0; d < D; ++d) out.o(i, h * D + d) += p[at(j)] * v(begin + j, h * D + d);
    }
  });
  return out;
}

template <class T>
struct AttentionGradients {
  Matrix<T> dq, dk, dv;
};
// dV = P^T dO,  dP = dO V^T,  dS = P (dP - rowsum(dP P)) / sqrt(D),  dQ = dS K,  dK = dS^T Q
template <class T>
AttentionGradients<T> attention_backward(const Matrix<T>& d_o, const Matrix<T>& q, const Matrix<T>& k,
                                         const Matrix<T>& v, const AttentionLayout& layout) {
  const int64_t D = q.cols / layout.heads;
  AttentionGradients<T> out{Matrix<T>(q.rows, q.cols), Matrix<T>(q.rows, q.cols), Matrix<T>(q.rows, q.cols)};
  Vector<T> p;
  for_each_query(layout, [&](int64_t begin, int64_t i, int64_t visible, int64_t h) {
    attention_probabilities(q, k, begin, i, visible, h, D, p);
    Vector<T> dp(at(visible), T(0));
    T sum_dp_p(0);
    for (int64_t j = 0; j < visible; ++j) {
      for (int64_t d = 0; d < D; ++d) dp[at(j)] += d_o(i, h * D + d) * v(begin + j, h * D + d);
      sum_dp_p += dp[at(j)] * p[at(j)];
    }
    for (int64_t j = 0; j < visible; ++j) {
      const T ds = p[at(j)] * (dp[at(j)] - sum_dp_p) / T(std::sqrt(static_cast<double>(D)));
      for (int64_t c = h * D; c < (h + 1) * D; ++c) {
        out.dv(begin + j, c) += p[at(j)] * d_o(i, c);
        out.dq(i, c) += ds * k(begin + j, c);
        out.dk(begin + j, c) += ds * q(i, c);
      }
    }
  });
  return out;
}

// --- Embedding: x[r] = wte[ids[r]] + wpe[positions[r]] ------------------------------------------------------------

template <class T>
Matrix<T> embedding_forward(const Vector<int32_t>& ids, const Vector<int32_t>& positions, const Matrix<T>& wte,
                            const Matrix<T>& wpe) {
  Matrix<T> x(static_cast<int64_t>(ids.size()), wte.cols);
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) x(r, c) = wte(ids[at(r)], c) + wpe(positions[at(r)], c);
  }
  return x;
}
template <class T>
void embedding_backward(const Vector<int32_t>& ids, const Vector<int32_t>& positions, const Matrix<T>& dx,
                        Matrix<T>& dwte_add, Matrix<T>& dwpe_add) {
  for (int64_t r = 0; r < dx.rows; ++r) {
    for (int64_t c = 0; c < dx.cols; ++c) {
      dwte_add(ids[at(r)], c) += dx(r, c);
      dwpe_add(positions[at(r)], c) += dx(r, c);
    }
  }
}

}  // namespace miaobi::reference

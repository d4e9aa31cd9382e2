// SPDX-License-Identifier: MIT
// Stateless ops: matrix products, norms, activations, softmax, cross-entropy, attention.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "arrays.h"
#include "bindings.h"
#include "miaobi/attention.h"
#include "miaobi/cross_entropy.h"
#include "miaobi/elementwise.h"
#include "miaobi/gemm.h"
#include "miaobi/layer_norm.h"

namespace py = pybind11;
using namespace py::literals;
using namespace miaobi;

namespace {

FloatArray matmul(const FloatArray& a, const FloatArray& b, bool transpose_a, bool transpose_b,
                  std::optional<FloatArray> out) {
  const ConstMat x = const_mat(a, "a"), w = const_mat(b, "b");
  const int64_t m = transpose_a ? x.cols : x.rows, k = transpose_a ? x.rows : x.cols;
  const int64_t kb = transpose_b ? w.cols : w.rows, n = transpose_b ? w.rows : w.cols;
  MIAOBI_CHECK(k == kb, "[matmul] expected the inner dimensions to agree, got (", m, ", ", k, ") x (", kb, ", ", n,
               ")");
  FloatArray c = out ? *out : new_mat(m, n);
  MIAOBI_CHECK(c.ndim() == 2 && c.shape(0) == m && c.shape(1) == n && c.writeable(),
               "[matmul] expected out to be writeable and of shape (", m, ", ", n, ")");
  const auto overlaps = [&](const FloatArray& operand) {
    return operand.data() < c.data() + c.size() && c.data() < operand.data() + operand.size();
  };
  MIAOBI_CHECK(!out || !(overlaps(a) || overlaps(b)), "[matmul] expected out to be apart from a and b");
  float* result = c.mutable_data();
  const py::gil_scoped_release release;
  gemm(m, n, k, left_operand(x, transpose_a), right_operand(w, transpose_b), result, n);
  return c;
}

FloatArray layer_norm(const FloatArray& x, const FloatArray& gamma, const FloatArray& beta, float eps) {
  const ConstMat in = const_mat(x, "x");
  MIAOBI_CHECK(eps > 0, "[layer_norm] expected eps > 0, got ", eps);
  MIAOBI_CHECK(gamma.ndim() == 1 && beta.ndim() == 1 && gamma.size() == in.cols && beta.size() == in.cols,
               "[layer_norm] expected gamma and beta with ", in.cols, " elements, got ", gamma.size(), " and ",
               beta.size());
  FloatArray y = new_mat(in.rows, in.cols);
  const Mat out = mutable_mat(y);
  const py::gil_scoped_release release;
  Buffer<float> statistics(2 * in.rows);
  layer_norm_forward(in, gamma.data(), beta.data(), eps, out, statistics.data(), statistics.data() + in.rows);
  return y;
}

// Any shape, element by element.
template <class F>
FloatArray elementwise(const FloatArray& x, F&& f) {
  FloatArray y(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
  const float* in = x.data();
  float* out = y.mutable_data();
  const py::gil_scoped_release release;
  f(in, static_cast<int64_t>(x.size()), out);
  return y;
}

FloatArray softmax(const FloatArray& x) {
  const ConstMat in = const_mat(x, "x");
  FloatArray y = new_mat(in.rows, in.cols);
  const Mat out = mutable_mat(y);
  const py::gil_scoped_release release;
  softmax_forward(in, out);
  return y;
}

FloatArray token_cross_entropy(const FloatArray& logits, const IntArray& targets) {
  const ConstMat in = const_mat(logits, "logits");
  MIAOBI_CHECK(targets.ndim() == 1 && targets.size() == in.rows, "[cross_entropy] expected one target for each of ",
               in.rows, " rows, got ", targets.size());
  FloatArray losses(in.rows);
  float* out = losses.mutable_data();
  const py::gil_scoped_release release;
  cross_entropy_forward(in, targets.data(), out);
  return losses;
}

// A ragged batch of flat (N, H*D) matrices.
RaggedBatch batch_of(const LongArray& offsets, const ConstMat& q, int64_t heads) {
  check_offsets(offsets, q.rows);
  MIAOBI_CHECK(heads > 0 && q.cols % heads == 0, "[attention] expected columns that ", heads, " heads share, got ",
               q.cols);
  int64_t longest = 0;
  for (py::ssize_t s = 0; s + 1 < offsets.size(); ++s) longest = std::max(longest, offsets.at(s + 1) - offsets.at(s));
  return {offsets.data(), offsets.size() - 1, longest};
}

py::typing::Tuple<FloatArray, FloatArray> attention(const FloatArray& q, const FloatArray& k, const FloatArray& v,
                                                    const LongArray& offsets, int64_t heads, bool causal) {
  const ConstMat qm = const_mat(q, "q"), km = const_mat(k, "k"), vm = const_mat(v, "v");
  const RaggedBatch batch = batch_of(offsets, qm, heads);
  FloatArray o = new_mat(qm.rows, qm.cols), lse = new_mat(qm.rows, heads);
  const Mat om = mutable_mat(o), lm = mutable_mat(lse);
  {
    const py::gil_scoped_release release;
    attention_forward(qm, km, vm, batch, {heads, qm.cols / heads, causal}, om, lm);
  }
  return py::make_tuple(o, lse);
}

py::typing::Tuple<FloatArray, FloatArray, FloatArray> attention_gradients(const FloatArray& d_o, const FloatArray& q,
                                                                          const FloatArray& k, const FloatArray& v,
                                                                          const FloatArray& o, const FloatArray& lse,
                                                                          const LongArray& offsets, int64_t heads,
                                                                          bool causal) {
  const ConstMat qm = const_mat(q, "q"), km = const_mat(k, "k"), vm = const_mat(v, "v");
  const ConstMat gm = const_mat(d_o, "d_o"), om = const_mat(o, "o"), lm = const_mat(lse, "lse");
  const RaggedBatch batch = batch_of(offsets, qm, heads);
  FloatArray dq = new_mat(qm.rows, qm.cols), dk = new_mat(qm.rows, qm.cols), dv = new_mat(qm.rows, qm.cols);
  const Mat dqm = mutable_mat(dq), dkm = mutable_mat(dk), dvm = mutable_mat(dv);
  {
    const py::gil_scoped_release release;
    attention_backward(gm, qm, km, vm, om, lm, batch, {heads, qm.cols / heads, causal}, dqm, dkm, dvm);
  }
  return py::make_tuple(dq, dk, dv);
}

}  // namespace

void register_ops(py::module_& m) {
  m.def("matmul", matmul, "a"_a.noconvert(), "b"_a.noconvert(), "transpose_a"_a = false, "transpose_b"_a = false,
        "out"_a.noconvert() = py::none(),
        "op(a) op(b): float32 (M, K) x (K, N) -> (M, N), in `out` where it is given.");
  m.def("layer_norm", layer_norm, "x"_a.noconvert(), "gamma"_a.noconvert(), "beta"_a.noconvert(), "eps"_a,
        "LayerNorm of the rows of x (M, C).");
  m.def(
      "gelu",
      [](const FloatArray& x) {
        return elementwise(
            x, [](const float* in, int64_t n, float* out) { activation_forward(Activation::kGelu, in, n, out); });
      },
      "x"_a.noconvert(), "GELU, tanh form, of any shape.");
  m.def(
      "gelu_backward",
      [](const FloatArray& dy, const FloatArray& x) {
        MIAOBI_CHECK(dy.size() == x.size(), "[gelu] expected dy with ", x.size(), " elements, got ", dy.size());
        return elementwise(x, [&](const float* in, int64_t n, float* dx) {
          activation_backward(Activation::kGelu, in, dy.data(), n, dx);
        });
      },
      "dy"_a.noconvert(), "x"_a.noconvert(), "dy gelu'(x), of any shape.");
  m.def(
      "exp", [](const FloatArray& x) { return elementwise(x, exp_forward); }, "x"_a.noconvert(),
      "exp of any shape, within 2 ulp.");
  m.def(
      "tanh", [](const FloatArray& x) { return elementwise(x, tanh_forward); }, "x"_a.noconvert(),
      "tanh of any shape, within 1e-6.");
  m.def("softmax", softmax, "x"_a.noconvert(), "Softmax of the rows of x (M, N).");
  m.def("token_cross_entropy", token_cross_entropy, "logits"_a.noconvert(), "targets"_a.noconvert(),
        "Losses in nats (M,) of logits (M, V) at int32 targets (M,); 0 where the target is -100.");
  m.def("attention", attention, "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(), "offsets"_a.noconvert(),
        "heads"_a, "causal"_a,
        "Attention over a ragged batch: q, k, v (N, H*D), int64 offsets (S+1,) -> o (N, H*D),\n"
        "lse (N, H).");
  m.def("attention_backward", attention_gradients, "d_o"_a.noconvert(), "q"_a.noconvert(), "k"_a.noconvert(),
        "v"_a.noconvert(), "o"_a.noconvert(), "lse"_a.noconvert(), "offsets"_a.noconvert(), "heads"_a, "causal"_a,
        "The gradients (dq, dk, dv) of attention, from d_o and what attention() took and gave.");
}

// SPDX-License-Identifier: MIT
// The simple layers: a product, a norm, and the two fusions.
#include "miaobi/layers.h"

#include "miaobi/dropout.h"
#include "miaobi/layer_norm.h"
#include "miaobi/linear.h"

namespace miaobi {
namespace {
constexpr float kInitStd = 0.02f;  // GPT-2
}

Linear::Linear(ParameterArena& arena, int64_t in_dim, int64_t out_dim)
    : weight_(arena.add("weight", {in_dim, out_dim})), bias_(arena.add("bias", {out_dim})) {}

void Linear::initialize(uint64_t seed, uint64_t stream) {
  init_normal(*weight_, kInitStd, seed, stream);
  init_constant(*bias_, 0.0f);
}

void Linear::forward(ConstMat x, const RaggedBatch&, Mat y, Workspace&) {
  x_ = x;
  linear_forward(x, weight_->value_mat(), bias_->value, y);
}

void Linear::backward(ConstMat dy, Mat dx, Workspace&) {
  linear_backward(dy, x_, weight_->value_mat(), dx, weight_->grad_mat(), bias_->grad);
}

LayerNorm::LayerNorm(ParameterArena& arena, int64_t dim, float eps, const std::string& gamma_name,
                     const std::string& beta_name)
    : gamma_(arena.add(gamma_name, {dim})), beta_(arena.add(beta_name, {dim})), eps_(eps) {}

void LayerNorm::initialize(uint64_t, uint64_t) {
  init_constant(*gamma_, 1.0f);
  init_constant(*beta_, 0.0f);
}

void LayerNorm::forward(ConstMat x, const RaggedBatch&, Mat y, Workspace& workspace) {
  x_ = x;
  mean_ = workspace.floats(x.rows);
  rstd_ = workspace.floats(x.rows);
  layer_norm_forward(x, gamma_->value, beta_->value, eps_, y, mean_, rstd_);
}

void LayerNorm::backward(ConstMat dy, Mat dx, Workspace&) {
  layer_norm_backward(dy, x_, gamma_->value, mean_, rstd_, dx, false, gamma_->grad, beta_->grad);
}

void LayerNorm::infer(ConstMat x, Mat y, Workspace& workspace) const {
  const Workspace::Mark mark(workspace);
  layer_norm_forward(x, gamma_->value, beta_->value, eps_, y, workspace.floats(x.rows), workspace.floats(x.rows));
}

FusedLayerNormLinear::FusedLayerNormLinear(ParameterArena& arena, int64_t in_dim, int64_t out_dim, float eps,
                                           const Names& names)
    : gamma_(arena.add(names.gamma, {in_dim})),
      beta_(arena.add(names.beta, {in_dim})),
      weight_(arena.add(names.weight, {in_dim, out_dim})),
      bias_(arena.add(names.bias, {out_dim})),
      eps_(eps) {}

void FusedLayerNormLinear::initialize(uint64_t seed, uint64_t stream) {
  init_constant(*gamma_, 1.0f);
  init_constant(*beta_, 0.0f);
  init_normal(*weight_, kInitStd, seed, stream);
  init_constant(*bias_, 0.0f);
}

void FusedLayerNormLinear::forward(ConstMat x, const RaggedBatch&, Mat y, Workspace& workspace) {
  x_ = x;
  mean_ = workspace.floats(x.rows);
  rstd_ = workspace.floats(x.rows);
  layer_norm_linear_forward(x, view(mean_, rstd_), eps_, weight_->value_mat(), bias_->value, y);
}

void FusedLayerNormLinear::infer(ConstMat x, Mat y, Workspace& workspace) const {
  const Workspace::Mark mark(workspace);
  const LayerNormView ln = view(workspace.floats(x.rows), workspace.floats(x.rows));
  if (packed_.n() > 0) {
    layer_norm_linear_forward(x, ln, eps_, packed_, bias_->value, y);
  } else {
    layer_norm_linear_forward(x, ln, eps_, weight_->value_mat(), bias_->value, y);
  }
}

void FusedLayerNormLinear::backward(ConstMat dy, Mat dx, Workspace& workspace) {
  backward_into(dy, dx, false, workspace);
}

void FusedLayerNormLinear::backward_into(ConstMat dy, Mat dx, bool accumulate, Workspace& workspace) {
  layer_norm_linear_backward(dy, x_, view(mean_, rstd_), weight_->value_mat(), dx, accumulate, gamma_->grad,
                             beta_->grad, weight_->grad_mat(), bias_->grad, workspace);
}

FusedActivationLinear::FusedActivationLinear(ParameterArena& arena, Activation kind, int64_t in_dim, int64_t out_dim,
                                             const Names& names)
    : weight_(arena.add(names.weight, {in_dim, out_dim})), bias_(arena.add(names.bias, {out_dim})), kind_(kind) {}

void FusedActivationLinear::initialize(uint64_t seed, uint64_t stream) { initialize_scaled(kInitStd, seed, stream); }

void FusedActivationLinear::initialize_scaled(float std, uint64_t seed, uint64_t stream) {
  init_normal(*weight_, std, seed, stream);
  init_constant(*bias_, 0.0f);
}

void FusedActivationLinear::forward(ConstMat x, const RaggedBatch&, Mat y, Workspace&) { forward_add(x, {}, y); }

void FusedActivationLinear::forward_add(ConstMat x, ConstMat residual, Mat y) {
  x_ = x;
  activation_linear_forward(kind_, x, weight_->value_mat(), bias_->value, y, residual, dropout_);
}

void FusedActivationLinear::infer(ConstMat x, ConstMat residual, Mat y) const {
  if (packed_.n() > 0) {
    activation_linear_forward(kind_, x, packed_, bias_->value, y, residual);
  } else {
    activation_linear_forward(kind_, x, weight_->value_mat(), bias_->value, y, residual);
  }
}

void FusedActivationLinear::backward(ConstMat dy, Mat dx, Workspace& workspace) {
  const Workspace::Mark mark(workspace);
  ConstMat g = dy;
  if (dropout_.is_on()) {  // three products read it: made once, not in each of their packings
    const Mat dropped = workspace.mat(dy.rows, dy.cols);
    dropout(dropout_, dy, dropped);
    g = dropped;
  }
  activation_linear_backward(kind_, g, x_, weight_->value_mat(), dx, weight_->grad_mat(), bias_->grad);
}

}  // namespace miaobi

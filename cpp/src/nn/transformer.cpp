// SPDX-License-Identifier: MIT
// Self-attention, feed-forward and the block made of both.
#include <cstring>

#include "miaobi/check.h"
#include "miaobi/layers.h"

namespace miaobi {
namespace {

// dx receives a copy of dy unless it is dy, so that a sublayer can add its share to the residual's.
void start_residual(ConstMat dy, Mat dx) {
  if (dx.data == dy.data) return;
  for (int64_t r = 0; r < dy.rows; ++r) {
    std::memcpy(dx.row(r), dy.row(r), static_cast<size_t>(dy.cols) * sizeof(float));
  }
}

// The last row of each sequence of a step, as a step and of a matrix.
KVCache::Step last_rows(const KVCache::Step& step, Workspace& workspace) {
  const int64_t sequences = step.batch.sequences;
  auto* starts = static_cast<int64_t*>(workspace.bytes((2 * sequences + 1) * static_cast<int64_t>(sizeof(int64_t))));
  int64_t* offsets = starts + sequences;
  for (int64_t s = 0; s <= sequences; ++s) offsets[s] = s;
  for (int64_t s = 0; s < sequences; ++s) {
    starts[s] = step.starts[s] + step.batch.offsets[s + 1] - step.batch.offsets[s] - 1;
  }
  return {step.sequences, starts, {offsets, sequences, 1}};
}

ConstMat last_rows(ConstMat x, const KVCache::Step& step, Workspace& workspace) {
  const Mat last = workspace.mat(step.batch.sequences, x.cols);
  for (int64_t s = 0; s < last.rows; ++s) {
    std::memcpy(last.row(s), x.row(step.batch.offsets[s + 1] - 1), static_cast<size_t>(x.cols) * sizeof(float));
  }
  return last;
}

}  // namespace

InputProjection::InputProjection(ParameterArena& arena, int64_t in_dim, int64_t out_dim, float eps,
                                 const Names& names) {
  if (names.gamma.empty()) {
    plain_ = std::make_unique<FusedActivationLinear>(arena, Activation::kNone, in_dim, out_dim,
                                                     FusedActivationLinear::Names{names.weight, names.bias});
  } else {
    norm_ = std::make_unique<FusedLayerNormLinear>(
        arena, in_dim, out_dim, eps, FusedLayerNormLinear::Names{names.gamma, names.beta, names.weight, names.bias});
  }
}

void InputProjection::initialize(uint64_t seed, uint64_t stream) {
  if (norm_) norm_->initialize(seed, stream);
  if (plain_) plain_->initialize(seed, stream);
}

void InputProjection::forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace) {
  if (norm_) norm_->forward(x, batch, y, workspace);
  if (plain_) plain_->forward(x, batch, y, workspace);
}

void InputProjection::backward(ConstMat dy, ConstMat d_sublayer, Mat dx, Workspace& workspace) {
  if (plain_) {
    plain_->backward(dy, dx, workspace);
    return;
  }
  start_residual(d_sublayer, dx);
  norm_->backward_add(dy, dx, workspace);
}

void InputProjection::infer(ConstMat x, Mat y, Workspace& workspace) const {
  if (norm_) norm_->infer(x, y, workspace);
  if (plain_) plain_->infer(x, {}, y);
}

void InputProjection::pack(WeightType type) {
  if (norm_) norm_->pack(type);
  if (plain_) plain_->pack(type);
}

void InputProjection::unpack() {
  if (norm_) norm_->unpack();
  if (plain_) plain_->unpack();
}

SelfAttention::SelfAttention(ParameterArena& arena, int64_t dim, int64_t heads, float eps, const Names& names)
    : dim_(dim),
      shape_{heads, heads > 0 ? dim / heads : 0, true},
      qkv_projection_(arena, dim, 3 * dim, eps, {names.w_qkv, names.b_qkv, names.gamma, names.beta}),
      output_(arena, Activation::kNone, dim, dim, {names.w_o, names.b_o}) {
  MIAOBI_CHECK(heads > 0 && dim > 0 && dim % heads == 0, "[self_attention] expected a width that ", heads,
               " heads share evenly, got ", dim);
}

void SelfAttention::initialize_scaled(float output_std, uint64_t seed, uint64_t stream) {
  qkv_projection_.initialize(seed, stream);
  output_.initialize_scaled(output_std, seed, stream + 1);
}

void SelfAttention::forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace) {
  batch_ = batch;
  qkv_ = workspace.mat(x.rows, 3 * dim_);
  o_ = workspace.mat(x.rows, dim_);
  lse_ = workspace.mat(x.rows, shape_.heads);
  qkv_projection_.forward(x, batch, qkv_, workspace);
  attention_forward(qkv_.col_block(0, dim_), qkv_.col_block(dim_, dim_), qkv_.col_block(2 * dim_, dim_), batch, shape_,
                    o_, lse_);
  output_.forward_add(o_, qkv_projection_.residual(x), y);
}

void SelfAttention::backward(ConstMat dy, Mat dx, Workspace& workspace) {
  const Workspace::Mark mark(workspace);
  const Mat d_o = workspace.mat(dy.rows, dim_), dqkv = workspace.mat(dy.rows, 3 * dim_);
  output_.backward(dy, d_o, workspace);
  attention_backward(d_o, qkv_.col_block(0, dim_), qkv_.col_block(dim_, dim_), qkv_.col_block(2 * dim_, dim_), o_, lse_,
                     batch_, shape_, dqkv.col_block(0, dim_), dqkv.col_block(dim_, dim_),
                     dqkv.col_block(2 * dim_, dim_));
  qkv_projection_.backward(dqkv, dy, dx, workspace);
}

void SelfAttention::forward_cached(ConstMat x, KVCache& cache, const KVCache::Step& step, int64_t layer, Mat y,
                                   Workspace& workspace) const {
  const Workspace::Mark mark(workspace);
  const Mat qkv = workspace.mat(x.rows, 3 * dim_), o = workspace.mat(y.rows, dim_);
  qkv_projection_.infer(x, qkv, workspace);
  cache.write(layer, step, qkv.col_block(dim_, dim_), qkv.col_block(2 * dim_, dim_));
  KVCache::Step queries = step;
  ConstMat q = qkv.col_block(0, dim_);
  if (y.rows != x.rows) {
    queries = last_rows(step, workspace);
    q = last_rows(q, step, workspace);
    x = last_rows(x, step, workspace);
  }
  cache.attend(layer, queries, q, o);
  output_.infer(o, qkv_projection_.residual(x), y);
}

void SelfAttention::pack(WeightType type) {
  qkv_projection_.pack(type);
  output_.pack(type);
}

void SelfAttention::unpack() {
  qkv_projection_.unpack();
  output_.unpack();
}

FeedForward::FeedForward(ParameterArena& arena, int64_t dim, int64_t hidden_dim, Activation activation, float eps,
                         const Names& names)
    : hidden_projection_(arena, dim, hidden_dim, eps, {names.w1, names.b1, names.gamma, names.beta}),
      output_(arena, activation, hidden_dim, dim, {names.w2, names.b2}) {}

void FeedForward::initialize_scaled(float output_std, uint64_t seed, uint64_t stream) {
  hidden_projection_.initialize(seed, stream);
  output_.initialize_scaled(output_std, seed, stream + 1);
}

void FeedForward::forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace) {
  hidden_ = workspace.mat(x.rows, output_.in_dim());
  hidden_projection_.forward(x, batch, hidden_, workspace);
  output_.forward_add(hidden_, hidden_projection_.residual(x), y);
}

void FeedForward::backward(ConstMat dy, Mat dx, Workspace& workspace) {
  const Workspace::Mark mark(workspace);
  const Mat d_hidden = workspace.mat(dy.rows, output_.in_dim());
  output_.backward(dy, d_hidden, workspace);
  hidden_projection_.backward(d_hidden, dy, dx, workspace);
}

void FeedForward::infer(ConstMat x, Mat y, Workspace& workspace) const {
  const Workspace::Mark mark(workspace);
  const Mat hidden = workspace.mat(x.rows, output_.in_dim());
  hidden_projection_.infer(x, hidden, workspace);
  output_.infer(hidden, hidden_projection_.residual(x), y);
}

void FeedForward::pack(WeightType type) {
  hidden_projection_.pack(type);
  output_.pack(type);
}

void FeedForward::unpack() {
  hidden_projection_.unpack();
  output_.unpack();
}

TransformerBlock::TransformerBlock(ParameterArena& arena, int64_t dim, int64_t hidden_dim, int64_t heads,
                                   Activation activation, float eps, const std::string& prefix)
    : attention_(arena, dim, heads, eps,
                 {prefix + "attn.c_attn.weight", prefix + "attn.c_attn.bias", prefix + "attn.c_proj.weight",
                  prefix + "attn.c_proj.bias", prefix + "ln_1.weight", prefix + "ln_1.bias"}),
      feed_forward_(arena, dim, hidden_dim, activation, eps,
                    {prefix + "mlp.c_fc.weight", prefix + "mlp.c_fc.bias", prefix + "mlp.c_proj.weight",
                     prefix + "mlp.c_proj.bias", prefix + "ln_2.weight", prefix + "ln_2.bias"}) {}

void TransformerBlock::initialize_scaled(float output_std, uint64_t seed, uint64_t stream) {
  attention_.initialize_scaled(output_std, seed, stream);
  feed_forward_.initialize_scaled(output_std, seed, stream + 2);
}

void TransformerBlock::set_dropout(const DropoutMask& attention, const DropoutMask& feed_forward) {
  attention_.set_dropout(attention);
  feed_forward_.set_dropout(feed_forward);
}

void TransformerBlock::forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace) {
  const Mat middle = workspace.mat(x.rows, x.cols);
  attention_.forward(x, batch, middle, workspace);
  feed_forward_.forward(middle, batch, y, workspace);
}

void TransformerBlock::backward(ConstMat dy, Mat dx, Workspace& workspace) {
  feed_forward_.backward(dy, dx, workspace);
  attention_.backward(dx, dx, workspace);
}

void TransformerBlock::forward_cached(ConstMat x, KVCache& cache, const KVCache::Step& step, int64_t layer, Mat y,
                                      Workspace& workspace) const {
  const Workspace::Mark mark(workspace);
  const Mat middle = workspace.mat(y.rows, x.cols);
  attention_.forward_cached(x, cache, step, layer, middle, workspace);
  feed_forward_.infer(middle, y, workspace);
}

void TransformerBlock::pack(WeightType type) {
  attention_.pack(type);
  feed_forward_.pack(type);
}

void TransformerBlock::unpack() {
  attention_.unpack();
  feed_forward_.unpack();
}

}  // namespace miaobi

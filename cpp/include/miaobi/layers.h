// SPDX-License-Identifier: MIT
// Layers that own parameters. One interface for all; formulas and gradients are those of the ops they call.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "miaobi/attention.h"
#include "miaobi/dropout_mask.h"
#include "miaobi/gemm.h"
#include "miaobi/kv_cache.h"
#include "miaobi/linear.h"
#include "miaobi/memory.h"
#include "miaobi/parameters.h"

namespace miaobi {

// A layer's parameters live in an arena that its maker owns; pointers are valid after arena.allocate().
//
// forward   y (N, out) from x (N, in), N the tokens of the batch. What backward needs is kept in
//           `workspace`, which must not be reset before backward; x must stay as it is until then.
// backward  dx (N, in) from dy (N, out), for the last forward; parameter gradients accumulate. dx is
//           overwritten and may be dy only in layers with a residual connection, where that saves a copy.
//           Scratch is taken from `workspace` and given back.
//
// pack      makes a copy of the weights that `infer` and `forward_cached` read faster, or in bfloat16; unpack drops it.
//           Forward and backward never use it, so it has to be made again where they change weights.
class Layer {
 public:
  virtual ~Layer() = default;
  virtual const char* type() const = 0;
  virtual int64_t in_dim() const = 0;
  virtual int64_t out_dim() const = 0;
  virtual void initialize(uint64_t seed, uint64_t stream) = 0;
  virtual void forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace) = 0;
  virtual void backward(ConstMat dy, Mat dx, Workspace& workspace) = 0;
};

// Y = X W + b. weight (in, out) starts normal with deviation 0.02 (as GPT-2), bias (out) zero.
class Linear final : public Layer {
 public:
  Linear(ParameterArena& arena, int64_t in_dim, int64_t out_dim);
  const char* type() const override { return "Linear"; }
  int64_t in_dim() const override { return weight_->shape[0]; }
  int64_t out_dim() const override { return weight_->shape[1]; }
  void initialize(uint64_t seed, uint64_t stream) override;
  void forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace) override;
  void backward(ConstMat dy, Mat dx, Workspace& workspace) override;

 private:
  Parameter *weight_, *bias_;
  ConstMat x_;
};

// y = LayerNorm(x). gamma (dim) starts at one, beta (dim) at zero.
class LayerNorm final : public Layer {
 public:
  LayerNorm(ParameterArena& arena, int64_t dim, float eps = 1e-5f, const std::string& gamma_name = "gamma",
            const std::string& beta_name = "beta");
  const char* type() const override { return "LayerNorm"; }
  int64_t in_dim() const override { return gamma_->size; }
  int64_t out_dim() const override { return gamma_->size; }
  void initialize(uint64_t seed, uint64_t stream) override;
  void forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace) override;
  void backward(ConstMat dy, Mat dx, Workspace& workspace) override;
  // Without keeping anything.
  void infer(ConstMat x, Mat y, Workspace& workspace) const;

 private:
  Parameter *gamma_, *beta_;
  float eps_;
  ConstMat x_;
  float *mean_ = nullptr, *rstd_ = nullptr;
};

// Y = LayerNorm(X) W + b; the normalised X is never in memory.
class FusedLayerNormLinear final : public Layer {
 public:
  struct Names {
    std::string gamma = "gamma", beta = "beta", weight = "weight", bias = "bias";
  };
  FusedLayerNormLinear(ParameterArena& arena, int64_t in_dim, int64_t out_dim, float eps, const Names& names);
  const char* type() const override { return "FusedLayerNormLinear"; }
  int64_t in_dim() const override { return weight_->shape[0]; }
  int64_t out_dim() const override { return weight_->shape[1]; }
  void initialize(uint64_t seed, uint64_t stream) override;
  void forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace) override;
  void backward(ConstMat dy, Mat dx, Workspace& workspace) override;
  // dx += instead of dx =.
  void backward_add(ConstMat dy, Mat dx_add, Workspace& workspace) { backward_into(dy, dx_add, true, workspace); }
  void infer(ConstMat x, Mat y, Workspace& workspace) const;
  void pack(WeightType type) { packed_ = PackedMatrix(right_operand(weight_->value_mat()), out_dim(), in_dim(), type); }
  void unpack() { packed_ = PackedMatrix(); }

 private:
  LayerNormView view(float* mean, float* rstd) const { return {gamma_->value, beta_->value, mean, rstd}; }
  void backward_into(ConstMat dy, Mat dx, bool accumulate, Workspace& workspace);

  Parameter *gamma_, *beta_, *weight_, *bias_;
  PackedMatrix packed_;
  float eps_;
  ConstMat x_;
  float *mean_ = nullptr, *rstd_ = nullptr;
};

// Y = mask (activation(X) W + b) [+ R]; the activated X is never in memory. With GELU it is FusedGELULinear.
class FusedActivationLinear final : public Layer {
 public:
  struct Names {
    std::string weight = "weight", bias = "bias";
  };
  FusedActivationLinear(ParameterArena& arena, Activation kind, int64_t in_dim, int64_t out_dim, const Names& names);
  const char* type() const override { return "FusedGELULinear"; }
  int64_t in_dim() const override { return weight_->shape[0]; }
  int64_t out_dim() const override { return weight_->shape[1]; }
  void initialize(uint64_t seed, uint64_t stream) override;
  // `initialize` with another deviation: GPT-2 scales the projections that feed the residual stream.
  void initialize_scaled(float std, uint64_t seed, uint64_t stream);
  void forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace) override;
  void forward_add(ConstMat x, ConstMat residual, Mat y);  // y = ... + residual
  // The mask of forward and backward from here on; off at first. `infer` never drops.
  void set_dropout(const DropoutMask& mask) { dropout_ = mask; }
  void backward(ConstMat dy, Mat dx, Workspace& workspace) override;
  void infer(ConstMat x, ConstMat residual, Mat y) const;
  void pack(WeightType type) { packed_ = PackedMatrix(right_operand(weight_->value_mat()), out_dim(), in_dim(), type); }
  void unpack() { packed_ = PackedMatrix(); }

 private:
  Parameter *weight_, *bias_;
  PackedMatrix packed_;
  Activation kind_;
  DropoutMask dropout_;
  ConstMat x_;
};

// The first projection of a sublayer, Y = n(X) W + b: n is a LayerNorm where the names give it one, fused into the
// product, and then the sublayer adds X to what it puts out; else n is the identity.
class InputProjection {
 public:
  struct Names {
    std::string weight, bias, gamma, beta;  // gamma and beta empty: no LayerNorm
  };
  InputProjection(ParameterArena& arena, int64_t in_dim, int64_t out_dim, float eps, const Names& names);
  void initialize(uint64_t seed, uint64_t stream);
  ConstMat residual(ConstMat x) const { return norm_ ? x : ConstMat{}; }
  void forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace);
  // dx of the whole sublayer, whose output has the gradient d_sublayer; the two may be the same.
  void backward(ConstMat dy, ConstMat d_sublayer, Mat dx, Workspace& workspace);
  void infer(ConstMat x, Mat y, Workspace& workspace) const;
  void pack(WeightType type);
  void unpack();

 private:
  std::unique_ptr<FusedLayerNormLinear> norm_;  // one of the two
  std::unique_ptr<FusedActivationLinear> plain_;
};

// Causal multi-head self-attention with one projection for Q, K and V:
//   [Q K V] = n(X) W_qkv + b_qkv,   Y = attention(Q, K, V) W_o + b_o  [+ X]
// Plain, n is the identity and there is no residual; as a sublayer of a block, n is a LayerNorm, fused into
// the first product, and X is added at the end. Dropout, where it is set, is on the output projection, before X; the
// probabilities within attention are not dropped (gpt.h says why).
class SelfAttention final : public Layer {
 public:
  struct Names {
    std::string w_qkv = "w_qkv", b_qkv = "b_qkv", w_o = "w_o", b_o = "b_o";
    std::string gamma, beta;  // both empty: plain
  };
  SelfAttention(ParameterArena& arena, int64_t dim, int64_t heads, float eps, const Names& names);
  const char* type() const override { return "SelfAttention"; }
  int64_t in_dim() const override { return dim_; }
  int64_t out_dim() const override { return dim_; }
  int64_t heads() const { return shape_.heads; }
  int64_t head_size() const { return shape_.head_size; }
  void initialize(uint64_t seed, uint64_t stream) override { initialize_scaled(0.02f, seed, stream); }
  void initialize_scaled(float output_std, uint64_t seed, uint64_t stream);
  void set_dropout(const DropoutMask& mask) { output_.set_dropout(mask); }
  void forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace) override;
  void backward(ConstMat dy, Mat dx, Workspace& workspace) override;
  // Rows of x continue the cached sequences as `step` says; their keys and values are appended first. y has a row for
  // each of x, or only for the last one of each sequence.
  void forward_cached(ConstMat x, KVCache& cache, const KVCache::Step& step, int64_t layer, Mat y,
                      Workspace& workspace) const;
  void pack(WeightType type);
  void unpack();

 private:
  int64_t dim_;
  AttentionShape shape_;
  InputProjection qkv_projection_;
  FusedActivationLinear output_;
  RaggedBatch batch_{};
  Mat qkv_, o_, lse_;
};

// Y = activation(n(X) W1 + b1) W2 + b2 [+ X], plain or as a sublayer like SelfAttention; dropout likewise.
class FeedForward final : public Layer {
 public:
  struct Names {
    std::string w1 = "w1", b1 = "b1", w2 = "w2", b2 = "b2";
    std::string gamma, beta;  // both empty: plain
  };
  FeedForward(ParameterArena& arena, int64_t dim, int64_t hidden_dim, Activation activation, float eps,
              const Names& names);
  const char* type() const override { return "FeedForward"; }
  int64_t in_dim() const override { return output_.out_dim(); }
  int64_t out_dim() const override { return output_.out_dim(); }
  void initialize(uint64_t seed, uint64_t stream) override { initialize_scaled(0.02f, seed, stream); }
  void initialize_scaled(float output_std, uint64_t seed, uint64_t stream);
  void set_dropout(const DropoutMask& mask) { output_.set_dropout(mask); }
  void forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace) override;
  void backward(ConstMat dy, Mat dx, Workspace& workspace) override;
  void infer(ConstMat x, Mat y, Workspace& workspace) const;
  void pack(WeightType type);
  void unpack();

 private:
  InputProjection hidden_projection_;
  FusedActivationLinear output_;
  Mat hidden_;  // before the activation
};

// Pre-LN block of GPT-2:  H = X + SelfAttention(LN1(X)),  Y = H + FeedForward(LN2(H)).
class TransformerBlock final : public Layer {
 public:
  // `prefix` and HF GPT-2's names below it: "ln_1.weight", "attn.c_attn.weight", ...
  TransformerBlock(ParameterArena& arena, int64_t dim, int64_t hidden_dim, int64_t heads, Activation activation,
                   float eps, const std::string& prefix);
  const char* type() const override { return "TransformerBlock"; }
  int64_t in_dim() const override { return attention_.in_dim(); }
  int64_t out_dim() const override { return attention_.in_dim(); }
  void initialize(uint64_t seed, uint64_t stream) override { initialize_scaled(0.02f, seed, stream); }
  void initialize_scaled(float output_std, uint64_t seed, uint64_t stream);
  void set_dropout(const DropoutMask& attention, const DropoutMask& feed_forward);
  void forward(ConstMat x, const RaggedBatch& batch, Mat y, Workspace& workspace) override;
  void backward(ConstMat dy, Mat dx, Workspace& workspace) override;
  void forward_cached(ConstMat x, KVCache& cache, const KVCache::Step& step, int64_t layer, Mat y,
                      Workspace& workspace) const;
  void pack(WeightType type);
  void unpack();

 private:
  SelfAttention attention_;
  FeedForward feed_forward_;
};

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// The decoder-only transformer of GPT-2 (Radford et al. 2019), on ragged batches.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "miaobi/cross_entropy.h"
#include "miaobi/dropout.h"
#include "miaobi/kv_cache.h"
#include "miaobi/layers.h"

namespace miaobi {

struct GPTConfig {
  int64_t vocab_size = 0;
  int64_t n_positions = 0;
  int64_t n_embd = 0;
  int64_t n_layer = 0;
  int64_t n_head = 0;
  int64_t n_inner = 0;
  Activation activation = Activation::kGelu;
  float layer_norm_epsilon = 1e-5f;
  bool tie_word_embeddings = true;

  void validate() const;  // throws Error that names the field
};

// x = wte[ids] + wpe[positions];  n_layer pre-LN blocks;  logits = LayerNorm(x) W_head^T, W_head = wte where
// tied. Initialised as GPT-2: normal of deviation 0.02, the projections into the residual stream divided by
// sqrt(2 n_layer), biases 0, norms 1 and 0.
//
// A batch is N flat ids and sequence offsets; positions start at 0 in every sequence, and attention does not
// cross sequences. All functions throw Error for ids outside the vocabulary, offsets that do not ascend from
// 0 to N, and sequences longer than n_positions. After the first step of a given size nothing is allocated.
// Not thread-safe, except that forward_cached may run on many threads with different caches and workspaces.
class GPT {
 public:
  GPT(const GPTConfig& config, uint64_t seed);

  const GPTConfig& config() const { return config_; }
  ParameterArena& arena() { return arena_; }
  const ParameterArena& arena() const { return arena_; }

  // ids (N), offsets (sequences + 1); logits (N, V).
  void forward(const int32_t* ids, const int64_t* offsets, int64_t sequences, Mat logits);

  // Losses in nats per token into losses (N), 0 where the target is kIgnoreIndex; keeps what backward needs.
  // `predicted` (N), where not null, receives the likeliest token at each target that counts.
  void token_losses(const int32_t* ids, const int32_t* targets, const int64_t* offsets, int64_t sequences,
                    float* losses, int32_t* predicted = nullptr);
  // Adds the gradients of scale * sum(losses) of the last token_losses. The logits are formed again, so
  // where both are wanted loss_backward is cheaper. Once for each token_losses; Error otherwise.
  void backward(float scale);
  // token_losses and backward in one pass over the LM head; `terms` are in the gradients alone. With `dropout`, here
  // and nowhere else, elements are dropped where GPT-2 does: of the embeddings' sum (place 0), and of what each
  // attention (place 2l + 1) and feed-forward (2l + 2) of layer l adds to the residual stream. Attention probabilities
  // are not: their mask would be the largest by far, T numbers for each token and head, made twice, in the middle of a
  // tile that is otherwise products.
  void loss_backward(const int32_t* ids, const int32_t* targets, const int64_t* offsets, int64_t sequences, float scale,
                     float* losses, const LossTerms& terms = {}, const DropoutStep& dropout = {});

  // What every position looks at: softmax(Q K^T / sqrt(D)) of each layer and head for one sequence of `tokens` ids,
  // into weights (L, H, T, T), row i over the keys 0 .. i and 0 after them. For looking at: it forms whole matrices.
  void attention_weights(const int32_t* ids, int64_t tokens, float* weights);

  // Appends rows to cached sequences and gives the logits after the last row of each: ids (N), offsets over
  // `sequences` entries of `cached`; logits (sequences, V). A sequence must get at least one row and stay
  // within n_positions.
  // Where pack() was called, with its copy of the weights.
  void forward_cached(KVCache& cache, const int64_t* cached, const int32_t* ids, const int64_t* offsets,
                      int64_t sequences, Mat logits, Workspace& workspace) const;
  // Copies the matrices into the form that forward_cached reads fastest. After weights have been changed, make it anew;
  // gradients drop it. Not while another thread is in forward_cached.
  void pack(WeightType type);
  void unpack();
  bool is_packed() const { return packed_head_.n() > 0; }
  WeightType packed_as() const { return packed_head_.type(); }

 private:
  struct Batch {
    int32_t* ids;
    int32_t* targets;
    int32_t* positions;
    RaggedBatch ragged;
  };
  // Checks and copies the batch into the workspace (a caller's arrays need not outlive the call).
  Batch prepare(const int32_t* ids, const int32_t* targets, const int64_t* offsets, int64_t sequences,
                const int64_t* starts, Workspace& workspace) const;
  // The hidden states before the head; with everything that backward needs.
  Mat trunk(const Batch& batch, const DropoutStep& dropout = {});
  void backward_trunk(Mat g);
  void head_backward(float scale, float* losses, const LossTerms& terms);
  ConstMat head() const { return head_->value_mat(); }

  GPTConfig config_;
  ParameterArena arena_;
  Parameter *wte_, *wpe_, *head_;
  PackedMatrix packed_head_;
  std::vector<std::unique_ptr<TransformerBlock>> blocks_;
  std::unique_ptr<LayerNorm> final_norm_;
  Workspace workspace_;
  Batch batch_{};
  Mat hidden_;  // (N, C) after the last norm
  DropoutMask embedding_dropout_;
  bool has_forward_ = false;
};

}  // namespace miaobi

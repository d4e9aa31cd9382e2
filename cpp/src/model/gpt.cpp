// SPDX-License-Identifier: MIT
// GPT: embeddings, blocks and the head, for training and for decoding.
#include "miaobi/gpt.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "miaobi/check.h"
#include "miaobi/embedding.h"
#include "miaobi/gemm.h"

namespace miaobi {

void GPTConfig::validate() const {
  const auto positive = [](const char* name, int64_t value) {
    MIAOBI_CHECK(value > 0, "[gpt] expected a positive ", name, ", got ", value);
  };
  positive("vocab_size", vocab_size);
  positive("n_positions", n_positions);
  positive("n_embd", n_embd);
  positive("n_layer", n_layer);
  positive("n_head", n_head);
  positive("n_inner", n_inner);
  MIAOBI_CHECK(n_embd % n_head == 0, "[gpt] expected n_embd divisible by n_head, got ", n_embd, " and ", n_head);
  MIAOBI_CHECK(layer_norm_epsilon > 0, "[gpt] expected a positive layer_norm_epsilon, got ", layer_norm_epsilon);
}

GPT::GPT(const GPTConfig& config, uint64_t seed) : config_(config) {
  config.validate();
  wte_ = arena_.add("transformer.wte.weight", {config.vocab_size, config.n_embd});
  wpe_ = arena_.add("transformer.wpe.weight", {config.n_positions, config.n_embd});
  for (int64_t l = 0; l < config.n_layer; ++l) {
    blocks_.push_back(std::make_unique<TransformerBlock>(arena_, config.n_embd, config.n_inner, config.n_head,
                                                         config.activation, config.layer_norm_epsilon,
                                                         "transformer.h." + std::to_string(l) + "."));
  }
  final_norm_ = std::make_unique<LayerNorm>(arena_, config.n_embd, config.layer_norm_epsilon, "transformer.ln_f.weight",
                                            "transformer.ln_f.bias");
  head_ = config.tie_word_embeddings ? wte_ : arena_.add("lm_head.weight", {config.vocab_size, config.n_embd});
  arena_.allocate();

  constexpr float kStd = 0.02f;
  constexpr uint64_t kStreamsPerBlock = 4;
  init_normal(*wte_, kStd, seed, 0);
  init_normal(*wpe_, kStd, seed, 1);
  if (head_ != wte_) init_normal(*head_, kStd, seed, 2);
  final_norm_->initialize(seed, 3);
  const float residual_std = kStd / std::sqrt(2.0f * static_cast<float>(config.n_layer));
  for (size_t l = 0; l < blocks_.size(); ++l) {
    blocks_[l]->initialize_scaled(residual_std, seed, (l + 1) * kStreamsPerBlock);
  }
}

GPT::Batch GPT::prepare(const int32_t* ids, const int32_t* targets, const int64_t* offsets, int64_t sequences,
                        const int64_t* starts, Workspace& workspace) const {
  const int64_t tokens = offsets[sequences];
  MIAOBI_CHECK(offsets[0] == 0, "[gpt] expected offsets that start at 0, got ", offsets[0]);
  Batch batch{};
  int64_t longest = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t length = offsets[s + 1] - offsets[s];
    MIAOBI_CHECK(length >= 0 && offsets[s + 1] <= tokens, "[gpt] expected ascending offsets, got ", offsets[s], " and ",
                 offsets[s + 1]);
    const int64_t start = starts != nullptr ? starts[s] : 0;
    MIAOBI_CHECK(start + length <= config_.n_positions,
                 "[gpt] expected sequences of at most n_positions = ", config_.n_positions, " tokens, got ",
                 start + length, "; split them or train with a longer context");
    longest = std::max(longest, length);
  }
  auto* own_offsets = static_cast<int64_t*>(workspace.bytes((sequences + 1) * static_cast<int64_t>(sizeof(int64_t))));
  std::copy(offsets, offsets + sequences + 1, own_offsets);
  batch.ragged = {own_offsets, sequences, longest};
  const auto ints = [&] {
    return static_cast<int32_t*>(workspace.bytes(tokens * static_cast<int64_t>(sizeof(int32_t))));
  };
  batch.ids = ints();
  batch.positions = ints();
  batch.targets = ints();
  for (int64_t i = 0; i < tokens; ++i) {
    MIAOBI_CHECK(ids[i] >= 0 && ids[i] < config_.vocab_size, "[gpt] expected ids in [0, ", config_.vocab_size,
                 "), got ", ids[i], " at position ", i);
    batch.ids[i] = ids[i];
    batch.targets[i] = targets != nullptr ? targets[i] : kIgnoreIndex;
  }
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t start = starts != nullptr ? starts[s] : 0;
    for (int64_t i = offsets[s]; i < offsets[s + 1]; ++i) {
      batch.positions[i] = static_cast<int32_t>(start + i - offsets[s]);
    }
  }
  return batch;
}

Mat GPT::trunk(const Batch& batch, const DropoutStep& step) {
  const int64_t tokens = batch.ragged.tokens();
  // A later batch may have longer sequences than the first.
  attention_reserve({config_.n_head, config_.n_embd / config_.n_head, true}, config_.n_positions);
  Mat x = workspace_.mat(tokens, config_.n_embd);
  embedding_forward(batch.ids, batch.positions, wte_->value_mat(), wpe_->value_mat(), x);
  embedding_dropout_ = step.mask(0);
  if (embedding_dropout_.is_on()) dropout(embedding_dropout_, x, x);
  int64_t place = 1;
  for (const auto& block : blocks_) {
    block->set_dropout(step.mask(place), step.mask(place + 1));
    place += 2;
    const Mat y = workspace_.mat(tokens, config_.n_embd);
    block->forward(x, batch.ragged, y, workspace_);
    x = y;
  }
  const Mat hidden = workspace_.mat(tokens, config_.n_embd);
  final_norm_->forward(x, batch.ragged, hidden, workspace_);
  return hidden;
}

void GPT::backward_trunk(Mat g) {
  final_norm_->backward(g, g, workspace_);
  for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) (*block)->backward(g, g, workspace_);
  if (embedding_dropout_.is_on()) dropout(embedding_dropout_, g, g);
  embedding_backward(batch_.ids, batch_.positions, g, wte_->grad_mat(), wpe_->grad_mat());
}

void GPT::forward(const int32_t* ids, const int64_t* offsets, int64_t sequences, Mat logits) {
  has_forward_ = false;
  workspace_.reset();
  batch_ = prepare(ids, nullptr, offsets, sequences, nullptr, workspace_);
  hidden_ = trunk(batch_);
  gemm(hidden_.rows, config_.vocab_size, config_.n_embd, left_operand(hidden_), right_operand(head(), true),
       logits.data, logits.stride);
}

void GPT::token_losses(const int32_t* ids, const int32_t* targets, const int64_t* offsets, int64_t sequences,
                       float* losses, int32_t* predicted) {
  has_forward_ = false;
  workspace_.reset();
  batch_ = prepare(ids, targets, offsets, sequences, nullptr, workspace_);
  hidden_ = trunk(batch_);
  lm_head_cross_entropy(hidden_, head(), batch_.targets, losses, nullptr, workspace_, predicted);
  has_forward_ = true;
}

void GPT::head_backward(float scale, float* losses, const LossTerms& terms) {
  unpack();  // an optimizer is about to change the weights
  const Workspace::Mark mark(workspace_);
  const Mat g = workspace_.mat(hidden_.rows, hidden_.cols);
  const LmHeadGradients gradients{scale, g, head_->grad_mat(), terms};
  lm_head_cross_entropy(hidden_, head(), batch_.targets, losses, &gradients, workspace_);
  backward_trunk(g);
}

void GPT::backward(float scale) {
  MIAOBI_CHECK(has_forward_, "[gpt] backward() expects a loss before it, and one for each; call loss() first");
  has_forward_ = false;
  head_backward(scale, workspace_.floats(hidden_.rows), {});
  workspace_.reset();
}

void GPT::loss_backward(const int32_t* ids, const int32_t* targets, const int64_t* offsets, int64_t sequences,
                        float scale, float* losses, const LossTerms& terms, const DropoutStep& dropout) {
  dropout.validate();
  has_forward_ = false;
  workspace_.reset();
  batch_ = prepare(ids, targets, offsets, sequences, nullptr, workspace_);
  hidden_ = trunk(batch_, dropout);
  head_backward(scale, losses, terms);
  workspace_.reset();  // here, so that what a first step needed becomes one block within that step
}

void GPT::forward_cached(KVCache& cache, const int64_t* cached, const int32_t* ids, const int64_t* offsets,
                         int64_t sequences, Mat logits, Workspace& workspace) const {
  MIAOBI_CHECK(cache.layers() == config_.n_layer && cache.heads() == config_.n_head &&
                   cache.head_size() * config_.n_head == config_.n_embd,
               "[gpt] the cache was made for another model");
  workspace.reset();
  auto* starts = static_cast<int64_t*>(workspace.bytes(sequences * static_cast<int64_t>(sizeof(int64_t))));
  for (int64_t s = 0; s < sequences; ++s) {
    starts[s] = cache.length(cached[s]);
    MIAOBI_CHECK(offsets[s + 1] > offsets[s], "[gpt] expected at least one token for sequence ", cached[s]);
  }
  const Batch batch = prepare(ids, nullptr, offsets, sequences, starts, workspace);
  cache.extend(cached, batch.ragged);
  const KVCache::Step step{cached, starts, batch.ragged};
  const int64_t tokens = batch.ragged.tokens();
  Mat x = workspace.mat(tokens, config_.n_embd), y = workspace.mat(tokens, config_.n_embd);
  const Mat last = workspace.mat(sequences, config_.n_embd);
  embedding_forward(batch.ids, batch.positions, wte_->value_mat(), wpe_->value_mat(), x);
  for (size_t l = 0; l < blocks_.size(); ++l) {
    if (l + 1 == blocks_.size()) y = last;  // of the other rows only keys and values are wanted
    blocks_[l]->forward_cached(x, cache, step, static_cast<int64_t>(l), y, workspace);
    std::swap(x, y);
  }
  final_norm_->infer(last, last, workspace);
  if (is_packed()) {
    gemm(sequences, left_operand(last), packed_head_, logits.data, logits.stride);
  } else {
    gemm(sequences, config_.vocab_size, config_.n_embd, left_operand(last), right_operand(head(), true), logits.data,
         logits.stride);
  }
}

void GPT::pack(WeightType type) {
  for (const auto& block : blocks_) block->pack(type);
  packed_head_ = PackedMatrix(right_operand(head(), true), config_.vocab_size, config_.n_embd, type);
}

void GPT::unpack() {
  if (!is_packed()) return;
  for (const auto& block : blocks_) block->unpack();
  packed_head_ = PackedMatrix();
}

}  // namespace miaobi

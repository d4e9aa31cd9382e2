// SPDX-License-Identifier: MIT
// What a model attends to, for people to look at.
#include <algorithm>
#include <cmath>
#include <string>

#include "miaobi/check.h"
#include "miaobi/elementwise.h"
#include "miaobi/embedding.h"
#include "miaobi/gemm.h"
#include "miaobi/gpt.h"
#include "miaobi/linear.h"

namespace miaobi {

void GPT::attention_weights(const int32_t* ids, int64_t tokens, float* weights) {
  has_forward_ = false;
  workspace_.reset();
  const int64_t offsets[2] = {0, tokens};
  batch_ = prepare(ids, nullptr, offsets, 1, nullptr, workspace_);
  const int64_t width = config_.n_embd, size = width / config_.n_head;
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  Mat x = workspace_.mat(tokens, width);
  const Mat qkv = workspace_.mat(tokens, 3 * width), statistics = workspace_.mat(2, tokens);
  embedding_forward(batch_.ids, batch_.positions, wte_->value_mat(), wpe_->value_mat(), x);
  for (size_t l = 0; l < blocks_.size(); ++l) {
    const std::string prefix = "transformer.h." + std::to_string(l) + ".";
    const auto parameter = [&](const char* name) { return arena_.find(prefix + name); };
    layer_norm_linear_forward(
        x, {parameter("ln_1.weight")->value, parameter("ln_1.bias")->value, statistics.row(0), statistics.row(1)},
        config_.layer_norm_epsilon, parameter("attn.c_attn.weight")->value_mat(), parameter("attn.c_attn.bias")->value,
        qkv);
    for (int64_t h = 0; h < config_.n_head; ++h) {
      const ConstMat q = qkv.col_block(h * size, size), k = qkv.col_block(width + h * size, size);
      gemm(tokens, tokens, size, left_operand(q), right_operand(k, true), weights, tokens);
      for (int64_t i = 0; i < tokens; ++i) {
        float* row = weights + i * tokens;
        for (int64_t j = 0; j <= i; ++j) row[j] *= scale;
        softmax_forward(ConstMat(row, 1, i + 1), Mat(row, 1, i + 1));
        std::fill(row + i + 1, row + tokens, 0.0f);
      }
      weights += tokens * tokens;
    }
    const Mat y = workspace_.mat(tokens, width);
    blocks_[l]->forward(x, batch_.ragged, y, workspace_);
    x = y;
  }
}

}  // namespace miaobi

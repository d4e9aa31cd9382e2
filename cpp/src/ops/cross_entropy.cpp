// SPDX-License-Identifier: MIT
// Cross-entropy and the chunked LM head.
#include "miaobi/cross_entropy.h"

#include <algorithm>

#include "kernels/dispatch.h"
#include "miaobi/gemm.h"
#include "ops/split.h"

namespace miaobi {
namespace {

// Floats of logits that are held at a time: 8 MB stay in a last-level cache, and even a vocabulary of
// 50,000 leaves some forty rows a chunk to share each packed panel of the weight.
constexpr int64_t kChunkFloats = 2 << 20;

void check_targets(const char* op, const int32_t* targets, int64_t rows, int64_t vocab) {
  for (int64_t i = 0; i < rows; ++i) {
    MIAOBI_CHECK(targets[i] == kIgnoreIndex || (targets[i] >= 0 && targets[i] < vocab), "[", op,
                 "] expected targets in [0, ", vocab, ") or ", kIgnoreIndex, " for none, got ", targets[i],
                 " at position ", i);
  }
}

}  // namespace

void cross_entropy_forward(ConstMat logits, const int32_t* targets, float* losses) {
  check_targets("cross_entropy", targets, logits.rows, logits.cols);
  const KernelTable& table = kernels_in_use();
  parallel_ranges(logits.rows, rows_per_task(logits.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      losses[i] =
          targets[i] == kIgnoreIndex ? 0.0f : table.logsumexp_row(logits.row(i), logits.cols) - logits(i, targets[i]);
    }
  });
}

void lm_head_cross_entropy(ConstMat x, ConstMat w, const int32_t* targets, float* losses,
                           const LmHeadGradients* gradients, Workspace& workspace, int32_t* predicted) {
  const int64_t vocab = w.rows;
  MIAOBI_CHECK(x.cols == w.cols, "[lm_head] expected hidden states with ", w.cols, " columns, got ", x.cols);
  check_targets("lm_head", targets, x.rows, vocab);
  const KernelTable& table = kernels_in_use();
  const Workspace::Mark mark(workspace);
  const int64_t chunk = std::min(x.rows, std::max<int64_t>(32, kChunkFloats / std::max<int64_t>(vocab, 1)));
  const Mat logits = workspace.mat(chunk, vocab);
  for (int64_t begin = 0; begin < x.rows; begin += chunk) {
    const int64_t rows = std::min(chunk, x.rows - begin);
    const ConstMat xc = x.row_block(begin, rows);
    gemm(rows, vocab, x.cols, left_operand(xc), right_operand(w, true), logits.data, logits.stride);
    parallel_ranges(rows, rows_per_task(vocab), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        const int32_t target = targets[begin + r];
        float* row = logits.row(r);
        if (target == kIgnoreIndex) {
          losses[begin + r] = 0.0f;
          if (predicted != nullptr) predicted[begin + r] = kIgnoreIndex;
          if (gradients != nullptr) std::fill(row, row + vocab, 0.0f);
          continue;
        }
        const float lse = table.logsumexp_row(row, vocab);
        losses[begin + r] = lse - row[target];
        if (predicted != nullptr) {
          predicted[begin + r] = static_cast<int32_t>(std::max_element(row, row + vocab) - row);
        }
        if (gradients != nullptr) {
          const auto [smoothing, z_loss] = gradients->terms;
          const float scale = gradients->scale;
          table.softmax_scale_row(row, vocab, lse, scale * (1.0f + 2.0f * z_loss * lse));
          if (smoothing > 0) {
            const float share = scale * smoothing / static_cast<float>(vocab);
            for (int64_t v = 0; v < vocab; ++v) row[v] -= share;
          }
          row[target] -= scale * (1.0f - smoothing);
        }
      }
    });
    if (gradients == nullptr) continue;
    const ConstMat g = logits;
    const Mat dx = gradients->dx.row_block(begin, rows);
    gemm(rows, x.cols, vocab, left_operand(g), right_operand(w), dx.data, dx.stride);
    gemm(vocab, x.cols, rows, left_operand(g, true), right_operand(xc), gradients->dw_add.data,
         gradients->dw_add.stride, true);
  }
}

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// LM head, softmax and cross-entropy as one op that never holds the logits of a whole batch.
#pragma once

#include <cstdint>

#include "miaobi/mat.h"
#include "miaobi/memory.h"

namespace miaobi {

constexpr int32_t kIgnoreIndex = -100;  // a target that is not scored; PyTorch's value

// Negative log-likelihood in nats of logits (M, V) at targets (M): losses[i] = lse(logits[i]) -
// logits[i][target], 0 where the target is kIgnoreIndex. Throws Error for a target outside [0, V) that is
// not kIgnoreIndex.
void cross_entropy_forward(ConstMat logits, const int32_t* targets, float* losses);

// What training may add to the loss, in the gradients alone: losses stay those of the text, so that they can be
// compared. Label smoothing s (Szegedy et al. 2016) moves s of the target's probability to all V tokens evenly:
// the loss becomes lse - (1 - s) logits[target] - s mean(logits). The z-loss z (Chowdhery et al. 2022) adds
// z lse^2, which keeps logits from drifting.
struct LossTerms {
  float label_smoothing = 0;
  float z_loss = 0;
};

// The head on hidden states x (M, C) with w (V, C):  logits = x w^T,  losses as above, and, where
// `gradients` is not null, with G = scale ((1 + 2 z lse) softmax(logits) - (1 - s) onehot(target) - s / V), 0 in
// rows not scored:
//   dx = G w,   dw += G^T x.
// `predicted` (M), where not null, receives the likeliest token of each row that is scored, the smallest of equal
// ones, else kIgnoreIndex.
// Chunks of rows go through in ascending order; the workspace holds one chunk of logits. Rows of the chunk
// are added to dw in order, so the bits do not depend on the chunk's size, nor on threads.
struct LmHeadGradients {
  float scale;
  Mat dx;
  Mat dw_add;
  LossTerms terms;
};
void lm_head_cross_entropy(ConstMat x, ConstMat w, const int32_t* targets, float* losses,
                           const LmHeadGradients* gradients, Workspace& workspace, int32_t* predicted = nullptr);

}  // namespace miaobi

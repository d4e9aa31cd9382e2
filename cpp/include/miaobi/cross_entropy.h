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

// The head on hidden states x (M, C) with w (V, C):  logits = x w^T,  losses as above, and, where
// `gradients` is not null, with G = scale (softmax(logits) - onehot(target)), 0 in rows not scored:
//   dx = G w,   dw += G^T x.
// Chunks of rows go through in ascending order; the workspace holds one chunk of logits. Rows of the chunk
// are added to dw in order, so the bits do not depend on the chunk's size, nor on threads.
struct LmHeadGradients {
  float scale;
  Mat dx;
  Mat dw_add;
};
void lm_head_cross_entropy(ConstMat x, ConstMat w, const int32_t* targets, float* losses,
                           const LmHeadGradients* gradients, Workspace& workspace);

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// Token and position embeddings.
#pragma once

#include <cstdint>

#include "miaobi/mat.h"

namespace miaobi {

// x[i] = wte[ids[i]] + wpe[positions[i]], i < N. wte (V, C), wpe (P, C), x (N, C).
// Ids and positions are checked by the caller (gpt.cpp does, once a batch).
void embedding_forward(const int32_t* ids, const int32_t* positions, ConstMat wte, ConstMat wpe, Mat x);

// dwte[ids[i]] += dx[i], dwpe[positions[i]] += dx[i], i ascending. Threads: over columns.
void embedding_backward(const int32_t* ids, const int32_t* positions, ConstMat dx, Mat dwte_add, Mat dwpe_add);

}  // namespace miaobi

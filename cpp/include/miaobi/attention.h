// SPDX-License-Identifier: MIT
// Tiled attention with online softmax (Dao et al. 2022) over ragged batches; memory linear in T.
#pragma once

#include <cstdint>

#include "miaobi/mat.h"
#include "miaobi/memory.h"

namespace miaobi {

// Sequences of a flat batch: sequence s has rows offsets[s] .. offsets[s + 1). `longest` is the length of
// the longest one; offsets[0] = 0 and offsets ascends.
struct RaggedBatch {
  const int64_t* offsets;
  int64_t sequences;
  int64_t longest;
  int64_t tokens() const { return offsets[sequences]; }
};

struct AttentionShape {
  int64_t heads;      // H
  int64_t head_size;  // D
  bool causal;
};

// For each sequence and head h:   O = softmax(Q K^T / sqrt(D)) V,   key j visible to query i where j <= i
// if causal. Q, K, V, O are (N, H*D), N the tokens of the batch; head h has columns h*D .. (h+1)*D. They
// are views with any stride, so Q, K and V may be the thirds of one (N, 3*H*D) matrix. `lse` (N, H) receives
// log sum exp of each row of scores. O may not overlap the inputs.
//
// threads: over sequences, heads and blocks of queries. A row's bits depend on its own sequence alone.
// memory: for each thread, packed copies of one head's keys and values and tiles of fixed size, linear in T.
// accuracy: probabilities within 2 ulp of exp of their rounded scores, 0 below 2^-126. Throws Error where shapes do not
// fit.
void attention_forward(ConstMat q, ConstMat k, ConstMat v, const RaggedBatch& batch, const AttentionShape& shape, Mat o,
                       Mat lse);

// dQ, dK, dV are overwritten; they may be views of one matrix, but overlap no input. With P = exp(S - lse) and
// delta = rowsum(dO O):   dV = P^T dO,   dS = P (dO V^T - delta) / sqrt(D),   dQ = dS K,   dK = dS^T Q.
// threads: over sequences and heads. memory: for each thread, seven packed copies of one head's Q, K, V and dO and the
// sum of dQ, linear in T.
void attention_backward(ConstMat d_o, ConstMat q, ConstMat k, ConstMat v, ConstMat o, ConstMat lse,
                        const RaggedBatch& batch, const AttentionShape& shape, Mat dq, Mat dk, Mat dv);

// Takes the calling thread's scratch for sequences of up to `longest` tokens, forward and backward, so that no
// later call takes more.
void attention_reserve(const AttentionShape& shape, int64_t longest);

}  // namespace miaobi

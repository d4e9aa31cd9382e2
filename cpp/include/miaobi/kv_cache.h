// SPDX-License-Identifier: MIT
// Keys and values of past tokens in a preallocated pool of fixed-size blocks.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "miaobi/attention.h"
#include "miaobi/gemm.h"
#include "miaobi/mat.h"
#include "miaobi/memory.h"

namespace miaobi {

// A pool of blocks of kBlockTokens tokens, for all layers. A sequence is a table of blocks: appending costs
// the same at any length and copies nothing. Sequences may share the blocks of a common prefix; a shared
// block is copied when one of them writes to it. The pool never grows. Not thread-safe.
class KVCache {
 public:
  static constexpr int64_t kBlockTokens = 32;

  // `capacity` tokens over all sequences, rounded up to whole blocks. Keys and values are kept as `type`; attention
  // computes in float32 with either. Throws Error unless all sizes are positive.
  KVCache(int64_t layers, int64_t heads, int64_t head_size, int64_t capacity, WeightType type = WeightType::kFloat32);

  int64_t layers() const { return layers_; }
  int64_t heads() const { return heads_; }
  int64_t head_size() const { return head_size_; }
  int64_t capacity() const { return static_cast<int64_t>(references_.size()) * kBlockTokens; }
  // Tokens of room that blocks in use take up; shared blocks count once.
  int64_t used() const { return (static_cast<int64_t>(references_.size() - free_.size())) * kBlockTokens; }
  int64_t bytes() const {
    return storage_.size() * static_cast<int64_t>(sizeof(float)) +
           bf16_storage_.size() * static_cast<int64_t>(sizeof(uint16_t));
  }

  int64_t add_sequence();
  void free_sequence(int64_t sequence);
  int64_t fork(int64_t sequence);  // a new sequence with the same tokens, on the same blocks
  int64_t length(int64_t sequence) const { return at(sequence).length; }
  void truncate(int64_t sequence, int64_t length);  // drops tokens from the end; Error if it has fewer
  void clear();                                     // every sequence goes

  // Rows of a flat batch that continue sequences: sequence i takes the rows batch.offsets[i] .. [i + 1),
  // at positions from starts[i] on.
  struct Step {
    const int64_t* sequences;
    const int64_t* starts;
    RaggedBatch batch;
  };
  // Makes room for the rows, all or nothing, and counts them in. Throws Error where the pool is exhausted.
  void extend(const int64_t* sequences, const RaggedBatch& batch);
  // Writes K and V (N, H*D) of one layer for rows that extend() made room for.
  void write(int64_t layer, const Step& step, ConstMat k, ConstMat v);
  // O = attention of the rows to every cached token up to themselves. q, o (N, H*D). A row's bits depend
  // neither on the other rows nor on how its sequence was cut into steps.
  void attend(int64_t layer, const Step& step, ConstMat q, Mat o) const;

 private:
  struct Sequence {
    std::vector<int32_t> blocks;
    int64_t length = 0;
    bool live = false;
  };

  const Sequence& at(int64_t sequence) const;
  Sequence& at(int64_t sequence) { return const_cast<Sequence&>(std::as_const(*this).at(sequence)); }
  int32_t take_block();
  void release_block(int32_t block);
  // Where the keys of a head lie in the storage; its values follow after kBlockTokens * head_size elements. K lies
  // transposed, (D, kBlockTokens), V as (kBlockTokens, D): both are panels of the GEMM.
  int64_t place(int32_t block, int64_t layer, int64_t head) const {
    return ((block * layers_ + layer) * heads_ + head) * 2 * kBlockTokens * head_size_;
  }
  template <class T>
  void write_row(T* storage, const float* key, const float* value, int64_t slot) const;
  void write_head(int64_t layer, int64_t head, const Step& step, ConstMat k, ConstMat v);
  void attend_head(int64_t layer, int64_t head, const Sequence& s, int64_t start, ConstMat q, Mat o,
                   float* scratch) const;

  int64_t layers_, heads_, head_size_;
  Buffer<float> storage_;  // one of the two
  Buffer<uint16_t> bf16_storage_;
  std::vector<int32_t> references_;  // per block
  std::vector<int32_t> free_;
  std::vector<Sequence> sequences_;
  std::vector<int64_t> free_sequences_;
};

}  // namespace miaobi

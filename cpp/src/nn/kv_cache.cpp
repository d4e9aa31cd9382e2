// SPDX-License-Identifier: MIT
// The block pool and attention over it.
#include "miaobi/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/dispatch.h"
#include "miaobi/check.h"
#include "miaobi/threads.h"

namespace miaobi {
namespace {
constexpr int64_t kB = KVCache::kBlockTokens;
constexpr int64_t kQueries = 32;      // a tile of queries; a multiple of every vector width
constexpr int64_t kRowsToShare = 16;  // rows to write that are worth waking other threads for
constexpr int64_t blocks_for(int64_t tokens) { return (tokens + kB - 1) / kB; }
}  // namespace

KVCache::KVCache(int64_t layers, int64_t heads, int64_t head_size, int64_t capacity, WeightType type)
    : layers_(layers), heads_(heads), head_size_(head_size) {
  MIAOBI_CHECK(layers > 0 && heads > 0 && head_size > 0 && capacity > 0,
               "[kv_cache] expected positive layers, heads, head size and capacity, got ", layers, ", ", heads, ", ",
               head_size, ", ", capacity);
  const int64_t blocks = blocks_for(capacity);
  const int64_t size = blocks * layers * heads * 2 * kB * head_size;
  if (type == WeightType::kBf16) {
    bf16_storage_ = Buffer<uint16_t>(size);
  } else {
    storage_ = Buffer<float>(size);
  }
  references_.assign(static_cast<size_t>(blocks), 0);
  free_.resize(static_cast<size_t>(blocks));
  for (int64_t i = 0; i < blocks; ++i) free_[static_cast<size_t>(i)] = static_cast<int32_t>(blocks - 1 - i);
}

const KVCache::Sequence& KVCache::at(int64_t sequence) const {
  MIAOBI_CHECK(sequence >= 0 && sequence < static_cast<int64_t>(sequences_.size()) &&
                   sequences_[static_cast<size_t>(sequence)].live,
               "[kv_cache] there is no sequence ", sequence);
  return sequences_[static_cast<size_t>(sequence)];
}

int32_t KVCache::take_block() {
  const int32_t block = free_.back();
  free_.pop_back();
  references_[static_cast<size_t>(block)] = 1;
  return block;
}

void KVCache::release_block(int32_t block) {
  if (--references_[static_cast<size_t>(block)] == 0) free_.push_back(block);
}

int64_t KVCache::add_sequence() {
  int64_t index;
  if (free_sequences_.empty()) {
    index = static_cast<int64_t>(sequences_.size());
    sequences_.emplace_back();
  } else {
    index = free_sequences_.back();
    free_sequences_.pop_back();
  }
  sequences_[static_cast<size_t>(index)].live = true;
  return index;
}

void KVCache::free_sequence(int64_t sequence) {
  truncate(sequence, 0);
  at(sequence).live = false;
  free_sequences_.push_back(sequence);
}

int64_t KVCache::fork(int64_t sequence) {
  at(sequence);  // checked before the table may move
  const int64_t copy = add_sequence();
  Sequence& to = at(copy);
  const Sequence& from = at(sequence);
  to.blocks = from.blocks;
  to.length = from.length;
  for (const int32_t block : to.blocks) ++references_[static_cast<size_t>(block)];
  return copy;
}

void KVCache::truncate(int64_t sequence, int64_t length) {
  Sequence& s = at(sequence);
  MIAOBI_CHECK(length >= 0 && length <= s.length, "[kv_cache] expected a length from 0 to ", s.length, ", got ",
               length);
  while (static_cast<int64_t>(s.blocks.size()) > blocks_for(length)) {
    release_block(s.blocks.back());
    s.blocks.pop_back();
  }
  s.length = length;
}

void KVCache::clear() {
  for (size_t i = 0; i < sequences_.size(); ++i) {
    if (sequences_[i].live) free_sequence(static_cast<int64_t>(i));
  }
}

void KVCache::extend(const int64_t* sequences, const RaggedBatch& batch) {
  // Blocks that each sequence needs: new ones, and a copy of a shared last block that is not full.
  const auto shared_tail = [&](const Sequence& s) {
    return s.length % kB != 0 && references_[static_cast<size_t>(s.blocks.back())] > 1;
  };
  int64_t needed = 0;
  for (int64_t i = 0; i < batch.sequences; ++i) {
    const Sequence& s = at(sequences[i]);
    const int64_t rows = batch.offsets[i + 1] - batch.offsets[i];
    for (int64_t j = 0; j < i; ++j) {
      MIAOBI_CHECK(sequences[j] != sequences[i], "[kv_cache] sequence ", sequences[i], " is twice in one step");
    }
    needed += blocks_for(s.length + rows) - static_cast<int64_t>(s.blocks.size());
    if (rows > 0 && shared_tail(s)) ++needed;
  }
  MIAOBI_CHECK(needed <= static_cast<int64_t>(free_.size()), "[kv_cache] ", needed * kB, " tokens of room are needed, ",
               static_cast<int64_t>(free_.size()) * kB, " of ", capacity(),
               " are free; free sequences or make a larger cache");
  for (int64_t i = 0; i < batch.sequences; ++i) {
    Sequence& s = at(sequences[i]);
    const int64_t rows = batch.offsets[i + 1] - batch.offsets[i];
    if (rows > 0 && shared_tail(s)) {
      const int32_t copy = take_block();
      const auto copy_block = [&](auto& storage) {
        std::copy_n(storage.data() + place(s.blocks.back(), 0, 0), place(1, 0, 0), storage.data() + place(copy, 0, 0));
      };
      if (storage_.size() > 0) {
        copy_block(storage_);
      } else {
        copy_block(bf16_storage_);
      }
      release_block(s.blocks.back());
      s.blocks.back() = copy;
    }
    s.length += rows;
    while (static_cast<int64_t>(s.blocks.size()) < blocks_for(s.length)) s.blocks.push_back(take_block());
  }
}

template <class T>
void KVCache::write_row(T* storage, const float* key, const float* value, int64_t slot) const {
  T* kt = storage + slot;
  T* v = storage + (kB + slot) * head_size_;
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t d = 0; d < head_size_; ++d) kt[d * kB] = key[d];
    std::copy_n(value, head_size_, v);
  } else {
    const KernelTable& table = kernels_in_use();
    table.narrow(value, head_size_, v);
    uint16_t narrow[64];
    for (int64_t d0 = 0; d0 < head_size_; d0 += 64) {
      const int64_t count = std::min<int64_t>(64, head_size_ - d0);
      table.narrow(key + d0, count, narrow);
      for (int64_t d = 0; d < count; ++d) kt[(d0 + d) * kB] = narrow[d];
    }
  }
}

void KVCache::write_head(int64_t layer, int64_t head, const Step& step, ConstMat k, ConstMat v) {
  for (int64_t i = 0; i < step.batch.sequences; ++i) {
    const Sequence& s = at(step.sequences[i]);
    const int64_t first = step.batch.offsets[i];
    for (int64_t r = first; r < step.batch.offsets[i + 1]; ++r) {
      const int64_t position = step.starts[i] + r - first;
      const int64_t where = place(s.blocks[static_cast<size_t>(position / kB)], layer, head), slot = position % kB;
      if (storage_.size() > 0) {
        write_row(storage_.data() + where, k.row(r), v.row(r), slot);
      } else {
        write_row(bf16_storage_.data() + where, k.row(r), v.row(r), slot);
      }
    }
  }
}

void KVCache::write(int64_t layer, const Step& step, ConstMat k, ConstMat v) {
  const int slots = k.rows < kRowsToShare ? 1 : get_num_threads();
  parallel_for_slots(heads_, slots, [&](int64_t h, int) {
    write_head(layer, h, step, k.col_block(h * head_size_, head_size_), v.col_block(h * head_size_, head_size_));
  });
}

// Online softmax over the blocks in ascending order. One query has its scores in a row, several have them
// key-major, as in attention.cpp; both sum over d, and then over keys one by one, in the same order.
void KVCache::attend_head(int64_t layer, int64_t head, const Sequence& s, int64_t start, ConstMat q, Mat o,
                          float* scratch) const {
  const KernelTable& table = kernels_in_use();
  const int64_t d = head_size_;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  float* qt = scratch;
  float* scores = qt + kQueries * d;
  float* row_max = scores + kQueries * kB;
  float* row_sum = row_max + kQueries;
  float* alpha = row_sum + kQueries;
  float* wide = alpha + kQueries;  // keys and values of a block in float32

  for (int64_t q0 = 0; q0 < q.rows; q0 += kQueries) {
    const int64_t queries = std::min(kQueries, q.rows - q0);
    const int64_t visible = start + q0 + queries;
    // One query, as in decoding, needs no room for others.
    const int64_t lanes = queries == 1 ? 1 : (queries + table.width - 1) / table.width * table.width;
    std::fill_n(row_max, lanes, -std::numeric_limits<float>::infinity());
    std::fill_n(row_sum, lanes, 0.0f);
    if (queries == 1) {
      for (int64_t i = 0; i < d; ++i) qt[i] = q(q0, i) * scale;
    } else {
      if (queries < kQueries) std::memset(qt, 0, static_cast<size_t>(kQueries * d) * sizeof(float));
      table.transpose(q.row(q0), q.stride, queries, d, scale, qt, kQueries);
    }
    for (int64_t k0 = 0; k0 < visible; k0 += kB) {
      const int64_t key_count = std::min(kB, visible - k0);
      const int32_t block = s.blocks[static_cast<size_t>(k0 / kB)];
      const float* kt = storage_.data() + place(block, layer, head);
      if (storage_.size() == 0) {
        table.widen(bf16_storage_.data() + place(block, layer, head), 2 * kB * d, wide);
        kt = wide;
      }
      const float* v = kt + kB * d;
      if (queries == 1) {
        table.gemm_block(1, key_count, d, {qt, table.mr, 1}, {kt, table.nr, kB}, scores, kB, false, nullptr);
        table.attention_softmax_row(scores, key_count, row_max, row_sum, alpha);
        if (k0 > 0) table.scale_rows(o.row(q0), o.stride, 1, d, alpha);
        table.gemm_block(1, d, key_count, {scores, table.mr, 1}, {v, table.nr, d}, o.row(q0), o.stride, k0 > 0,
                         nullptr);
      } else {
        table.gemm_block(key_count, lanes, d, {kt, table.mr, kB}, {qt, table.nr, kQueries}, scores, kQueries, false,
                         nullptr);
        table.attention_softmax_tile(scores, kQueries, key_count, queries, k0, start + q0, true, row_max, row_sum,
                                     alpha);
        if (k0 > 0) table.scale_rows(o.row(q0), o.stride, queries, d, alpha);
        table.gemm_block(queries, d, key_count, {scores, table.mr, kQueries}, {v, table.nr, d}, o.row(q0), o.stride,
                         k0 > 0, nullptr);
      }
    }
    for (int64_t i = 0; i < queries; ++i) alpha[i] = 1.0f / row_sum[i];
    table.scale_rows(o.row(q0), o.stride, queries, d, alpha);
  }
}

void KVCache::attend(int64_t layer, const Step& step, ConstMat q, Mat o) const {
  const int64_t wide = storage_.size() > 0 ? 0 : 2 * kB * head_size_;
  const LoopScratch scratch(Scratch::kAttention, kQueries * (head_size_ + kB + 3) + wide);
  parallel_for_slots(step.batch.sequences * heads_, scratch.slots, [&](int64_t task, int slot) {
    const int64_t i = task / heads_, h = task % heads_;
    const int64_t begin = step.batch.offsets[i], rows = step.batch.offsets[i + 1] - begin;
    attend_head(layer, h, at(step.sequences[i]), step.starts[i],
                q.row_block(begin, rows).col_block(h * head_size_, head_size_),
                o.row_block(begin, rows).col_block(h * head_size_, head_size_), scratch[slot]);
  });
}

}  // namespace miaobi

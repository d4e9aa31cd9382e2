// SPDX-License-Identifier: MIT
// Attention over ragged batches: checks, and heads and parts of heads as tasks.
#include "miaobi/attention.h"

#include <algorithm>
#include <initializer_list>

#include "kernels/dispatch.h"
#include "miaobi/cpu.h"
#include "ops/split.h"

namespace miaobi {
namespace {

// The rows of one sequence and the columns of one head, of any of the matrices.
template <class T>
MatView<T> head_view(MatView<T> m, const RaggedBatch& batch, const AttentionShape& shape, int64_t s, int64_t h) {
  const int64_t begin = batch.offsets[s];
  return m.row_block(begin, batch.offsets[s + 1] - begin).col_block(h * shape.head_size, shape.head_size);
}

void check_shapes(const char* op, const RaggedBatch& batch, const AttentionShape& shape,
                  std::initializer_list<ConstMat> matrices, ConstMat lse) {
  MIAOBI_CHECK(shape.heads > 0 && shape.head_size > 0, "[", op, "] expected at least one head of at least one column");
  for (const ConstMat& m : matrices) {
    MIAOBI_CHECK(m.rows == batch.tokens() && m.cols == shape.heads * shape.head_size, "[", op, "] expected (",
                 batch.tokens(), ", ", shape.heads * shape.head_size, ") for ", batch.tokens(), " tokens and ",
                 shape.heads, " heads of ", shape.head_size, ", got (", m.rows, ", ", m.cols, ")");
  }
  MIAOBI_CHECK(lse.rows == batch.tokens() && lse.cols == shape.heads, "[", op, "] expected lse (", batch.tokens(), ", ",
               shape.heads, "), got (", lse.rows, ", ", lse.cols, ")");
}

// Task t of a loop over sequences and heads. Neighbours are of different sequences: threads that wrote neighbouring
// heads of the same rows would take lines of O and lse from each other.
struct Unit {
  int64_t s, h;
  Unit(int64_t task, const RaggedBatch& batch) : s(task % batch.sequences), h(task / batch.sequences) {}
};

// What a head leaves for later and what the next task of its thread reads: about as many tasks on as there are threads.
// Nothing where that would drive from L2 what the head itself works on.
Upcoming upcoming_of(std::initializer_list<ConstMat> written, std::initializer_list<ConstMat> read,
                     const RaggedBatch& batch, const AttentionShape& shape, int64_t task, int threads) {
  Upcoming upcoming;
  const auto add = [&](std::initializer_list<ConstMat> matrices, int64_t t) {
    if (t >= batch.sequences * shape.heads) return;
    for (const ConstMat& m : matrices) {
      const Unit unit(t, batch);
      upcoming.matrices[upcoming.count++] = head_view(m, batch, shape, unit.s, unit.h);
    }
  };
  add(written, task);
  add(read, task + threads);
  int64_t floats = 0;
  for (int32_t i = 0; i < upcoming.count; ++i) floats += upcoming.matrices[i].rows * shape.head_size;
  if (floats * static_cast<int64_t>(sizeof(float)) > cache_sizes().l2 / 2) upcoming.count = 0;
  return upcoming;
}

AttentionHead head_of(ConstMat q, ConstMat k, ConstMat v, const RaggedBatch& batch, const AttentionShape& shape,
                      int64_t s, int64_t h) {
  return {head_view(q, batch, shape, s, h), head_view(k, batch, shape, s, h), head_view(v, batch, shape, s, h),
          shape.causal};
}

}  // namespace

void attention_reserve(const AttentionShape& shape, int64_t longest) {
  const KernelTable& table = kernels_in_use();
  const LoopScratch scratch(Scratch::kAttention, std::max(table.attention_forward_scratch(longest, shape.head_size),
                                                          table.attention_backward_scratch(longest, shape.head_size)));
}

void attention_forward(ConstMat q, ConstMat k, ConstMat v, const RaggedBatch& batch, const AttentionShape& shape, Mat o,
                       Mat lse) {
  check_shapes("attention", batch, shape, {q, k, v, o}, lse);
  const KernelTable& table = kernels_in_use();
  // Whole heads where there are enough of them: each part of a head packs its keys and values again.
  const int64_t heads = batch.sequences * shape.heads;
  const int64_t wanted = 3 * static_cast<int64_t>(get_num_threads());
  const int64_t tiles = std::max<int64_t>(1, (batch.longest + table.attention_queries - 1) / table.attention_queries);
  const int64_t parts = heads >= wanted || heads == 0 ? 1 : std::min(tiles, (wanted + heads - 1) / heads);
  const int64_t part_rows = (tiles + parts - 1) / parts * table.attention_queries;
  const LoopScratch scratch(Scratch::kAttention, table.attention_forward_scratch(batch.longest, shape.head_size));
  parallel_for_slots(heads * parts, scratch.slots, [&](int64_t task, int slot) {
    // The last part of a causal head is the longest: it goes first.
    const int64_t part = parts - 1 - task / heads;
    const Unit unit(task % heads, batch);
    const int64_t s = unit.s, h = unit.h;
    const AttentionHead head = head_of(q, k, v, batch, shape, s, h);
    const int64_t begin = part * part_rows, end = std::min(begin + part_rows, head.q.rows);
    if (begin >= end) return;
    const Upcoming upcoming = parts > 1 ? Upcoming{} : upcoming_of({o}, {k, v, q}, batch, shape, task, scratch.slots);
    table.attention_forward(head, begin, end, head_view(o, batch, shape, s, h), lse.row(batch.offsets[s]) + h,
                            lse.stride, upcoming, scratch[slot]);
  });
}

void attention_backward(ConstMat d_o, ConstMat q, ConstMat k, ConstMat v, ConstMat o, ConstMat lse,
                        const RaggedBatch& batch, const AttentionShape& shape, Mat dq, Mat dk, Mat dv) {
  check_shapes("attention_backward", batch, shape, {d_o, q, k, v, o, dq, dk, dv}, lse);
  const KernelTable& table = kernels_in_use();
  const LoopScratch scratch(Scratch::kAttention, table.attention_backward_scratch(batch.longest, shape.head_size));
  parallel_for_slots(batch.sequences * shape.heads, scratch.slots, [&](int64_t task, int slot) {
    const Unit unit(task, batch);
    const int64_t s = unit.s, h = unit.h;
    const AttentionHead head = head_of(q, k, v, batch, shape, s, h);
    if (head.q.rows == 0) return;
    const auto view = [&](auto matrix) { return head_view(matrix, batch, shape, s, h); };
    table.attention_backward(
        head, {view(d_o), view(o), lse.row(batch.offsets[s]) + h, lse.stride, view(dq), view(dk), view(dv)},
        upcoming_of({dv, dk, dq}, {k, v, q, d_o, o}, batch, shape, task, scratch.slots), scratch[slot]);
  });
}

}  // namespace miaobi

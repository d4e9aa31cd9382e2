// SPDX-License-Identifier: MIT
// Tiled attention: every tile product is a gemm_block on operands that are strided or transposed once.
#include "miaobi/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/dispatch.h"
#include "ops/split.h"

namespace miaobi {
namespace {

constexpr int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// Tile sizes near 64 x 96 keep a tile of scores within L1 and L2, and are multiples of the GEMM tile where
// that is possible: queries are columns of the transposed scores and rows of the output.
struct Tiles {
  int64_t queries, keys;
  explicit Tiles(const KernelTable& table) : queries(table.nr > 16 ? 96 : 48), keys(96 / table.mr * table.mr) {}
};

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

// x^T cut into tiles of `tile` rows of x: tile t is (cols, tile) at t * tile * cols. Lanes past the last row
// are zero.
void transpose_tiles(const KernelTable& table, ConstMat x, int64_t tile, float scale, float* out) {
  for (int64_t r = 0; r < x.rows; r += tile, out += tile * x.cols) {
    const int64_t rows = std::min(tile, x.rows - r);
    if (rows < tile) std::memset(out, 0, static_cast<size_t>(tile * x.cols) * sizeof(float));
    table.transpose(x.row(r), x.stride, rows, x.cols, scale, out, tile);
  }
}

// Takes consecutive pieces from one scratch area, each starting on a cache line.
struct Carver {
  float* next;
  float* take(int64_t floats) {
    float* p = next;
    next += round_up(floats, kAlignment / static_cast<int64_t>(sizeof(float)));
    return p;
  }
};

struct Head {
  ConstMat q, k, v;
  int64_t length() const { return q.rows; }
};

int64_t forward_scratch(const Tiles& tile, int64_t length, int64_t d) {
  return round_up(length, tile.keys) * d + tile.queries * (d + tile.keys + 3) + 6 * kAlignment;
}

void forward_head(const KernelTable& table, const Head& in, const AttentionShape& shape, int64_t query_begin,
                  int64_t query_end, Mat o, float* lse, int64_t lse_stride, Carver scratch) {
  const Tiles tile(table);
  const int64_t d = shape.head_size;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  const int64_t all_keys = shape.causal ? query_end : in.length();
  const int64_t kt_size = round_up(all_keys, tile.keys) * d;
  float* kt = scratch.take(kt_size);
  float* qt = scratch.take(tile.queries * d);
  float* st = scratch.take(tile.queries * tile.keys);
  float* row_max = scratch.take(tile.queries);
  float* row_sum = scratch.take(tile.queries);
  float* alpha = scratch.take(tile.queries);
  transpose_tiles(table, in.k.row_block(0, all_keys), tile.keys, 1.0f, kt);

  for (int64_t q0 = query_begin; q0 < query_end; q0 += tile.queries) {
    const int64_t queries = std::min(tile.queries, query_end - q0);
    const int64_t lanes = round_up(queries, table.width);
    transpose_tiles(table, in.q.row_block(q0, queries), tile.queries, scale, qt);
    std::fill_n(row_max, tile.queries, -std::numeric_limits<float>::infinity());
    std::fill_n(row_sum, tile.queries, 0.0f);
    const int64_t visible = shape.causal ? q0 + queries : in.length();
    for (int64_t k0 = 0; k0 < visible; k0 += tile.keys) {
      const int64_t keys = std::min(tile.keys, visible - k0);
      // S^T = K Q^T / sqrt(D): key-major, so that the softmax runs down columns without leaving its lanes.
      table.gemm_block(keys, lanes, d, {kt + k0 * d, table.mr, tile.keys}, {qt, table.nr, tile.queries}, st,
                       tile.queries, false, nullptr);
      table.attention_softmax_tile(st, tile.queries, keys, queries, k0, q0, shape.causal, row_max, row_sum, alpha);
      if (k0 > 0) table.scale_rows(o.row(q0), o.stride, queries, d, alpha);
      table.gemm_block(queries, d, keys, {st, table.mr, tile.queries}, {in.v.row(k0), table.nr, in.v.stride}, o.row(q0),
                       o.stride, k0 > 0, nullptr);
    }
    for (int64_t i = 0; i < queries; ++i) {
      lse[(q0 + i) * lse_stride] = row_max[i] + std::log(row_sum[i]);
      alpha[i] = 1.0f / row_sum[i];
    }
    table.scale_rows(o.row(q0), o.stride, queries, d, alpha);
  }
}

struct HeadGradients {
  Mat dq, dk, dv;
};

int64_t backward_scratch(const Tiles& tile, int64_t length, int64_t d) {
  return 2 * round_up(length, tile.keys) * d + 2 * round_up(length, tile.queries) * d + 3 * tile.queries * tile.keys +
         2 * length + 9 * kAlignment;
}

void backward_head(const KernelTable& table, const Head& in, ConstMat d_o, ConstMat o, const float* lse_column,
                   int64_t lse_stride, const AttentionShape& shape, const HeadGradients& out, Carver scratch) {
  const Tiles tile(table);
  const int64_t d = shape.head_size, length = in.length();
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  const int64_t by_keys = round_up(length, tile.keys) * d, by_queries = round_up(length, tile.queries) * d;
  const int64_t tile_size = tile.queries * tile.keys;
  float* kt = scratch.take(by_keys);
  float* vt = scratch.take(by_keys);
  float* qt = scratch.take(by_queries);
  float* dot = scratch.take(by_queries);
  float* p = scratch.take(tile_size);
  float* ds = scratch.take(tile_size);
  float* dst = scratch.take(tile_size);
  float* delta = scratch.take(length);
  float* lse = scratch.take(length);
  transpose_tiles(table, in.k, tile.keys, 1.0f, kt);
  transpose_tiles(table, in.v, tile.keys, 1.0f, vt);
  transpose_tiles(table, in.q, tile.queries, scale, qt);
  transpose_tiles(table, d_o, tile.queries, 1.0f, dot);
  table.row_dots(d_o.data, d_o.stride, o.data, o.stride, length, d, delta);
  for (int64_t i = 0; i < length; ++i) lse[i] = lse_column[i * lse_stride];

  for (int64_t k0 = 0; k0 < length; k0 += tile.keys) {
    const int64_t tile_keys = std::min(tile.keys, length - k0);
    // Queries before the diagonal reach only some of the keys, so the sums start from an explicit zero.
    for (int64_t j = k0; j < k0 + tile_keys; ++j) {
      std::memset(out.dk.row(j), 0, static_cast<size_t>(d) * sizeof(float));
      std::memset(out.dv.row(j), 0, static_cast<size_t>(d) * sizeof(float));
    }
    const int64_t first = shape.causal ? k0 / tile.queries * tile.queries : 0;
    for (int64_t q0 = first; q0 < length; q0 += tile.queries) {
      const int64_t queries = std::min(tile.queries, length - q0);
      const int64_t keys = shape.causal ? std::min(tile_keys, q0 + queries - k0) : tile_keys;
      const auto product = [&](int64_t m, int64_t n, int64_t depth, const Panels& a, const Panels& b, float* c,
                               int64_t ldc,
                               bool load_c) { table.gemm_block(m, n, depth, a, b, c, ldc, load_c, nullptr); };
      const Panels key_tile{kt + k0 * d, table.nr, tile.keys}, value_tile{vt + k0 * d, table.nr, tile.keys};
      product(queries, keys, d, {qt + q0 * d, table.mr, tile.queries}, key_tile, p, tile.keys, false);
      table.attention_probs_tile(p, tile.keys, queries, keys, q0, k0, shape.causal, lse + q0);
      product(keys, d, queries, {p, table.mr, tile.keys}, {d_o.row(q0), table.nr, d_o.stride}, out.dv.row(k0),
              out.dv.stride, true);
      product(queries, keys, d, {dot + q0 * d, table.mr, tile.queries}, value_tile, ds, tile.keys, false);
      table.attention_dscores_tile(p, ds, tile.keys, queries, keys, delta + q0, scale);
      product(keys, d, queries, {ds, table.mr, tile.keys}, {in.q.row(q0), table.nr, in.q.stride}, out.dk.row(k0),
              out.dk.stride, true);
      table.transpose(ds, tile.keys, queries, keys, 1.0f, dst, tile.queries);
      product(queries, d, keys, {dst, table.mr, tile.queries}, {in.k.row(k0), table.nr, in.k.stride}, out.dq.row(q0),
              out.dq.stride, k0 > 0);
    }
  }
}

}  // namespace

void attention_reserve(const AttentionShape& shape, int64_t longest) {
  const Tiles tile(kernels_in_use());
  const LoopScratch scratch(Scratch::kAttention, std::max(forward_scratch(tile, longest, shape.head_size),
                                                          backward_scratch(tile, longest, shape.head_size)));
}

void attention_forward(ConstMat q, ConstMat k, ConstMat v, const RaggedBatch& batch, const AttentionShape& shape, Mat o,
                       Mat lse) {
  check_shapes("attention", batch, shape, {q, k, v, o}, lse);
  const KernelTable& table = kernels_in_use();
  const Tiles tile(table);
  // Whole heads where there are enough of them: each part of a head transposes its keys again.
  const int64_t heads = batch.sequences * shape.heads;
  const int64_t wanted = 3 * static_cast<int64_t>(get_num_threads());
  const int64_t tiles = std::max<int64_t>(1, (batch.longest + tile.queries - 1) / tile.queries);
  const int64_t parts = heads >= wanted || heads == 0 ? 1 : std::min(tiles, (wanted + heads - 1) / heads);
  const int64_t part_rows = (tiles + parts - 1) / parts * tile.queries;
  const LoopScratch scratch(Scratch::kAttention, forward_scratch(tile, batch.longest, shape.head_size));
  parallel_for_slots(heads * parts, scratch.slots, [&](int64_t task, int slot) {
    // The last part of a causal head is the longest: it goes first.
    const int64_t part = parts - 1 - task / heads, s = task % heads / shape.heads, h = task % shape.heads;
    const Head in{head_view(q, batch, shape, s, h), head_view(k, batch, shape, s, h), head_view(v, batch, shape, s, h)};
    const int64_t begin = part * part_rows, end = std::min(begin + part_rows, in.length());
    if (begin >= end) return;
    forward_head(table, in, shape, begin, end, head_view(o, batch, shape, s, h), lse.row(batch.offsets[s]) + h,
                 lse.stride, Carver{scratch[slot]});
  });
}

void attention_backward(ConstMat d_o, ConstMat q, ConstMat k, ConstMat v, ConstMat o, ConstMat lse,
                        const RaggedBatch& batch, const AttentionShape& shape, Mat dq, Mat dk, Mat dv) {
  check_shapes("attention_backward", batch, shape, {d_o, q, k, v, o, dq, dk, dv}, lse);
  const KernelTable& table = kernels_in_use();
  const LoopScratch scratch(Scratch::kAttention, backward_scratch(Tiles(table), batch.longest, shape.head_size));
  parallel_for_slots(batch.sequences * shape.heads, scratch.slots, [&](int64_t task, int slot) {
    const int64_t s = task / shape.heads, h = task % shape.heads;
    const Head in{head_view(q, batch, shape, s, h), head_view(k, batch, shape, s, h), head_view(v, batch, shape, s, h)};
    if (in.length() == 0) return;
    backward_head(
        table, in, head_view(d_o, batch, shape, s, h), head_view(o, batch, shape, s, h), lse.row(batch.offsets[s]) + h,
        lse.stride, shape,
        {head_view(dq, batch, shape, s, h), head_view(dk, batch, shape, s, h), head_view(dv, batch, shape, s, h)},
        Carver{scratch[slot]});
  });
}

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// One head of attention, forward and backward: online softmax over tiles (Milakov and Gimelshein 2018; Dao et al.
// 2022).
//
// Scores are key-major, S^T = K Q^T: the softmax of a query runs down a column, so a vector holds neighbouring queries
// and never needs a sum across its lanes. All products are GEMM tiles over packed operands: the rows of a head lie
// H * D floats apart, often a power of two, and would take turns in a few sets of L1. Scores are in units of log 2, for
// which 1 / ln 2 goes into the queries: exp2 needs no reduction by ln 2.
#pragma once

#include "kernels/gemm.inc.h"
#include "kernels/norm.inc.h"
#include "kernels/pack.inc.h"
#include "kernels/softmax.inc.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

// Queries of a tile: whole panels of the GEMM tile. A tile of scores is some 18 KB, and stays in L1.
constexpr int64_t kTileQueries = kNr * (48 / kNr > 2 ? 48 / kNr : 2);
// Keys of a tile: whole rows of GEMM tiles.
constexpr int64_t kTileKeys = 96 / kMr * kMr;
constexpr int64_t kTile = kTileQueries * kTileKeys;

constexpr int64_t ceil_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
constexpr int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// Takes consecutive pieces from one scratch area, each starting on a cache line.
struct Carver {
  float* next;
  float* take(int64_t floats) {
    float* p = next;
    next += ceil_to(floats, kLine);
    return p;
  }
};

// Room of a matrix (rows, d) as left operand, as right operand, and transposed in tiles of kNr rows.
constexpr int64_t left_size(int64_t rows, int64_t d) { return ceil_to(rows, kMr) * d + kW; }
constexpr int64_t right_size(int64_t rows, int64_t d) { return rows * ceil_to(d, kNr); }
constexpr int64_t transposed_size(int64_t rows, int64_t d) { return ceil_to(rows, kNr) * d; }

// Rows of x become rows of tiles: row j, column c at (j / kMr) * kMr * d + c * kMr + j % kMr.
inline void pack_left(ConstMat x, float* dst) {
  pack(Operand{.data = x.data, .stride = x.stride}, 0, x.rows, 0, x.cols, kMr, dst);
}
// Columns of x become columns of tiles: row j, column c at (c / kNr) * kNr * rows + j * kNr + c % kNr.
inline void pack_right(ConstMat x, float* dst) {
  pack(Operand{.data = x.data, .stride = x.stride, .k_major = true}, 0, x.cols, 0, x.rows, kNr, dst);
}
// Rows of x become columns of tiles, times `factor`: row i, column c at (i / kNr) * kNr * d + c * kNr + i % kNr.
// Lanes past the last row are zero.
inline void pack_transposed(ConstMat x, float factor, float* dst) {
  for (int64_t r = 0; r < x.rows; r += kNr, dst += kNr * x.cols) {
    const int64_t rows = lesser(kNr, x.rows - r);
    if (rows < kNr) __builtin_memset(dst, 0, sizeof(float) * static_cast<size_t>(kNr * x.cols));
    transpose_matrix(x.row(r), x.stride, rows, x.cols, factor, dst, kNr);
  }
}

// C (rows, d) += A B for the columns of a right operand; A is (rows, depth), element (i, k) at a[i * kRowStep + k *
// a_step]. C's rows lie ceil_to(d, kNr) apart, and what is past d in them means nothing.
template <int kRows, int kRowStep>
MIAOBI_INLINE void product_rows(int64_t d, int64_t depth, const float* a, int64_t a_step, const float* right,
                                int64_t right_rows, float* c, bool load_c) {
  const int64_t ldc = ceil_to(d, kNr);
  for (int64_t j = 0; j < d; j += kNr) {
    const float* b = right + j * right_rows;
    if (d - j > kW) {
      tile<float, kRows, 2, false, kRowStep>(depth, a, a_step, b, 0, kNr, c + j, ldc, load_c, 0);
    } else {
      tile<float, kRows, 1, false, kRowStep>(depth, a, a_step, b, 0, kNr, c + j, ldc, load_c, 0);
    }
  }
}

// C (queries, d) (+)= P V over the keys of a tile that each query may see: P^T is (keys, queries).
// `visible` is the number of keys that the first query sees, and one more is seen by each one after it where causal.
inline void product_of_queries(int64_t queries, int64_t keys, int64_t visible, bool causal, int64_t d, const float* pt,
                               const float* right, int64_t right_rows, float* c, bool load_c) {
  const TileSet<float>* tiles = CountTo<float, kMr>::kSets;
  const int64_t ldc = ceil_to(d, kNr);
  const int64_t groups = (queries + kMr - 1) / kMr, height = (queries + groups - 1) / groups;
  for (int64_t j = 0; j < d; j += kNr) {
    for (int64_t i = 0; i < queries; i += height) {
      const int64_t rows = lesser(height, queries - i);
      const int64_t depth = causal ? lesser(keys, visible + i + rows - 1) : keys;
      if (depth <= 0) continue;
      tiles[rows - 1].full[d - j > kW ? 1 : 0](depth, pt + i, kTileQueries, right + j * right_rows, 0, kNr,
                                               c + i * ldc + j, ldc, load_c, 0);
    }
  }
}

// Fetches upcoming matrices into L2, a few rows at a time: `steps` calls get all of them.
class Fetcher {
 public:
  Fetcher(const Upcoming& upcoming, int64_t steps) : upcoming_(upcoming) {
    int64_t rows = 0;
    for (int32_t i = 0; i < upcoming.count; ++i) rows += upcoming.matrices[i].rows;
    rows_each_ = rows / (steps > 1 ? steps : 1) + 1;
  }
  void step() {
    for (int64_t i = 0; i < rows_each_ && matrix_ < upcoming_.count; ++i) {
      const ConstMat& m = upcoming_.matrices[matrix_];
      if (m.rows > 0) {
        const float* p = m.row(row_);
        for (int64_t c = 0; c < m.cols; c += kLine) MIAOBI_PREFETCH_L2(p + c);
        MIAOBI_PREFETCH_L2(p + m.cols - 1);  // a row need not start with a line
      }
      if (++row_ >= m.rows) ++matrix_, row_ = 0;
    }
  }

 private:
  const Upcoming& upcoming_;
  int64_t rows_each_, row_ = 0;
  int32_t matrix_ = 0;
};

// Scores of one panel of queries with the first `keys` keys of a tile, whole tiles of them.
MIAOBI_INLINE void scores_of_panel(int64_t keys, int64_t d, const float* left, const float* transposed, float* st,
                                   Fetcher& fetcher) {
  for (int64_t j = 0; j < keys; j += kMr) {
    tile<float, kMr, 2, false>(d, left + j * d, kMr, transposed, 0, kNr, st + j * kTileQueries, kTileQueries, false, 0);
    fetcher.step();
  }
}

// A panel of kNr queries in a tile: `some` keys are seen by some of its queries, the first `all` of them by all.
struct Sight {
  int64_t some, all;
  // The panel's queries start at `query`; the tile has `keys` from `key` on.
  Sight(int64_t query, int64_t key, int64_t keys, bool causal) : some(keys), all(keys) {
    if (!causal) return;
    const int64_t first = query - key + 1, last = first + kNr - 1;
    some = last < 0 ? 0 : lesser(keys, last);
    all = first < 0 ? 0 : lesser(keys, first);
  }
};

// Groups of queries reach across panels, so keys that only the next panel sees must count nothing in this one.
MIAOBI_INLINE void clear_rows(int64_t begin, int64_t end, float* st) {
  for (int64_t j = begin; j < end; ++j) {
    Vec::zero().store(st + j * kTileQueries);
    Vec::zero().store(st + j * kTileQueries + kW);
  }
}

// How many tiles of scores there are, about.
constexpr int64_t score_tiles(int64_t queries, int64_t keys, bool causal) {
  return queries * keys / (causal ? 2 : 1) / (kNr * kMr);
}

struct Softmax {
  float max[kTileQueries], sum[kTileQueries], alpha[kTileQueries];
};

// Scores of a vector of queries to exp2(score - max), in place; the running maximum and sum of each query, and alpha,
// the factor of what was summed before. `position` holds the last key that each query sees, counted from the tile's.
MIAOBI_INLINE void softmax_columns(const Sight& sight, Vec position, float* st, float* row_max, float* row_sum,
                                   float* alpha) {
  const Vec minus_inf = Vec::set1(kMinusInf), old_max = Vec::load(row_max);
  Vec m = old_max;
  for (int64_t j = 0; j < sight.all; ++j) m = max(Vec::load(st + j * kTileQueries), m);
  for (int64_t j = sight.all; j < sight.some; ++j) {
    float* p = st + j * kTileQueries;
    const Vec s = select_lt(position, Vec::set1(static_cast<float>(j)), minus_inf, Vec::load(p));
    s.store(p);
    m = max(s, m);
  }
  // Scores that are all -inf would give exp2(-inf - -inf), NaN, so they are shifted by 0.
  const Vec shift = select_lt(minus_inf, m, m, Vec::zero());
  const Vec a = exp2(old_max - shift);
  Vec sum = Vec::load(row_sum) * a;
  for (int64_t j = 0; j < sight.some; ++j) {
    float* p = st + j * kTileQueries;
    const Vec e = exp2(Vec::load(p) - shift);
    e.store(p);
    sum = sum + e;
  }
  m.store(row_max);
  sum.store(row_sum);
  a.store(alpha);
}

inline int64_t attention_forward_scratch(int64_t length, int64_t d) {
  return left_size(length, d) + right_size(length, d) + transposed_size(kTileQueries, d) + kTile +
         right_size(kTileQueries, d) + 5 * kLine;
}

inline void attention_forward(const AttentionHead& head, int64_t query_begin, int64_t query_end, Mat o, float* lse,
                              int64_t lse_stride, const Upcoming& upcoming, float* scratch) {
  const int64_t d = head.q.cols, ldo = ceil_to(d, kNr);
  const int64_t all_keys = head.causal ? query_end : head.k.rows;
  Carver carver{scratch};
  float* kl = carver.take(left_size(all_keys, d));
  float* vr = carver.take(right_size(all_keys, d));
  float* qt = carver.take(transposed_size(kTileQueries, d));
  float* st = carver.take(kTile);
  float* sums = carver.take(right_size(kTileQueries, d));
  pack_left(head.k.row_block(0, all_keys), kl);
  pack_right(head.v.row_block(0, all_keys), vr);
  const float factor = kLog2E / __builtin_sqrtf(static_cast<float>(d));
  const Vec lanes = lane_index();
  alignas(64) Softmax soft;
  Fetcher fetcher(upcoming, score_tiles(query_end - query_begin, all_keys, head.causal));

  for (int64_t q0 = query_begin; q0 < query_end; q0 += kTileQueries) {
    const int64_t queries = lesser(kTileQueries, query_end - q0);
    pack_transposed(head.q.row_block(q0, queries), factor, qt);
    for (int64_t i = 0; i < kTileQueries; ++i) soft.max[i] = kMinusInf, soft.sum[i] = 0.0f;
    const int64_t visible = head.causal ? q0 + queries : all_keys;
    for (int64_t k0 = 0; k0 < visible; k0 += kTileKeys) {
      const int64_t keys = lesser(kTileKeys, visible - k0);
      for (int64_t i = 0; i < queries; i += kNr) {
        const Sight sight(q0 + i, k0, keys, head.causal);
        scores_of_panel(sight.some, d, kl + k0 * d, qt + i * d, st + i, fetcher);
        clear_rows(sight.some, lesser(keys, sight.some + kMr), st + i);
        for (int64_t v = i; v < i + kNr; v += kW) {
          const Vec position = lanes + Vec::set1(static_cast<float>(q0 + v - k0));
          softmax_columns(sight, position, st + v, soft.max + v, soft.sum + v, soft.alpha + v);
        }
      }
      if (k0 > 0) scale_rows(sums, ldo, queries, d, soft.alpha);
      product_of_queries(queries, keys, q0 - k0 + 1, head.causal, d, st, vr + k0 * kNr, all_keys, sums, k0 > 0);
    }
    for (int64_t i = 0; i < queries; ++i) {
      lse[(q0 + i) * lse_stride] = soft.max[i] * kLn2 + log_of_sum(soft.sum[i]);
      const Vec f = Vec::set1(1.0f / soft.sum[i]);
      map(sums + i * ldo, d, o.row(q0 + i), [&](Vec x) { return x * f; });
    }
  }
}

inline int64_t attention_backward_scratch(int64_t length, int64_t d) {
  return 2 * left_size(length, d) + 2 * transposed_size(length, d) + 4 * right_size(length, d) +
         2 * right_size(kTileKeys, d) + 2 * kTile + 2 * ceil_to(length, kNr) + 14 * kLine;
}

// S and dP of one panel of queries to P = exp2(S - lse) and dS = P (dP - delta), the keys past those that a query sees
// to 0. `rows` of the tile were computed.
MIAOBI_INLINE void probabilities(const Sight& sight, int64_t rows, Vec position, const float* lse, const float* delta,
                                 float* p, float* ds) {
  const Vec l = Vec::load(lse), dl = Vec::load(delta);
  for (int64_t j = 0; j < sight.all; ++j, p += kTileQueries, ds += kTileQueries) {
    const Vec e = exp2(Vec::load(p) - l);
    e.store(p);
    (e * (Vec::load(ds) - dl)).store(ds);
  }
  for (int64_t j = sight.all; j < rows; ++j, p += kTileQueries, ds += kTileQueries) {
    const Vec key = Vec::set1(static_cast<float>(j));
    const Vec e = select_lt(position, key, Vec::zero(), exp2(Vec::load(p) - l));
    e.store(p);
    select_lt(position, key, Vec::zero(), e * (Vec::load(ds) - dl)).store(ds);
  }
}

inline void attention_backward(const AttentionHead& head, const AttentionGradients& g, const Upcoming& upcoming,
                               float* scratch) {
  const int64_t d = head.q.cols, length = head.q.rows, ld = ceil_to(d, kNr), padded = ceil_to(length, kNr);
  Carver carver{scratch};
  float* kl = carver.take(left_size(length, d));
  float* vl = carver.take(left_size(length, d));
  float* qt = carver.take(transposed_size(length, d));
  float* dot = carver.take(transposed_size(length, d));
  float* kr = carver.take(right_size(length, d));
  float* qr = carver.take(right_size(length, d));
  float* dor = carver.take(right_size(length, d));
  float* dq = carver.take(right_size(length, d));
  float* dk = carver.take(right_size(kTileKeys, d));
  float* dv = carver.take(right_size(kTileKeys, d));
  float* p = carver.take(kTile);
  float* ds = carver.take(kTile);
  float* lse = carver.take(padded);
  float* delta = carver.take(padded);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(d));
  pack_left(head.k, kl);
  pack_left(head.v, vl);
  pack_transposed(head.q, scale * kLog2E, qt);
  pack_transposed(g.d_o, 1.0f, dot);
  pack_right(head.k, kr);
  pack_right(head.q, qr);
  pack_right(g.d_o, dor);
  row_dots(g.d_o.data, g.d_o.stride, g.o.data, g.o.stride, length, d, delta);
  for (int64_t i = 0; i < length; ++i) lse[i] = g.lse[i * g.lse_stride] * kLog2E;
  for (int64_t i = length; i < padded; ++i) lse[i] = -kMinusInf, delta[i] = 0.0f;
  __builtin_memset(dq, 0, sizeof(float) * static_cast<size_t>(length * ld));
  const Vec lanes = lane_index();
  Fetcher fetcher(upcoming, 2 * score_tiles(length, length, head.causal));

  for (int64_t k0 = 0; k0 < length; k0 += kTileKeys) {
    const int64_t keys = lesser(kTileKeys, length - k0), rows = ceil_to(keys, kMr);
    __builtin_memset(dk, 0, sizeof(float) * static_cast<size_t>(rows * ld));
    __builtin_memset(dv, 0, sizeof(float) * static_cast<size_t>(rows * ld));
    const int64_t first = head.causal ? k0 / kTileQueries * kTileQueries : 0;
    for (int64_t q0 = first; q0 < length; q0 += kTileQueries) {
      const int64_t queries = lesser(kTileQueries, length - q0);
      for (int64_t i = 0; i < queries; i += kNr) {
        const Sight sight(q0 + i, k0, keys, head.causal);
        const int64_t computed = ceil_to(sight.some, kMr);
        scores_of_panel(sight.some, d, kl + k0 * d, qt + (q0 + i) * d, p + i, fetcher);
        scores_of_panel(sight.some, d, vl + k0 * d, dot + (q0 + i) * d, ds + i, fetcher);
        clear_rows(computed, lesser(rows, computed + kMr), ds + i);
        for (int64_t v = i; v < i + kNr; v += kW) {
          const Vec position = lanes + Vec::set1(static_cast<float>(q0 + v - k0));
          probabilities(sight, head.causal ? computed : sight.some, position, lse + q0 + v, delta + q0 + v, p + v,
                        ds + v);
        }
      }
      for (int64_t j = 0; j < keys; j += kMr) {
        // The first panel whose queries see the first of these keys.
        const int64_t from = head.causal && k0 + j > q0 ? (k0 + j - q0) / kNr * kNr : 0;
        if (from >= queries) break;
        product_rows<kMr, kTileQueries>(d, queries - from, p + j * kTileQueries + from, 1, dor + (q0 + from) * kNr,
                                        length, dv + j * ld, true);
        product_rows<kMr, kTileQueries>(d, queries - from, ds + j * kTileQueries + from, 1, qr + (q0 + from) * kNr,
                                        length, dk + j * ld, true);
      }
      product_of_queries(queries, keys, q0 - k0 + 1, head.causal, d, ds, kr + k0 * kNr, length, dq + q0 * ld, true);
    }
    const Vec s = Vec::set1(scale);
    for (int64_t j = 0; j < keys; ++j) {
      map(dk + j * ld, d, g.dk.row(k0 + j), [&](Vec x) { return x * s; });
      map(dv + j * ld, d, g.dv.row(k0 + j), [&](Vec x) { return x; });
    }
  }
  const Vec s = Vec::set1(scale);
  for (int64_t i = 0; i < length; ++i) map(dq + i * ld, d, g.dq.row(i), [&](Vec x) { return x * s; });
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

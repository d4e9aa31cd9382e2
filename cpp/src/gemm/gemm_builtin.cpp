// SPDX-License-Identifier: MIT
// The built-in matrix product: blocking, packing and the split over threads, after Goto and van de Geijn
// 2008. The tile itself is in kernels/gemm.inc.h.
#include <algorithm>

#include "gemm/backend.h"
#include "kernels/dispatch.h"
#include "miaobi/cpu.h"
#include "miaobi/threads.h"

namespace miaobi {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Multiply-adds below which starting the other threads costs more than they save.
constexpr int64_t kSerialWork = 1 << 15;

struct Blocking {
  int64_t kc;  // depth: a panel of A, mr x kc, stays in L1 while tiles go along B
  int64_t mc;  // rows: a block of A, mc x kc, takes up to three quarters of L2 beside a group of panels of B
  int64_t nc;  // columns: a block of B, kc x nc, takes at most a quarter of L3, or 8 MB
};

Blocking blocking_for(const KernelTable& table) {
  const CacheSizes& cache = cache_sizes();
  Blocking b;
  // Not below 256: each block of depth loads and stores C once more.
  b.kc = std::clamp<int64_t>(cache.l1 / (table.nr * 4) / 8 * 8, 256, 384);
  b.mc = std::max<int64_t>(table.mr, cache.l2 / 4 * 3 / (b.kc * 4) / table.mr * table.mr);
  b.nc = std::max<int64_t>(table.nr, std::min<int64_t>(cache.l3 / 4, 8 << 20) / (b.kc * 4) / table.nr * table.nr);
  return b;
}

// Rows of a panel of A: as equal as the tile allows, for a tile of two rows behind one of six leaves most of the
// multiply-add units idle.
int64_t panel_height(const KernelTable& table, int64_t m) { return m > 0 ? ceil_div(m, ceil_div(m, table.mr)) : 1; }

// Equal blocks of depth rather than full ones and a remainder.
int64_t balanced_depth(const Blocking& blocking, int64_t k) {
  return k <= blocking.kc ? std::max<int64_t>(k, 1) : round_up(ceil_div(k, ceil_div(k, blocking.kc)), 8);
}

// Tiles that a panel of B must meet in a thread, where all threads read all of B: it comes from L3.
constexpr int64_t kTilesToShare = 8;

// C is cut into row_blocks x col_blocks parts; a part is one task.
struct Grid {
  int64_t mc, nc, row_blocks, col_blocks;
};

Grid grid_for(const KernelTable& table, const Blocking& blocking, int64_t m, int64_t n, int64_t k) {
  Grid g;
  const int64_t threads = m * n * k <= kSerialWork ? 1 : get_num_threads();
  g.row_blocks = ceil_div(m, blocking.mc);
  // Equal shares for all threads rather than full blocks and a remainder, of whole tiles where there are many.
  if (g.row_blocks > 1 || m >= threads * kTilesToShare * table.mr) g.row_blocks = round_up(g.row_blocks, threads);
  g.mc = ceil_div(m, g.row_blocks);
  if (g.mc > 2 * kTilesToShare * table.mr) g.mc = round_up(g.mc, table.mr);
  g.row_blocks = ceil_div(m, g.mc);
  // Few rows: cut the columns too. Every part packs its rows of A again, so no more parts than needed.
  g.col_blocks = g.row_blocks >= threads ? 1 : round_up(ceil_div(threads, g.row_blocks), threads);
  g.nc = round_up(ceil_div(n, g.col_blocks), table.nr);
  g.col_blocks = ceil_div(n, g.nc);
  return g;
}

// Runs the tasks of one block of columns and depth; `b` holds op(B)[k0 .. k0+k) x [0 .. n) in panels.
void run_block(const KernelTable& table, const Blocking& blocking, int64_t m, int64_t n, int64_t k0, int64_t k,
               const Operand& a, const Panels& b, float* c, int64_t ldc, bool load_c, const Epilogue* epilogue) {
  const Grid grid = grid_for(table, blocking, m, n, k);
  // A full block's room whatever the rows: a smaller product may be cut into larger parts than a bigger one.
  const LoopScratch scratch(Scratch::kPackA, std::max(grid.mc * k, blocking.mc * blocking.kc) + table.width);
  parallel_for_slots(grid.row_blocks * grid.col_blocks, scratch.slots, [&](int64_t task, int slot) {
    const int64_t i0 = task % grid.row_blocks * grid.mc, j0 = task / grid.row_blocks * grid.nc;
    const int64_t rows = std::min(grid.mc, m - i0), cols = std::min(grid.nc, n - j0);
    float* packed = scratch[slot];
    const int64_t height = panel_height(table, rows);
    table.pack(a, i0, rows, k0, k, height, packed);
    const Panels left{packed, height * k, height, height};
    const Panels right{b.data + j0 / table.nr * b.panel_stride, b.panel_stride, b.k_stride};
    const Epilogue part = epilogue ? epilogue->at(i0, j0) : Epilogue{};
    table.gemm_block(rows, cols, k, left, right, c + i0 * ldc + j0, ldc, load_c, epilogue ? &part : nullptr);
  });
}

// Few rows: B goes through memory once, in pieces of `group` columns and `depth` rows that stay in cache while all rows
// of A use them. piece(j, cols, k0, d, scratch) gives the panels of one.
struct Pieces {
  int64_t group, depth, scratch;  // scratch: floats for one piece
};

template <class Piece>
void few_rows(const KernelTable& table, int64_t m, int64_t n, int64_t k, const Operand& a, float* c, int64_t ldc,
              bool accumulate, const Epilogue& epilogue, const Pieces& pieces, Piece&& piece) {
  const int64_t height = panel_height(table, m);
  // Panels lie apart: packing one spills over its end, and they may be packed at the same time.
  const int64_t stride = round_up(height * k + table.width, table.width);
  float* left = thread_scratch(Scratch::kPackA, ceil_div(m, height) * stride);
  const auto pack = [&](int64_t panel) {
    table.pack(a, panel * height, std::min(height, m - panel * height), 0, k, height, left + panel * stride);
  };
  const int64_t panels = ceil_div(m, height);
  if (m * k <= kSerialWork / 4) {
    for (int64_t p = 0; p < panels; ++p) pack(p);
  } else {
    parallel_for(panels, pack);
  }
  const LoopScratch scratch(Scratch::kPackB, pieces.scratch);
  const int slots = m * n * k <= kSerialWork ? 1 : scratch.slots;
  parallel_for_slots(ceil_div(n, pieces.group), slots, [&](int64_t task, int slot) {
    const int64_t j = task * pieces.group, cols = std::min(pieces.group, n - j);
    const Epilogue part = epilogue.at(0, j);
    int64_t k0 = 0;
    do {  // once even where k is 0
      const int64_t d = std::min(pieces.depth, k - k0);
      const bool last = k0 + d >= k;
      table.gemm_block(m, cols, d, {left + k0 * height, stride, height, height}, piece(j, cols, k0, d, scratch[slot]),
                       c + j, ldc, accumulate || k0 > 0, last && !epilogue.empty() ? &part : nullptr);
      k0 += d;
    } while (k0 < k);
  });
}

// One row meets a B that needs no packing.
void one_row(const KernelTable& table, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c,
             bool accumulate, const Epilogue& epilogue, int64_t group) {
  float* left = thread_scratch(Scratch::kPackA, k + table.width);
  table.pack(a, 0, 1, 0, k, 1, left);
  parallel_for_slots(ceil_div(n, group), n * k <= kSerialWork ? 1 : get_num_threads(), [&](int64_t task, int) {
    const int64_t j = task * group, cols = std::min(group, n - j);
    table.gemv(cols, k, left, b.data + (b.k_major ? j : j * b.stride), b.stride, b.k_major, c + j, accumulate);
    if (!epilogue.empty()) table.epilogue(epilogue.at(0, j), 1, cols, c + j, n);
  });
}

// Columns of a piece: `longest` at most, and as many pieces for each thread as for any other, `each` at least; of whole
// tiles of several panels where up to twice as many pieces have them. One thread takes rows of B whole: each part of a
// row is a run that the prefetcher has to find anew.
int64_t group_for(const KernelTable& table, int64_t m, int64_t n, int64_t k, int64_t longest, int64_t each = 2) {
  const int64_t threads = m * n * k <= kSerialWork ? 1 : get_num_threads();
  const int64_t least = round_up(std::max(ceil_div(n, longest), threads == 1 ? 1 : each * threads), threads);
  for (int64_t pieces = least; pieces <= 2 * least; pieces += threads) {
    const int64_t group = ceil_div(n, pieces);
    if (group % (4 * table.nr) == 0) return group;
  }
  return round_up(ceil_div(n, least), table.nr);
}

// Many rows: blocks of B go through cache, and for each of them blocks of A. panels(j0, cols, k0, depth) gives one.
template <class PanelsOf>
void many_rows(const KernelTable& table, int64_t m, int64_t n, int64_t k, const Operand& a, float* c, int64_t ldc,
               bool accumulate, const Epilogue& epilogue, PanelsOf&& panels) {
  const Blocking blocking = blocking_for(table);
  const int64_t step = balanced_depth(blocking, k);
  for (int64_t j0 = 0; j0 < n; j0 += blocking.nc) {
    const int64_t cols = std::min(blocking.nc, n - j0);
    const Epilogue part = epilogue.at(0, j0);
    int64_t k0 = 0;
    do {
      const int64_t depth = std::min(step, k - k0);
      const bool last = k0 + depth >= k;
      run_block(table, blocking, m, cols, k0, depth, a, panels(j0, cols, k0, depth), c + j0, ldc, accumulate || k0 > 0,
                last && !part.empty() ? &part : nullptr);
      k0 += depth;
    } while (k0 < k);
  }
}

// body(begin, end) packs columns [begin, end) of a block; enough of them at a time to be worth a task.
template <class Body>
void pack_columns(const KernelTable& table, int64_t cols, int64_t depth, Body&& body) {
  const int64_t grain = table.nr * std::max<int64_t>(1, (1 << 14) / (table.nr * std::max<int64_t>(depth, 1)));
  parallel_ranges(cols, grain, body);
}

// bfloat16 pairs: as many_rows and run_block, on panels of pairs, for any number of rows, for the instruction adds in
// another order than float32 does, and a row is to have the same bits in any batch.
void pair_rows(const KernelTable& table, int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c,
               int64_t ldc, bool accumulate, const Epilogue& epilogue) {
  Blocking blocking = blocking_for(table);
  blocking.kc *= 2;  // of half the size
  const int64_t step = balanced_depth(blocking, k);
  const LoopScratch wide(Scratch::kPairs, table.nr * step + table.width);  // nr is more than mr
  for (int64_t j0 = 0; j0 < n; j0 += blocking.nc) {
    const int64_t cols = std::min(blocking.nc, n - j0);
    int64_t k0 = 0;
    do {
      const int64_t depth = std::min(step, k - k0), pairs = ceil_div(depth, 2);
      auto* right = reinterpret_cast<uint32_t*>(
          thread_scratch(Scratch::kPackB, round_up(cols, table.nr) * std::max<int64_t>(pairs, 1) + table.width));
      parallel_for_slots(ceil_div(cols, table.nr), wide.slots, [&](int64_t panel, int slot) {
        const int64_t j = panel * table.nr;
        table.pack_pairs(b, j0 + j, std::min<int64_t>(table.nr, cols - j), k0, depth, table.nr, wide[slot],
                         right + j * pairs);
      });
      const Grid grid = grid_for(table, blocking, m, cols, depth);
      const LoopScratch scratch(Scratch::kPackA,
                                std::max(grid.mc * pairs, blocking.mc * blocking.kc / 2) + table.width);
      parallel_for_slots(grid.row_blocks * grid.col_blocks, scratch.slots, [&](int64_t task, int slot) {
        const int64_t i = task % grid.row_blocks * grid.mc, j = task / grid.row_blocks * grid.nc;
        const int64_t rows = std::min(grid.mc, m - i), width = std::min(grid.nc, cols - j);
        const int64_t height = panel_height(table, rows);
        auto* left = reinterpret_cast<uint32_t*>(scratch[slot]);
        table.pack_pairs(a, i, rows, k0, depth, height, wide[slot], left);
        const Epilogue part = epilogue.at(i, j0 + j);
        const bool last = k0 + depth >= k && !epilogue.empty();
        table.gemm_pairs_block(rows, width, pairs, left, height, right + j * pairs, c + i * ldc + j0 + j, ldc,
                               accumulate || k0 > 0, last ? &part : nullptr);
      });
      k0 += depth;
    } while (k0 < k);
  }
}

// Few rows are packed over the whole depth: no more than 1 MB of them.
bool are_few(const KernelTable& table, int64_t m, int64_t k) { return m <= 4 * table.mr && m * k <= 1 << 18; }

// More of them, which still fit into L2 over a depth of k, beside a C that is wider than they are: B is packed, or
// widened, in pieces that stay there too, where packed blocks would go to L3 and come back from it.
bool fit_l2(int64_t m, int64_t n, int64_t k) { return m * k * 4 <= cache_sizes().l2 && 2 * m < n; }

// fill(j, cols, k0, depth, dst) puts such a piece, 192 KB at most, at dst in panels.
template <class Fill>
void piecewise(const KernelTable& table, int64_t m, int64_t n, int64_t k, const Operand& a, float* c, int64_t ldc,
               bool accumulate, const Epilogue& epilogue, Fill&& fill) {
  const int64_t longest = round_up(128, 4 * table.nr), depth = balanced_depth(blocking_for(table), k);
  few_rows(table, m, n, k, a, c, ldc, accumulate, epilogue,
           {group_for(table, m, n, k, longest), depth, longest * depth + table.width},
           [&](int64_t j, int64_t cols, int64_t k0, int64_t d, float* scratch) -> Panels {
             fill(j, cols, k0, d, scratch);
             return {scratch, table.nr * d, table.nr};
           });
}

}  // namespace

void gemm_builtin(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c, int64_t ldc,
                  bool accumulate, const Epilogue& epilogue) {
  const KernelTable& table = kernels_in_use();
  if (a.bf16 && b.bf16 && table.gemm_pairs_block != nullptr) {
    pair_rows(table, m, n, k, a, b, c, ldc, accumulate, epilogue);
    return;
  }
  const bool few = are_few(table, m, k);
  if (!few && fit_l2(m, n, k)) {
    piecewise(table, m, n, k, a, c, ldc, accumulate, epilogue,
              [&](int64_t j, int64_t cols, int64_t k0, int64_t depth, float* dst) {
                table.pack(b, j, cols, k0, depth, table.nr, dst);
              });
    return;
  }
  if (!few) {
    many_rows(table, m, n, k, a, c, ldc, accumulate, epilogue,
              [&](int64_t j0, int64_t cols, int64_t k0, int64_t depth) -> Panels {
                float* packed = thread_scratch(Scratch::kPackB, round_up(cols, table.nr) * depth + table.width);
                pack_columns(table, cols, depth, [&](int64_t begin, int64_t end) {
                  table.pack(b, j0 + begin, end - begin, k0, depth, table.nr, packed + begin * depth);
                });
                return {packed, table.nr * depth, table.nr};
              });
    return;
  }
  // Long runs of each stored row of B, for the sake of the prefetcher.
  const bool plain = !b.bf16 && b.transform == Transform::kNone && k > 0;
  if (m == 1 && plain) {
    const int64_t group = b.k_major ? group_for(table, 1, n, k, 4096, 1) : group_for(table, 1, n, k, 384);
    one_row(table, n, k, a, b, c, accumulate, epilogue, group);
  } else if (b.k_major && plain) {  // B is used where it lies
    const bool fewest = m < kStoredRows;
    const int64_t depth = fewest ? 8 : kStoredDepth, group = group_for(table, m, n, k, 4096, fewest ? 1 : 2);
    few_rows(table, m, n, k, a, c, ldc, accumulate, epilogue, {group, depth, 0},
             [&](int64_t j, int64_t, int64_t k0, int64_t, float*) -> Panels {
               return {b.data + k0 * b.stride + j, table.nr, b.stride};
             });
  } else {
    const int64_t longest = b.k_major ? 256 : 64, depth = (1 << 14) / longest;  // pieces of 64 KB
    few_rows(table, m, n, k, a, c, ldc, accumulate, epilogue,
             {group_for(table, m, n, k, longest), depth, round_up(longest, 4 * table.nr) * depth + table.width},
             [&](int64_t j, int64_t cols, int64_t k0, int64_t d, float* scratch) -> Panels {
               table.pack(b, j, cols, k0, d, table.nr, scratch);
               return {scratch, table.nr * d, table.nr};
             });
  }
}

PackedMatrix::PackedMatrix(const Operand& b, int64_t n, int64_t k, WeightType type) : n_(n), k_(k), type_(type) {
  const KernelTable& table = kernels_in_use();
  const int64_t size = round_up(n, table.nr) * k + table.width;
  const bool bf16 = type == WeightType::kBf16;
  if (bf16) {
    bf16_ = Buffer<uint16_t>(size, true);
  } else {
    float32_ = Buffer<float>(size, true);
  }
  Operand right = b;
  right.bf16 = get_matmul_precision() == "bf16";
  const LoopScratch scratch(Scratch::kPackB, bf16 ? table.nr * k + table.width : 0);
  parallel_for_slots(ceil_div(n, table.nr), scratch.slots, [&](int64_t panel, int slot) {
    const int64_t j = panel * table.nr, cols = std::min<int64_t>(table.nr, n - j);
    if (!bf16) {
      table.pack(right, j, cols, 0, k, table.nr, float32_.data() + j * k);
      return;
    }
    float* rows = scratch[slot];
    std::fill_n(rows, table.nr * k, 0.0f);
    table.pack(right, j, cols, 0, k, table.nr, rows);
    table.narrow_panels(rows, k, bf16_.data() + j * k);
  });
}

int64_t PackedMatrix::bytes() const {
  return float32_.size() * static_cast<int64_t>(sizeof(float)) + bf16_.size() * static_cast<int64_t>(sizeof(uint16_t));
}

void gemm_builtin(int64_t m, const Operand& a, const PackedMatrix& b, float* c, int64_t ldc, bool accumulate,
                  const Epilogue& epilogue) {
  const KernelTable& table = kernels_in_use();
  const int64_t k = b.k(), n = b.n();
  const auto at = [&](int64_t j, int64_t k0) -> Panels {
    const int64_t offset = j * k + k0 * table.nr;
    const bool bf16 = b.type() == WeightType::kBf16;
    return {bf16 ? nullptr : b.float32() + offset, table.nr * k, table.nr, 0, bf16 ? b.bf16() + offset : nullptr};
  };
  if (are_few(table, m, k)) {
    // One tile's rows keep C in registers over the whole depth and read the weights once, front to back.
    const int64_t depth = m <= table.mr ? std::max<int64_t>(k, 1) : balanced_depth(blocking_for(table), k);
    few_rows(table, m, n, k, a, c, ldc, accumulate, epilogue, {group_for(table, m, n, k, n), depth, 0},
             [&](int64_t j, int64_t, int64_t k0, int64_t, float*) { return at(j, k0); });
    return;
  }
  const auto widen = [&](int64_t j, int64_t k0, int64_t depth, float* dst) {
    table.widen_panels(at(j, k0).bf16, depth, dst);
  };
  if (b.type() == WeightType::kBf16 && fit_l2(m, n, balanced_depth(blocking_for(table), k))) {
    piecewise(table, m, n, k, a, c, ldc, accumulate, epilogue,
              [&](int64_t j, int64_t cols, int64_t k0, int64_t depth, float* dst) {
                for (int64_t p = 0; p < cols; p += table.nr) widen(j + p, k0, depth, dst + p * depth);
              });
    return;
  }
  many_rows(table, m, n, k, a, c, ldc, accumulate, epilogue,
            [&](int64_t j0, int64_t cols, int64_t k0, int64_t depth) -> Panels {
              if (b.type() == WeightType::kFloat32) return at(j0, k0);
              // Many rows use each element: it is widened once.
              float* wide = thread_scratch(Scratch::kPackB, round_up(cols, table.nr) * depth);
              pack_columns(table, cols, depth, [&](int64_t begin, int64_t end) {
                for (int64_t j = begin; j < end; j += table.nr) widen(j0 + j, k0, depth, wide + j * depth);
              });
              return {wide, table.nr * depth, table.nr};
            });
}

}  // namespace miaobi

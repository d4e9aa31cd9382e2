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
  int64_t kc;  // depth: a panel of B, kc x nr, takes half of L1 and stays there while tiles go down A
  int64_t mc;  // rows: a block of A, mc x kc, takes half of L2
  int64_t nc;  // columns: a block of B, kc x nc, takes at most a quarter of L3, or 8 MB
};

Blocking blocking_for(const KernelTable& table) {
  const CacheSizes& cache = cache_sizes();
  Blocking b;
  // Not below 256: each block of depth loads and stores C once more.
  b.kc = std::clamp<int64_t>(cache.l1 / 2 / (table.nr * 4) / 8 * 8, 256, 512);
  b.mc = std::max<int64_t>(table.mr, cache.l2 / 2 / (b.kc * 4) / table.mr * table.mr);
  b.nc = std::max<int64_t>(table.nr, std::min<int64_t>(cache.l3 / 4, 8 << 20) / (b.kc * 4) / table.nr * table.nr);
  return b;
}

// C is cut into row_blocks x col_blocks parts; a part is one task.
struct Grid {
  int64_t mc, nc, row_blocks, col_blocks;
};

Grid grid_for(const KernelTable& table, const Blocking& blocking, int64_t m, int64_t n, int64_t k) {
  Grid g;
  const int64_t threads = m * n * k <= kSerialWork ? 1 : get_num_threads();
  g.row_blocks = ceil_div(m, blocking.mc);
  // Equal shares for all threads rather than full blocks and a remainder.
  if (g.row_blocks > 1) g.row_blocks = round_up(g.row_blocks, threads);
  g.mc = round_up(ceil_div(m, g.row_blocks), table.mr);
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
    table.pack(a, i0, rows, k0, k, table.mr, packed);
    const Panels left{packed, table.mr * k, table.mr};
    const Panels right{b.data + j0 / table.nr * b.panel_stride, b.panel_stride, b.k_stride};
    const Epilogue part = epilogue ? epilogue->at(i0, j0) : Epilogue{};
    table.gemm_block(rows, cols, k, left, right, c + i0 * ldc + j0, ldc, load_c, epilogue ? &part : nullptr);
  });
}

// Few rows against a B that has to be packed: each task packs a few panels of full depth and uses them while they are
// in its cache, instead of sending all of B through memory twice.
void few_rows(const KernelTable& table, int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c,
              int64_t ldc, bool accumulate, const Epilogue& epilogue) {
  const int64_t group = 4 * table.nr;  // what the widest tile of one row takes
  float* left = thread_scratch(Scratch::kPackA, round_up(m, table.mr) * k + table.width);
  table.pack(a, 0, m, 0, k, table.mr, left);
  const LoopScratch scratch(Scratch::kPackB, group * k + table.width);
  const int slots = m * n * k <= kSerialWork ? 1 : scratch.slots;
  parallel_for_slots(ceil_div(n, group), slots, [&](int64_t task, int slot) {
    const int64_t j = task * group, cols = std::min(group, n - j);
    float* right = scratch[slot];
    table.pack(b, j, cols, 0, k, table.nr, right);
    const Epilogue part = epilogue.at(0, j);
    table.gemm_block(m, cols, k, {left, table.mr * k, table.mr}, {right, table.nr * k, table.nr}, c + j, ldc,
                     accumulate, epilogue.empty() ? nullptr : &part);
  });
}

}  // namespace

void gemm_builtin(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c, int64_t ldc,
                  bool accumulate, const Epilogue& epilogue) {
  const KernelTable& table = kernels_in_use();
  const Blocking blocking = blocking_for(table);
  // Packing B pays when enough rows use it; below that, B's own rows serve as panels.
  const bool few = m <= 2 * table.mr;
  const bool direct = few && b.k_major && !b.bf16 && b.transform == Transform::kNone;
  if (few && !direct) {
    few_rows(table, m, n, k, a, b, c, ldc, accumulate, epilogue);
    return;
  }
  for (int64_t j0 = 0; j0 < n; j0 += blocking.nc) {
    const int64_t cols = std::min(blocking.nc, n - j0);
    const Epilogue part = epilogue.at(0, j0);
    int64_t k0 = 0;
    do {  // once even where k is 0
      const int64_t depth = std::min(blocking.kc, k - k0);
      Panels right{b.data + k0 * b.stride + j0, table.nr, b.stride};
      if (!direct) {
        float* packed = thread_scratch(Scratch::kPackB, round_up(cols, table.nr) * depth + table.width);
        const int64_t grain = table.nr * std::max<int64_t>(1, (1 << 14) / (table.nr * std::max<int64_t>(depth, 1)));
        parallel_ranges(cols, grain, [&](int64_t begin, int64_t end) {
          table.pack(b, j0 + begin, end - begin, k0, depth, table.nr, packed + begin * depth);
        });
        right = {packed, table.nr * depth, table.nr};
      }
      const bool last = k0 + depth >= k;
      run_block(table, blocking, m, cols, k0, depth, a, right, c + j0, ldc, accumulate || k0 > 0,
                last && !part.empty() ? &part : nullptr);
      k0 += depth;
    } while (k0 < k);
  }
}

PackedMatrix::PackedMatrix(const Operand& b, int64_t n, int64_t k) : n_(n), k_(k) {
  const KernelTable& table = kernels_in_use();
  data_ = Buffer<float>(round_up(n, table.nr) * k + table.width, true);
  Operand right = b;
  right.bf16 = get_matmul_precision() == "bf16";
  parallel_ranges(n, table.nr, [&](int64_t begin, int64_t end) {
    table.pack(right, begin, end - begin, 0, k, table.nr, data_.data() + begin * k);
  });
}

void gemm_builtin(int64_t m, const Operand& a, const PackedMatrix& b, float* c, int64_t ldc, bool accumulate,
                  const Epilogue& epilogue) {
  const KernelTable& table = kernels_in_use();
  const Blocking blocking = blocking_for(table);
  const int64_t k = b.k();
  // A few rows leave C in registers over the whole depth and read the weights once, front to back.
  const int64_t kc = m <= table.mr ? std::max<int64_t>(k, 1) : blocking.kc;
  int64_t k0 = 0;
  do {
    const int64_t depth = std::min(kc, k - k0);
    const Panels right{b.data() + k0 * table.nr, table.nr * k, table.nr};
    run_block(table, blocking, m, b.n(), k0, depth, a, right, c, ldc, accumulate || k0 > 0,
              k0 + depth >= k && !epilogue.empty() ? &epilogue : nullptr);
    k0 += depth;
  } while (k0 < k);
}

}  // namespace miaobi

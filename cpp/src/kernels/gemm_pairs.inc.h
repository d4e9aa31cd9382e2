// SPDX-License-Identifier: MIT
// The GEMM tile on bfloat16 pairs, for instruction sets that have their dot product: two multiply-adds a lane where
// float32 has one, on half the bytes. Element (i, k) lies in half k % 2 of the pair of its panel at k / 2.
#pragma once

#include "kernels/gemm.inc.h"
#include "kernels/pack.inc.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

template <int Rows, int Vectors, bool kMasked>
void pair_tile(int64_t pairs, const uint32_t* MIAOBI_RESTRICT a, int64_t height, const uint32_t* MIAOBI_RESTRICT b,
               float* MIAOBI_RESTRICT c, int64_t ldc, bool load_c, int64_t tail) {
  Vec acc[Rows][Vectors];
  load_tile<kMasked>(acc, c, ldc, load_c, tail);
  for (int64_t i = 0; i < pairs; ++i) {
    Pairs bv[Vectors];
    MIAOBI_UNROLL
    for (int v = 0; v < Vectors; ++v) bv[v] = Pairs::load(b + v * kW);
    MIAOBI_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Pairs av = Pairs::set1(a[r]);
      MIAOBI_UNROLL
      for (int v = 0; v < Vectors; ++v) acc[r][v] = dot(av, bv[v], acc[r][v]);
    }
    a += height;
    b += kNr;
  }
  store_tile<kMasked>(acc, c, ldc, tail);
}

using PairTileFn = void (*)(int64_t, const uint32_t*, int64_t, const uint32_t*, float*, int64_t, bool, int64_t);

struct PairTileSet {
  PairTileFn full[2], masked[2];  // one or two vectors; the last of them cut
};

template <int N, int... R>
struct CountPairs : CountPairs<N - 1, N, R...> {};
template <int... R>
struct CountPairs<0, R...> {
  static constexpr PairTileSet kSets[sizeof...(R)] = {
      {{pair_tile<R, 1, false>, pair_tile<R, 2, false>}, {pair_tile<R, 1, true>, pair_tile<R, 2, true>}}...};
};

inline void gemm_pairs_block(int64_t m, int64_t n, int64_t pairs, const uint32_t* a, int64_t height, const uint32_t* b,
                             float* c, int64_t ldc, bool load_c, const Epilogue* epilogue) {
  const PairTileSet* tiles = CountPairs<kMr>::kSets;
  for (int64_t j = 0; j < n; j += kNr) {
    const int64_t cols = n - j < kNr ? n - j : kNr;
    const int64_t vectors = (cols + kW - 1) / kW, tail = cols - (vectors - 1) * kW;
    for (int64_t i = 0; i < m; i += height) {
      const int64_t rows = m - i < height ? m - i : height;
      const PairTileSet& t = tiles[rows - 1];
      const PairTileFn f = tail == kW ? t.full[vectors - 1] : t.masked[vectors - 1];
      f(pairs, a + i * pairs, height, b + j * pairs, c + i * ldc + j, ldc, load_c, tail);
    }
    if (epilogue) apply_epilogue(*epilogue, 0, m, j, cols, c + j, ldc);
  }
}

// Packs one panel at a time in float32, with the operand's transform, and pairs its rows up. The pair of an odd last k
// has a zero.
inline void pack_pairs(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel,
                       float* scratch, uint32_t* dst) {
  Operand plain = x;
  plain.bf16 = false;  // pairing rounds
  const int64_t pairs = (k + 1) / 2;
  for (int64_t p = 0; p < count; p += panel, dst += panel * pairs) {
    const int64_t width = count - p < panel ? count - p : panel;
    pack(plain, i0 + p, width, k0, k, panel, scratch);
    for (int64_t q = 0; q < pairs; ++q) {
      const float* even = scratch + 2 * q * panel;
      for (int64_t i = 0; i < panel; i += kW) {
        // Lanes past the panel land on its next row, which comes later; those of the last are spare room.
        store_pairs(Vec::load(even + i), 2 * q + 1 < k ? Vec::load(even + panel + i) : Vec::zero(),
                    dst + q * panel + i);
      }
    }
  }
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

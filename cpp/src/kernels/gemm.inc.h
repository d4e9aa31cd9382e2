// SPDX-License-Identifier: MIT
// The GEMM tile and the loop over tiles.
#pragma once

#include "kernels/epilogue.inc.h"
#include "kernels/kernel_table.h"
#include "kernels/math.inc.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

constexpr int kNr = 2 * kW;  // two vectors a row: every broadcast of A feeds two multiply-adds
constexpr int kMr = MIAOBI_TILE_ROWS;

// Vector `v`, 0 or 1, of a row of a panel of B; if `masked`, the `n` elements of it that there are. bfloat16 panels are
// whole, and a word holds an element of each vector.
MIAOBI_INLINE Vec load_right(const float* row, int v, bool masked, int64_t n) {
  return masked ? Vec::load_n(row + v * kW, n) : Vec::load(row + v * kW);
}
MIAOBI_INLINE Vec load_right(const uint16_t* row, int v, bool, int64_t) {
  return v == 0 ? Vec::load_lower(row) : Vec::load_upper(row);
}

template <bool kMasked, int Rows, int Vectors>
MIAOBI_INLINE void load_tile(Vec (&acc)[Rows][Vectors], const float* c, int64_t ldc, bool load_c, int64_t tail) {
  MIAOBI_UNROLL
  for (int r = 0; r < Rows; ++r) {
    MIAOBI_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      const float* p = c + r * ldc + v * kW;
      acc[r][v] = !load_c ? Vec::zero() : (kMasked && v == Vectors - 1) ? Vec::load_n(p, tail) : Vec::load(p);
    }
  }
}

template <bool kMasked, int Rows, int Vectors>
MIAOBI_INLINE void store_tile(const Vec (&acc)[Rows][Vectors], float* c, int64_t ldc, int64_t tail) {
  MIAOBI_UNROLL
  for (int r = 0; r < Rows; ++r) {
    MIAOBI_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      float* p = c + r * ldc + v * kW;
      if (kMasked && v == Vectors - 1) {
        acc[r][v].store_n(p, tail);
      } else {
        acc[r][v].store(p);
      }
    }
  }
}

// What a tile fetches into L1 at each step of its loop, beside what it needs now.
struct FetchNothing {
  MIAOBI_INLINE void operator()() const {}
};
struct FetchAlong {
  const char* next;
  int64_t bytes;  // from one step to the next
  MIAOBI_INLINE void operator()() {
    MIAOBI_PREFETCH(next);
    next += bytes;
  }
};

// The lines of another panel that lies as it is stored.
struct FetchStored {
  const float* next;
  int64_t stride;
  MIAOBI_INLINE void operator()() {
    MIAOBI_UNROLL
    for (int v = 0; v < kNr; v += kLine) MIAOBI_PREFETCH(next + v);
    next += stride;
  }
};

// Rows x Vectors accumulators, one chain each. Vector v of the tile lies in panel v / 2. With kMasked the
// last vector has only `tail` columns. Rows of A lie kRowStep apart. What was read of B is left at `kept`, packed, with
// kKeep.
template <class Right, int Rows, int Vectors, bool kMasked, int kRowStep, class Fetch, bool kKeep = false>
MIAOBI_INLINE void fetching_tile(int64_t k, const float* MIAOBI_RESTRICT a, int64_t a_stride,
                                 const Right* MIAOBI_RESTRICT b, int64_t b_panel, int64_t b_stride,
                                 float* MIAOBI_RESTRICT c, int64_t ldc, bool load_c, int64_t tail, Fetch fetch,
                                 float* MIAOBI_RESTRICT kept = nullptr) {
  Vec acc[Rows][Vectors];
  load_tile<kMasked>(acc, c, ldc, load_c, tail);
  for (int64_t i = 0; i < k; ++i) {
    fetch();
    const auto right = [&](int v) {
      return load_right(b + (v / 2) * b_panel, v % 2, kMasked && v == Vectors - 1, tail);
    };
    if constexpr (Rows == 1) {  // each vector is used once: no register need hold it
      const Vec av = Vec::set1(a[0]);
      MIAOBI_UNROLL
      for (int v = 0; v < Vectors; ++v) acc[0][v] = fma(av, right(v), acc[0][v]);
    } else {
      Vec bv[Vectors];
      MIAOBI_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        bv[v] = right(v);
        if constexpr (kKeep) bv[v].store(kept + i * kNr + v * kW);
      }
      MIAOBI_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const Vec av = Vec::set1(a[r * kRowStep]);
        MIAOBI_UNROLL
        for (int v = 0; v < Vectors; ++v) acc[r][v] = fma(av, bv[v], acc[r][v]);
      }
    }
    a += a_stride;
    b += b_stride;
  }
  store_tile<kMasked>(acc, c, ldc, tail);
}

template <class Right, int Rows, int Vectors, bool kMasked, int kRowStep = 1>
void tile(int64_t k, const float* MIAOBI_RESTRICT a, int64_t a_stride, const Right* MIAOBI_RESTRICT b, int64_t b_panel,
          int64_t b_stride, float* MIAOBI_RESTRICT c, int64_t ldc, bool load_c, int64_t tail) {
  fetching_tile<Right, Rows, Vectors, kMasked, kRowStep>(k, a, a_stride, b, b_panel, b_stride, c, ldc, load_c, tail,
                                                         FetchNothing{});
}

// The tile that most of the time goes into: two whole vectors, panels without gaps. Where another thread computes on
// the same core, this one starts half as many instructions, and each that is no multiply-add counts: hence the
// unrolling. With more rows, as vectors of 16 lanes have them, the loop itself is little beside them.
template <class Right, int Rows, class Fetch>
void dense_tile(int64_t k, const float* MIAOBI_RESTRICT a, const Right* MIAOBI_RESTRICT b, float* MIAOBI_RESTRICT c,
                int64_t ldc, bool load_c, Fetch fetch) {
  constexpr int kSteps = Rows <= 6 ? 4 : 1;
  Vec acc[Rows][2];
  load_tile<false>(acc, c, ldc, load_c, 0);
  for (const float* end = a + k / kSteps * kSteps * Rows; a != end; a += kSteps * Rows, b += kSteps * kNr) {
    MIAOBI_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      fetch();
      const Vec b0 = load_right(b + s * kNr, 0, false, 0), b1 = load_right(b + s * kNr, 1, false, 0);
      MIAOBI_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const Vec av = Vec::set1(a[s * Rows + r]);
        acc[r][0] = fma(av, b0, acc[r][0]);
        acc[r][1] = fma(av, b1, acc[r][1]);
      }
    }
  }
  store_tile<false>(acc, c, ldc, 0);
  if (const int64_t rest = k % kSteps; rest > 0) {
    tile<Right, Rows, 2, false>(rest, a, Rows, b, 0, kNr, c, ldc, true, 0);
  }
}

template <class Right>
using TileFn = void (*)(int64_t, const float*, int64_t, const Right*, int64_t, int64_t, float*, int64_t, bool, int64_t);
template <class Right, class Fetch>
using DenseTileFn = void (*)(int64_t, const float*, const Right*, float*, int64_t, bool, Fetch);

constexpr int kManyPanels = 4;

template <class Right>
struct TileSet {
  TileFn<Right> full[2];    // one or two whole vectors
  TileFn<Right> masked[2];  // the last of them cut
  // Two whole vectors, rows of A and of B one behind the other.
  DenseTileFn<Right, FetchNothing> dense;
  DenseTileFn<Right, FetchAlong> dense_fetching;
  // Several panels at once, so that few rows still fill the multiply-add pipelines; or null.
  TileFn<Right> two_panels, many;
};

// Multiply-adds take about four cycles and two start in each, so eight chains must be under way: one row
// takes four panels at once, two rows two.
template <class Right, int Rows>
constexpr TileSet<Right> make_tiles() {
  TileSet<Right> t{{tile<Right, Rows, 1, false>, tile<Right, Rows, 2, false>},
                   {tile<Right, Rows, 1, true>, tile<Right, Rows, 2, true>},
                   dense_tile<Right, Rows, FetchNothing>,
                   dense_tile<Right, Rows, FetchAlong>,
                   nullptr,
                   nullptr};
  if constexpr (Rows == 1) t.many = tile<Right, Rows, 2 * kManyPanels, false>;
  if constexpr (Rows <= 3 && Rows * 4 <= 2 * kMr) t.two_panels = tile<Right, Rows, 4, false>;
  return t;
}

// CountTo<Right, N>::kSets[r - 1] are the tiles of r rows, r = 1..N.
template <class Right, int N, int... R>
struct CountTo : CountTo<Right, N - 1, N, R...> {};
template <class Right, int... R>
struct CountTo<Right, 0, R...> {
  static constexpr TileSet<Right> kSets[sizeof...(R)] = {make_tiles<Right, R>()...};
};

// What the epilogue of a tile is going to read, long before it does.
MIAOBI_INLINE void prefetch_epilogue(const Epilogue& e, int64_t row0, int64_t rows, int64_t col) {
  for (int64_t r = row0; r < row0 + rows; ++r) {
    for (int64_t v = col; v < col + kNr; v += kLine) {
      if (e.grad_of) MIAOBI_PREFETCH(e.grad_of + r * e.grad_of_stride + v);
      if (e.residual) MIAOBI_PREFETCH(e.residual + r * e.residual_stride + v);
    }
  }
}

// Columns of C that the rows pass over together. A tile's rows of C then lie side by side with its neighbour's, in runs
// of 512 bytes, where each on its own would be a cache line of another page; the panels of B for them stay in L2.
constexpr int64_t kGroup = 128 / kNr;

constexpr int64_t kFewTiles = 4;  // rows for so many tiles are few

template <class Right>
inline void gemm_tiles(int64_t m, int64_t n, int64_t k, const Panels& a, const Right* right, const Panels& b, float* c,
                       int64_t ldc, bool load_c, const Epilogue* epilogue) {
  const TileSet<Right>* tiles = CountTo<Right, kMr>::kSets;
  const int64_t height = a.height > 0 ? a.height : kMr;
  const auto panel_of = [&](int64_t j) { return right + (j / kNr) * b.panel_stride; };
  // Several panels in one tile only where the rows are all there are: they must suit every row.
  const TileSet<Right>& only = tiles[(m < height ? m : height) - 1];
  // Few rows wait for B, which may come from memory: each of the whole tiles that share a panel fetches its part of the
  // next.
  const bool are_few = m <= kFewTiles * height;
  const int64_t sharing = m < height ? 1 : m / height;
  for (int64_t j = 0; j < n;) {
    int64_t together = 1;
    if (m <= height && only.two_panels && n - j >= 2 * kNr) together = 2;
    if (m <= height && only.many && n - j >= kManyPanels * kNr) together = kManyPanels;
    const int64_t panels = m <= height ? together : are_few ? 1 : kGroup;
    const int64_t cols = n - j < panels * kNr ? n - j : panels * kNr;
    for (int64_t i = 0; i < m; i += height) {
      const int64_t rows = m - i < height ? m - i : height;
      const TileSet<Right>& t = tiles[rows - 1];
      const float* ap = a.data + (i / height) * a.panel_stride;
      float* row = c + i * ldc;
      if (together > 1) {
        const TileFn<Right> f = together == 2 ? t.two_panels : t.many;
        f(k, ap, a.k_stride, panel_of(j), b.panel_stride, b.k_stride, row + j, ldc, load_c, 0);
      }
      for (int64_t p = j; together == 1 && p < j + cols; p += kNr) {
        if (epilogue) prefetch_epilogue(*epilogue, i, rows, p);
        // The part of C that the next tile starts from and ends in would otherwise be waited for with empty pipelines.
        const bool end = p + kNr >= j + cols;
        const float* next = end ? row + height * ldc + j : row + p + kNr;
        const int64_t left = m - i - height, next_rows = !end ? rows : left < height ? left : height;
        for (int64_t r = 0; r < next_rows; ++r) {
          for (int64_t v = 0; v < kNr; v += kLine) MIAOBI_PREFETCH(next + r * ldc + v);
        }
        const int64_t width = j + cols - p < kNr ? j + cols - p : kNr, vectors = (width + kW - 1) / kW;
        const int64_t tail = width - (vectors - 1) * kW;
        const bool dense = a.k_stride == rows && b.k_stride == kNr && width == kNr;
        if (dense && are_few && n - p >= 2 * kNr) {
          const int64_t bytes = kNr * static_cast<int64_t>(sizeof(Right)) / sharing;
          const auto* ahead = reinterpret_cast<const char*>(panel_of(p + kNr)) + i / height * k * bytes;
          t.dense_fetching(k, ap, panel_of(p), row + p, ldc, load_c, {ahead, bytes});
        } else if (dense) {
          t.dense(k, ap, panel_of(p), row + p, ldc, load_c, {});
        } else {
          const TileFn<Right> f = tail == kW ? t.full[vectors - 1] : t.masked[vectors - 1];
          f(k, ap, a.k_stride, panel_of(p), b.panel_stride, b.k_stride, row + p, ldc, load_c, tail);
        }
      }
      if (epilogue) apply_epilogue(*epilogue, i, rows, j, cols, row + j, ldc);
    }
    j += cols;
  }
}

// --- Few rows against a B that lies as it is stored ---------------------------------------------------------------

// The first tile of rows reads a panel where it lies, and fetches the one after the next. With kKeep it leaves it
// packed for the other tiles: its stores have time while it multiplies, where packing on its own would wait for memory.
template <int Rows, bool kKeep>
void first_tile(int64_t k, const float* MIAOBI_RESTRICT a, int64_t a_stride, const float* MIAOBI_RESTRICT b,
                int64_t ldb, float* MIAOBI_RESTRICT c, int64_t ldc, bool load_c, float* MIAOBI_RESTRICT kept) {
  fetching_tile<float, Rows, 2, false, 1, FetchStored, kKeep>(k, a, a_stride, b, 0, ldb, c, ldc, load_c, 0,
                                                              {b + 2 * kNr, ldb}, kept);
}

using FirstTileFn = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool, float*);

template <int N, int... R>
struct CountFirst : CountFirst<N - 1, N, R...> {};
template <int... R>
struct CountFirst<1, R...> {  // from two rows on
  static constexpr FirstTileFn kAlone[sizeof...(R)] = {first_tile<R, false>...};
  static constexpr FirstTileFn kKeeping[sizeof...(R)] = {first_tile<R, true>...};
};

inline void gemm_stored(int64_t m, int64_t n, int64_t k, const Panels& a, const Panels& b, float* c, int64_t ldc,
                        bool load_c, const Epilogue* epilogue) {
  const TileSet<float>* tiles = CountTo<float, kMr>::kSets;
  const int64_t height = a.height > 0 ? a.height : kMr, first = m < height ? m : height;
  const FirstTileFn head = (m > height ? CountFirst<kMr>::kKeeping : CountFirst<kMr>::kAlone)[first - 2];
  alignas(64) float kept[kNr * kStoredDepth];
  int64_t j = 0;
  for (; j + kNr <= n; j += kNr) {
    if (epilogue) prefetch_epilogue(*epilogue, 0, m, j);
    head(k, a.data, a.k_stride, b.data + j, b.k_stride, c + j, ldc, load_c, kept);
    for (int64_t i = height; i < m; i += height) {
      const int64_t rows = m - i < height ? m - i : height;
      tiles[rows - 1].full[1](k, a.data + (i / height) * a.panel_stride, a.k_stride, kept, 0, kNr, c + i * ldc + j, ldc,
                              load_c, kW);
    }
    if (epilogue) apply_epilogue(*epilogue, 0, m, j, kNr, c + j, ldc);
  }
  if (j == n) return;
  const Epilogue rest = epilogue ? epilogue->at(0, j) : Epilogue{};
  Panels last = b;
  last.data += j;
  gemm_tiles(m, n - j, k, a, last.data, last, c + j, ldc, load_c, epilogue ? &rest : nullptr);
}

inline void gemm_block(int64_t m, int64_t n, int64_t k, const Panels& a, const Panels& b, float* c, int64_t ldc,
                       bool load_c, const Epilogue* epilogue) {
  if (m == 0) return;
  if (b.bf16 != nullptr) {
    gemm_tiles(m, n, k, a, b.bf16, b, c, ldc, load_c, epilogue);
  } else if (b.panel_stride == kNr && b.k_stride > kNr && a.height != 1 && m >= kStoredRows && k <= kStoredDepth) {
    gemm_stored(m, n, k, a, b, c, ldc, load_c, epilogue);
  } else {
    gemm_tiles(m, n, k, a, b.data, b, c, ldc, load_c, epilogue);
  }
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

// SPDX-License-Identifier: MIT
// The GEMM tile, the loop over tiles, and packing with its transforms.
#pragma once

#include "kernels/epilogue.inc.h"
#include "kernels/kernel_table.h"
#include "kernels/math.inc.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

constexpr int kNr = 2 * kW;  // two vectors a row: every broadcast of A feeds two multiply-adds
constexpr int kMr = MIAOBI_TILE_ROWS;

// A vector of B, of which `n` elements are wanted; bfloat16 panels are whole.
MIAOBI_INLINE Vec load_right(const float* p, bool masked, int64_t n) {
  return masked ? Vec::load_n(p, n) : Vec::load(p);
}
MIAOBI_INLINE Vec load_right(const uint16_t* p, bool, int64_t) { return Vec::load_bf16(p); }

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

// Rows x Vectors accumulators, one chain each. Vector v of the tile lies in panel v / 2. With kMasked the
// last vector has only `tail` columns. Rows of A lie kRowStep apart.
template <class Right, int Rows, int Vectors, bool kMasked, int kRowStep, class Fetch>
MIAOBI_INLINE void fetching_tile(int64_t k, const float* MIAOBI_RESTRICT a, int64_t a_stride,
                                 const Right* MIAOBI_RESTRICT b, int64_t b_panel, int64_t b_stride,
                                 float* MIAOBI_RESTRICT c, int64_t ldc, bool load_c, int64_t tail, Fetch fetch) {
  Vec acc[Rows][Vectors];
  load_tile<kMasked>(acc, c, ldc, load_c, tail);
  for (int64_t i = 0; i < k; ++i) {
    fetch();
    const auto right = [&](int v) {
      return load_right(b + (v / 2) * b_panel + (v % 2) * kW, kMasked && v == Vectors - 1, tail);
    };
    if constexpr (Rows == 1) {  // each vector is used once: no register need hold it
      const Vec av = Vec::set1(a[0]);
      MIAOBI_UNROLL
      for (int v = 0; v < Vectors; ++v) acc[0][v] = fma(av, right(v), acc[0][v]);
    } else {
      Vec bv[Vectors];
      MIAOBI_UNROLL
      for (int v = 0; v < Vectors; ++v) bv[v] = right(v);
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

// The whole of a panel, while something else is fetched.
template <class Right, int Rows>
void panel_tile(int64_t k, const float* MIAOBI_RESTRICT a, int64_t a_stride, const Right* MIAOBI_RESTRICT b,
                int64_t b_stride, float* MIAOBI_RESTRICT c, int64_t ldc, bool load_c, FetchAlong fetch) {
  fetching_tile<Right, Rows, 2, false, 1>(k, a, a_stride, b, 0, b_stride, c, ldc, load_c, 0, fetch);
}

template <class Right>
using TileFn = void (*)(int64_t, const float*, int64_t, const Right*, int64_t, int64_t, float*, int64_t, bool, int64_t);
template <class Right>
using PanelTileFn = void (*)(int64_t, const float*, int64_t, const Right*, int64_t, float*, int64_t, bool, FetchAlong);

template <class Right>
struct TileSet {
  TileFn<Right> full[2];    // one or two whole vectors
  TileFn<Right> masked[2];  // the last of them cut
  // Several panels at once, so that few rows still fill the multiply-add pipelines; or null.
  TileFn<Right> two_panels, many;
  int many_panels;
  PanelTileFn<Right> fetching;
};

// Multiply-adds take about four cycles and two start in each, so eight chains must be under way: one row
// takes four panels at once, two rows two.
template <class Right, int Rows>
constexpr TileSet<Right> make_tiles() {
  TileSet<Right> t{{tile<Right, Rows, 1, false>, tile<Right, Rows, 2, false>},
                   {tile<Right, Rows, 1, true>, tile<Right, Rows, 2, true>},
                   nullptr,
                   nullptr,
                   1,
                   panel_tile<Right, Rows>};
  // Widening takes registers: six vectors leave enough of sixteen, where eight would put a chain in memory.
  constexpr int kMany = sizeof(Right) == 2 && kW == 8 ? 6 : 8;
  if constexpr (Rows == 1) t.many = tile<Right, Rows, kMany, false>, t.many_panels = kMany / 2;
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
  // Few rows wait for B, which may come from memory: each of the tiles that share a panel fetches its part of the next.
  const bool are_few = m <= kFewTiles * height;
  const int64_t sharing = (m + height - 1) / height;
  for (int64_t j = 0; j < n;) {
    int64_t together = 1;
    if (m <= height && only.two_panels && n - j >= 2 * kNr) together = 2;
    if (m <= height && only.many && n - j >= only.many_panels * kNr) together = only.many_panels;
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
        if (are_few && n - p >= 2 * kNr) {
          const int64_t bytes = b.k_stride * static_cast<int64_t>(sizeof(Right)) / sharing;
          const auto* ahead = reinterpret_cast<const char*>(panel_of(p + kNr)) + i / height * k * bytes;
          t.fetching(k, ap, a.k_stride, panel_of(p), b.k_stride, row + p, ldc, load_c, {ahead, bytes});
          continue;
        }
        const TileFn<Right> f = tail == kW ? t.full[vectors - 1] : t.masked[vectors - 1];
        f(k, ap, a.k_stride, panel_of(p), b.panel_stride, b.k_stride, row + p, ldc, load_c, tail);
      }
      if (epilogue) apply_epilogue(*epilogue, i, rows, j, cols, row + j, ldc);
    }
    j += cols;
  }
}

inline void gemm_block(int64_t m, int64_t n, int64_t k, const Panels& a, const Panels& b, float* c, int64_t ldc,
                       bool load_c, const Epilogue* epilogue) {
  if (m == 0) return;
  if (b.bf16) {
    gemm_tiles(m, n, k, a, b.bf16, b, c, ldc, load_c, epilogue);
  } else {
    gemm_tiles(m, n, k, a, b.data, b, c, ldc, load_c, epilogue);
  }
}

// --- packing ---------------------------------------------------------------------------------------------

struct Identity {
  MIAOBI_INLINE Vec operator()(Vec x, int64_t, int64_t, int64_t) const { return x; }
};
struct RoundBf16 {
  MIAOBI_INLINE Vec operator()(Vec x, int64_t, int64_t, int64_t) const { return round_to_bf16(x); }
};
// x holds `n` elements of stored row `row` from column `col` on.
struct Transformed {
  const Operand& x;
  MIAOBI_INLINE Vec operator()(Vec v, int64_t row, int64_t col, int64_t n) const {
    const auto get = [n](const float* p) { return n == kW ? Vec::load(p) : Vec::load_n(p, n); };
    switch (x.transform) {
      case Transform::kLayerNorm: {
        const Vec xhat = (v - Vec::set1(x.mean[row])) * Vec::set1(x.rstd[row]);
        v = fma(xhat, get(x.gamma + col), get(x.beta + col));
        break;
      }
      case Transform::kGelu: v = gelu(v); break;
      case Transform::kRelu: v = relu(v); break;
      case Transform::kNone: break;
    }
    return x.bf16 ? round_to_bf16(v) : v;
  }
};

// `rows` (at most kW) stored rows of `cols` elements become columns: dst[col * ldd + row]. Whole vectors
// are stored where kOverlap allows it: the lanes past `rows` land on the next column, which is written
// after, so dst needs kW floats of room behind its end. Otherwise just `rows` lanes are written.
template <bool kOverlap, class Source>
MIAOBI_INLINE void transpose_rows(Source&& load, int64_t rows, int64_t cols, float* dst, int64_t ldd) {
  for (int64_t c = 0; c < cols; c += kW) {
    const int64_t n = cols - c < kW ? cols - c : kW;
    Vec r[kW];
    for (int i = 0; i < kW; ++i) r[i] = i < rows ? load(i, c, n) : Vec::zero();
    transpose(r);
    for (int64_t i = 0; i < n; ++i) {
      float* p = dst + (c + i) * ldd;
      if (kOverlap || rows == kW) {
        r[i].store(p);
      } else {
        r[i].store_n(p, rows);
      }
    }
  }
}

// Stored rows are the i of the operand: each panel is a transposition.
template <class F>
inline void pack_row_major(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel,
                           float* dst, const F& f) {
  if (panel == 1) {  // a row as it is
    for (int64_t i = 0; i < count; ++i, dst += k) {
      const float* src = x.data + (i0 + i) * x.stride + k0;
      for_each_vec(
          k, [&](int64_t c) { f(Vec::load(src + c), i0 + i, k0 + c, kW).store(dst + c); },
          [&](int64_t c, int64_t n) { f(Vec::load_n(src + c, n), i0 + i, k0 + c, n).store_n(dst + c, n); });
    }
    return;
  }
  for (int64_t p = 0; p < count; p += panel, dst += panel * k) {
    for (int64_t g = 0; g < panel; g += kW) {
      int64_t rows = panel - g < kW ? panel - g : kW;
      if (rows > count - p - g) rows = count - p - g;
      if (rows <= 0) break;
      const int64_t row = i0 + p + g;
      const float* src = x.data + row * x.stride + k0;
      // A later group of the same panel has already been passed by when its neighbour's lanes spill, so
      // only the last group may spill; it does so forward, into columns and panels yet to come.
      const auto load = [&](int64_t i, int64_t c, int64_t n) {
        const float* s = src + i * x.stride + c;
        if (c % kLine == 0) MIAOBI_PREFETCH(s + panel * x.stride);
        return f(n == kW ? Vec::load(s) : Vec::load_n(s, n), row + i, k0 + c, n);
      };
      if (panel <= kW) {
        transpose_rows<true>(load, rows, k, dst + g, panel);
      } else {
        transpose_rows<false>(load, rows, k, dst + g, panel);
      }
    }
  }
}

constexpr int64_t kRun = 8;

// `rows` pieces of Vectors vectors each, from stored row `row` and column `col` on, to every `panel` floats at dst.
template <int Vectors, class F>
MIAOBI_INLINE void copy_pieces(const Operand& x, int64_t row, int64_t col, int64_t rows, int64_t panel, float* dst,
                               const F& f) {
  const float* src = x.data + row * x.stride + col;
  for (int64_t r = 0; r < rows; ++r) {
    MIAOBI_UNROLL
    for (int v = 0; v < Vectors; ++v) f(Vec::load(src + v * kW), row + r, col + v * kW, kW).store(dst + v * kW);
    if (Vectors > 1) MIAOBI_PREFETCH(src + kRun * x.stride);
    src += x.stride;
    dst += panel;
  }
}

// A run of `rows` stored rows, which are the k of the operand: each is cut into panel-wide pieces. dst is where the run
// begins in the first of the panels, which are `depth` rows long; `last` where the run ends them.
template <class F>
inline void pack_run(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t rows, int64_t panel, float* dst,
                     int64_t depth, bool last, const F& f) {
  const int64_t vectors = (panel + kW - 1) / kW;
  for (int64_t p = 0; p < count; p += panel) {
    int64_t r = 0;
    float* out = dst + p * depth;
    // Whole vectors, where lanes past the panel can be read, and land on its next row, which comes later.
    if (p + vectors * kW <= count && vectors * kW <= 2 * panel && vectors <= 2) {
      r = panel % kW == 0 || !last ? rows : rows - 1;
      if (vectors == 1) {
        copy_pieces<1>(x, k0, i0 + p, r, panel, out, f);
      } else {
        copy_pieces<2>(x, k0, i0 + p, r, panel, out, f);
      }
      out += r * panel;
    }
    const int64_t width = count - p < panel ? count - p : panel;
    for (; r < rows; ++r, out += panel) {
      const float* src = x.data + (k0 + r) * x.stride + i0 + p;
      for (int64_t j = 0; j < width; j += kW) {
        const int64_t n = width - j < kW ? width - j : kW;
        const Vec v = f(n == kW ? Vec::load(src + j) : Vec::load_n(src + j, n), k0 + r, i0 + p + j, n);
        if (n == kW) {
          v.store(out + j);
        } else {
          v.store_n(out + j, n);
        }
      }
    }
  }
}

// A few rows at a time, so that a panel is written in runs of several lines while the rows that it is read from stay in
// L1.
template <class F>
inline void pack_column_major(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel,
                              float* dst, const F& f) {
  for (int64_t r = 0; r < k; r += kRun) {
    const int64_t rows = k - r < kRun ? k - r : kRun;
    pack_run(x, i0, count, k0 + r, rows, panel, dst + r * panel, k, r + rows == k, f);
  }
}

template <class F>
inline void pack_with(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel, float* dst,
                      const F& f) {
  if (x.k_major) {
    pack_column_major(x, i0, count, k0, k, panel, dst, f);
  } else {
    pack_row_major(x, i0, count, k0, k, panel, dst, f);
  }
}

// A transform that costs more than the copy goes over whole rows into a strip that stays in L1, and from there into the
// panels: for panels of 6 rows and vectors of 8, a quarter of its lanes would otherwise be thrown away. Rows are the k.
inline void pack_transformed(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel,
                             float* dst) {
  if (!x.k_major || panel % kW == 0) {
    pack_with(x, i0, count, k0, k, panel, dst, Transformed{x});
    return;
  }
  constexpr int64_t kStrip = 512;  // columns; 16 KB with the rows of a run
  alignas(64) float strip[kRun * kStrip + kW];
  Operand plain;
  plain.data = strip;
  plain.stride = kStrip;
  plain.k_major = true;
  const Transformed f{x};
  const int64_t step = kStrip / panel * panel;
  for (int64_t p = 0; p < count; p += step) {
    const int64_t width = count - p < step ? count - p : step;
    for (int64_t r0 = 0; r0 < k; r0 += kRun) {
      const int64_t rows = k - r0 < kRun ? k - r0 : kRun;
      for (int64_t r = 0; r < rows; ++r) {
        const float* src = x.data + (k0 + r0 + r) * x.stride + i0 + p;
        float* out = strip + r * kStrip;
        for (int64_t j = 0; j < width; j += kLine) MIAOBI_PREFETCH(src + kRun * x.stride + j);
        for_each_vec(
            width, [&](int64_t j) { f(Vec::load(src + j), k0 + r0 + r, i0 + p + j, kW).store(out + j); },
            [&](int64_t j, int64_t n) { f(Vec::load_n(src + j, n), k0 + r0 + r, i0 + p + j, n).store_n(out + j, n); });
      }
      pack_run(plain, 0, width, 0, rows, panel, dst + p * k + r0 * panel, k, r0 + rows == k, Identity{});
    }
  }
}

inline void pack(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel, float* dst) {
  if (x.transform != Transform::kNone) {
    pack_transformed(x, i0, count, k0, k, panel, dst);
  } else if (x.bf16) {
    pack_with(x, i0, count, k0, k, panel, dst, RoundBf16{});
  } else {
    pack_with(x, i0, count, k0, k, panel, dst, Identity{});
  }
}

inline void widen(const uint16_t* x, int64_t n, float* y) {
  for_each_vec(
      n, [&](int64_t i) { Vec::load_bf16(x + i).store(y + i); },
      [&](int64_t i, int64_t rest) {
        uint16_t lanes[kW] = {};
        for (int64_t j = 0; j < rest; ++j) lanes[j] = x[i + j];
        Vec::load_bf16(lanes).store_n(y + i, rest);
      });
}

inline void narrow(const float* x, int64_t n, uint16_t* y) {
  for_each_vec(
      n, [&](int64_t i) { store_bf16(Vec::load(x + i), y + i); },
      [&](int64_t i, int64_t rest) {
        uint16_t lanes[kW];
        store_bf16(Vec::load_n(x + i, rest), lanes);
        for (int64_t j = 0; j < rest; ++j) y[i + j] = lanes[j];
      });
}

inline void transpose_matrix(const float* src, int64_t lds, int64_t rows, int64_t cols, float factor, float* dst,
                             int64_t ldd) {
  const Vec f = Vec::set1(factor);
  for (int64_t r = 0; r < rows; r += kW) {
    const int64_t count = rows - r < kW ? rows - r : kW;
    const auto load = [&](int64_t i, int64_t c, int64_t n) {
      const float* s = src + (r + i) * lds + c;
      return (n == kW ? Vec::load(s) : Vec::load_n(s, n)) * f;
    };
    transpose_rows<false>(load, count, cols, dst + r, ldd);
  }
}

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

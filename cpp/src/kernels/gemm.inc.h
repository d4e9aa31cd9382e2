// SPDX-License-Identifier: MIT
// The GEMM tile, the loop over tiles, and packing with its transforms.
#pragma once

#include "kernels/kernel_table.h"
#include "kernels/math.inc.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

constexpr int kW = Vec::kWidth;
constexpr int kNr = 2 * kW;  // two vectors a row: every broadcast of A feeds two multiply-adds
constexpr int kMr = MIAOBI_TILE_ROWS;

// Rows x Vectors accumulators, one chain each. Vector v of the tile lies in panel v / 2. With kMasked the
// last vector has only `tail` columns.
template <int Rows, int Vectors, bool kMasked>
void tile(int64_t k, const float* MIAOBI_RESTRICT a, int64_t a_stride, const float* MIAOBI_RESTRICT b, int64_t b_panel,
          int64_t b_stride, float* MIAOBI_RESTRICT c, int64_t ldc, bool load_c, int64_t tail) {
  Vec acc[Rows][Vectors];
  MIAOBI_UNROLL
  for (int r = 0; r < Rows; ++r) {
    MIAOBI_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      const float* p = c + r * ldc + v * kW;
      acc[r][v] = !load_c ? Vec::zero() : (kMasked && v == Vectors - 1) ? Vec::load_n(p, tail) : Vec::load(p);
    }
  }
  for (int64_t i = 0; i < k; ++i) {
    Vec bv[Vectors];
    MIAOBI_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      const float* p = b + (v / 2) * b_panel + (v % 2) * kW;
      bv[v] = (kMasked && v == Vectors - 1) ? Vec::load_n(p, tail) : Vec::load(p);
    }
    MIAOBI_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Vec av = Vec::set1(a[r]);
      MIAOBI_UNROLL
      for (int v = 0; v < Vectors; ++v) acc[r][v] = fma(av, bv[v], acc[r][v]);
    }
    a += a_stride;
    b += b_stride;
  }
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

using TileFn = void (*)(int64_t, const float*, int64_t, const float*, int64_t, int64_t, float*, int64_t, bool, int64_t);

struct TileSet {
  TileFn full[2];    // one or two whole vectors
  TileFn masked[2];  // the last of them cut
  TileFn wide;       // several panels at once, so that few rows still fill the multiply-add pipelines; or null
  int wide_panels;
};

// Multiply-adds take about four cycles and two start in each, so eight chains must be under way: one row
// takes four panels at once, two rows two.
template <int Rows>
constexpr TileSet make_tiles() {
  TileSet t{{tile<Rows, 1, false>, tile<Rows, 2, false>}, {tile<Rows, 1, true>, tile<Rows, 2, true>}, nullptr, 1};
  if constexpr (Rows == 1) {
    t.wide = tile<1, 8, false>;
    t.wide_panels = 4;
  } else if constexpr (Rows <= 3 && Rows * 4 <= 2 * kMr) {
    t.wide = tile<Rows, 4, false>;
    t.wide_panels = 2;
  }
  return t;
}

// CountTo<N>::kSets[r - 1] are the tiles of r rows, r = 1..N.
template <int N, int... R>
struct CountTo : CountTo<N - 1, N, R...> {};
template <int... R>
struct CountTo<0, R...> {
  static constexpr TileSet kSets[sizeof...(R)] = {make_tiles<R>()...};
};

MIAOBI_INLINE Vec epilogue_one(Vec c, const Epilogue& e, const float* bias, const float* grad_of, const float* residual,
                               int64_t n) {
  const auto get = [n](const float* p) { return n == kW ? Vec::load(p) : Vec::load_n(p, n); };
  if (bias) c = c + get(bias);
  if (grad_of) {
    if (e.activation == Activation::kGelu) c = c * gelu_grad(get(grad_of));
    if (e.activation == Activation::kRelu) c = c * relu_grad(get(grad_of));
  } else if (e.activation == Activation::kGelu) {
    c = gelu(c);
  } else if (e.activation == Activation::kRelu) {
    c = relu(c);
  }
  if (residual) c = c + get(residual);
  return c;
}

// A column panel of C that was just written and is still in L1: `rows` x `cols`, from column col0 on.
inline void apply_epilogue(const Epilogue& e, int64_t rows, int64_t col0, int64_t cols, float* c, int64_t ldc) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* bias = e.bias ? e.bias + col0 : nullptr;
    const float* grad_of = e.grad_of ? e.grad_of + row * e.grad_of_stride + col0 : nullptr;
    const float* residual = e.residual ? e.residual + row * e.residual_stride + col0 : nullptr;
    for (int64_t j = 0; j < cols; j += kW) {
      const int64_t n = cols - j < kW ? cols - j : kW;
      float* p = c + row * ldc + j;
      const Vec x = n == kW ? Vec::load(p) : Vec::load_n(p, n);
      const Vec y = epilogue_one(x, e, bias ? bias + j : nullptr, grad_of ? grad_of + j : nullptr,
                                 residual ? residual + j : nullptr, n);
      if (n == kW) {
        y.store(p);
      } else {
        y.store_n(p, n);
      }
    }
  }
}

inline void gemm_block(int64_t m, int64_t n, int64_t k, const Panels& a, const Panels& b, float* c, int64_t ldc,
                       bool load_c, const Epilogue* epilogue) {
  const TileSet* tiles = CountTo<kMr>::kSets;
  for (int64_t j = 0; j < n;) {
    const float* bp = b.data + (j / kNr) * b.panel_stride;
    int64_t cols = n - j < kNr ? n - j : kNr;
    for (int64_t i = 0; i < m; i += kMr) {
      const int64_t rows = m - i < kMr ? m - i : kMr;
      const TileSet& t = tiles[rows - 1];
      const float* ap = a.data + (i / kMr) * a.panel_stride;
      float* cp = c + i * ldc + j;
      // Only where these rows are all there are: the panels that a wide tile takes must suit every row.
      if (t.wide && rows == m && n - j >= t.wide_panels * kNr) {
        cols = t.wide_panels * kNr;
        t.wide(k, ap, a.k_stride, bp, b.panel_stride, b.k_stride, cp, ldc, load_c, 0);
      } else {
        const int64_t vectors = (cols + kW - 1) / kW;
        const int64_t tail = cols - (vectors - 1) * kW;
        const TileFn f = tail == kW ? t.full[vectors - 1] : t.masked[vectors - 1];
        f(k, ap, a.k_stride, bp, b.panel_stride, b.k_stride, cp, ldc, load_c, tail);
      }
    }
    if (epilogue) apply_epilogue(*epilogue, m, j, cols, c + j, ldc);
    j += cols;
  }
}

inline void epilogue_block(const Epilogue& e, int64_t rows, int64_t cols, float* c, int64_t ldc) {
  apply_epilogue(e, rows, 0, cols, c, ldc);
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

// Stored rows are the k of the operand: each is cut into panel-wide pieces.
template <class F>
inline void pack_column_major(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel,
                              float* dst, const F& f) {
  for (int64_t r = 0; r < k; ++r) {
    const float* src = x.data + (k0 + r) * x.stride + i0;
    for (int64_t p = 0; p < count; p += panel) {
      float* out = dst + p * k + r * panel;
      const int64_t width = count - p < panel ? count - p : panel;
      for (int64_t j = 0; j < width; j += kW) {
        const int64_t n = width - j < kW ? width - j : kW;
        const Vec v = f(n == kW ? Vec::load(src + p + j) : Vec::load_n(src + p + j, n), k0 + r, i0 + p + j, n);
        // Lanes past the panel land on its next row, which comes later; the last row must not spill.
        if (n == kW || (r + 1 < k && j + kW <= 2 * panel)) {
          v.store(out + j);
        } else {
          v.store_n(out + j, n);
        }
      }
    }
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

inline void pack(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel, float* dst) {
  if (x.transform != Transform::kNone) {
    pack_with(x, i0, count, k0, k, panel, dst, Transformed{x});
  } else if (x.bf16) {
    pack_with(x, i0, count, k0, k, panel, dst, RoundBf16{});
  } else {
    pack_with(x, i0, count, k0, k, panel, dst, Identity{});
  }
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

// SPDX-License-Identifier: MIT
// Packing operands into the panels of the GEMM tile, with what is fused into it, and the conversions beside it.
#pragma once

#include "kernels/kernel_table.h"
#include "kernels/math.inc.h"
#include "kernels/norm.inc.h"

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

// kW columns of Rows rows, of which load(i) gives row i, become rows of whole vectors, ldd apart.
template <int Rows, class Load>
MIAOBI_INLINE void transpose_square(Load&& load, float* dst, int64_t ldd) {
  Vec r[kW];
  MIAOBI_UNROLL
  for (int i = 0; i < kW; ++i) r[i] = i < Rows ? load(i) : Vec::zero();
  transpose(r);
  MIAOBI_UNROLL
  for (int i = 0; i < kW; ++i) r[i].store(dst + i * ldd);
}

// `rows` (at most kW) stored rows of `cols` elements become columns: dst[col * ldd + row]. Whole vectors are stored
// where kOverlap allows it: the lanes past `rows` land on the next column, which is written after, so dst needs kW
// floats of room behind its end. Otherwise just `rows` lanes are written. load(i, c, n) gives n elements of row i.
template <bool kOverlap, class Source>
MIAOBI_INLINE void transpose_rows(Source&& load, int64_t rows, int64_t cols, float* dst, int64_t ldd) {
  constexpr int kPart = MIAOBI_TILE_ROWS % kW;  // rows of the last vector of a panel of A
  int64_t c = 0;
  // Counts that the compiler knows keep the square in registers.
  if (rows == kW) {
    for (; c + kW <= cols; c += kW) {
      transpose_square<kW>([&](int i) { return load(i, c, kW); }, dst + c * ldd, ldd);
    }
  } else if (kOverlap && rows == kPart) {
    for (; c + kW <= cols; c += kW) {
      transpose_square<kPart>([&](int i) { return load(i, c, kW); }, dst + c * ldd, ldd);
    }
  }
  for (; c < cols; c += kW) {
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

// --- Transforms --------------------------------------------------------------------------------------------------

constexpr int64_t kRun = 8;  // rows that are packed at a time where they are the k
constexpr int64_t kStripRows = kW > kRun ? kW : kRun;
constexpr int64_t kStripFloats = 4096;  // 16 KB: half of L1
constexpr int64_t kStripColumns = kStripFloats / kStripRows;
constexpr int64_t kStripStride = kStripColumns + kLine;  // not a power of two: rows would share sets of L1

// Rows of x on their way into panels pass through a strip that stays in L1: a transform runs along a row there, on
// whole vectors, where lanes of a panel would be thrown away, and is a loop of its own.
struct Strip {
  alignas(64) float data[kStripRows * kStripStride + kW];
};

// f(x) of the stored rows [row, row + rows) and columns [col, col + cols), to y.
inline void transform_rows(const Operand& x, int64_t row, int64_t rows, int64_t col, int64_t cols, float* y,
                           int64_t y_stride) {
  const float* src = x.data + row * x.stride + col;
  if (x.transform == Transform::kLayerNorm) {
    layer_norm_apply(src, x.stride, rows, cols, x.mean + row, x.rstd + row, x.gamma + col, x.beta + col, y, y_stride);
  } else {
    const Activation kind = x.transform == Transform::kGelu   ? Activation::kGelu
                            : x.transform == Transform::kRelu ? Activation::kRelu
                                                              : Activation::kNone;
    for (int64_t r = 0; r < rows; ++r) activation(kind, src + r * x.stride, cols, y + r * y_stride);
  }
  if (!x.bf16) return;
  for (int64_t r = 0; r < rows; ++r) {
    float* p = y + r * y_stride;
    map(p, cols, p, [](Vec v) { return round_to_bf16(v); });
  }
}

inline bool is_plain(const Operand& x) { return x.transform == Transform::kNone && !x.bf16; }

// --- Panels ------------------------------------------------------------------------------------------------------

// `rows` (at most kW) rows of `k` elements as columns of a panel; what lies `ahead` of them comes next.
MIAOBI_INLINE void pack_rows(const float* src, int64_t stride, int64_t rows, int64_t k, int64_t ahead, float* dst,
                             int64_t panel) {
  const auto load = [&](int64_t i, int64_t c, int64_t n) {
    const float* s = src + i * stride + c;
    if (c % kLine == 0) MIAOBI_PREFETCH(s + ahead);
    return n == kW ? Vec::load(s) : Vec::load_n(s, n);
  };
  // A later group of the same panel has already been passed by when its neighbour's lanes spill, so only a panel of one
  // group may spill; it does so forward, into columns and panels yet to come.
  if (panel <= kW) {
    transpose_rows<true>(load, rows, k, dst, panel);
  } else {
    transpose_rows<false>(load, rows, k, dst, panel);
  }
}

// Stored rows are the i of the operand: each panel is a transposition.
inline void pack_row_major(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel,
                           float* dst) {
  if (panel == 1) {  // a row as it is
    transform_rows(x, i0, count, k0, k, dst, k);
    return;
  }
  for (int64_t p = 0; p < count; p += panel, dst += panel * k) {
    for (int64_t g = 0; g < panel && g < count - p; g += kW) {
      int64_t rows = panel - g < kW ? panel - g : kW;
      if (rows > count - p - g) rows = count - p - g;
      const int64_t row = i0 + p + g;
      if (is_plain(x)) {
        pack_rows(x.data + row * x.stride + k0, x.stride, rows, k, panel * x.stride, dst + g, panel);
        continue;
      }
      Strip strip;
      for (int64_t c = 0; c < k; c += kStripColumns) {
        const int64_t cols = k - c < kStripColumns ? k - c : kStripColumns;
        transform_rows(x, row, rows, k0 + c, cols, strip.data, kStripStride);
        pack_rows(strip.data, kStripStride, rows, cols, 0, dst + g + c * panel, panel);
      }
    }
  }
}

// `rows` pieces of Vectors vectors each, `stride` apart, to every `panel` floats at dst.
template <int Vectors>
MIAOBI_INLINE void copy_pieces(const float* src, int64_t stride, int64_t rows, int64_t panel, float* dst) {
  for (int64_t r = 0; r < rows; ++r) {
    MIAOBI_UNROLL
    for (int v = 0; v < Vectors; ++v) Vec::load(src + v * kW).store(dst + v * kW);
    if (Vectors > 1) MIAOBI_PREFETCH(src + kRun * stride);
    src += stride;
    dst += panel;
  }
}

// A run of `rows` stored rows, which are the k of the operand: each is cut into panel-wide pieces. dst is where the run
// begins in the first of the panels, which are `depth` rows long; `last` where the run ends them.
inline void pack_run(const float* src, int64_t stride, int64_t count, int64_t rows, int64_t panel, float* dst,
                     int64_t depth, bool last) {
  const int64_t vectors = (panel + kW - 1) / kW;
  for (int64_t p = 0; p < count; p += panel) {
    int64_t r = 0;
    float* out = dst + p * depth;
    // Whole vectors, where lanes past the panel can be read, and land on its next row, which comes later.
    if (p + vectors * kW <= count && vectors * kW <= 2 * panel && vectors <= 2) {
      r = panel % kW == 0 || !last ? rows : rows - 1;
      if (vectors == 1) {
        copy_pieces<1>(src + p, stride, r, panel, out);
      } else {
        copy_pieces<2>(src + p, stride, r, panel, out);
      }
      out += r * panel;
    }
    const int64_t width = count - p < panel ? count - p : panel;
    for (; r < rows; ++r, out += panel) {
      for_each_vec(
          width, [&](int64_t j) { Vec::load(src + r * stride + p + j).store(out + j); },
          [&](int64_t j, int64_t n) { Vec::load_n(src + r * stride + p + j, n).store_n(out + j, n); });
    }
  }
}

// A few rows at a time, so that a panel is written in runs of several lines while the rows that it is read from stay in
// L1. Rows are the k.
inline void pack_k_major(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel,
                         float* dst) {
  const int64_t step = is_plain(x) ? count : kStripColumns / panel * panel;
  for (int64_t p = 0; p < count; p += step) {
    const int64_t width = count - p < step ? count - p : step;
    for (int64_t r = 0; r < k; r += kRun) {
      const int64_t rows = k - r < kRun ? k - r : kRun;
      float* out = dst + p * k + r * panel;
      if (is_plain(x)) {
        pack_run(x.data + (k0 + r) * x.stride + i0, x.stride, count, rows, panel, out, k, r + rows == k);
        continue;
      }
      Strip strip;
      for (int64_t i = k0 + r + kRun; i < k0 + r + kRun + (k - r - rows < kRun ? k - r - rows : kRun); ++i) {
        for (int64_t j = 0; j < width; j += kLine) MIAOBI_PREFETCH(x.data + i * x.stride + i0 + p + j);
      }
      transform_rows(x, k0 + r, rows, i0 + p, width, strip.data, kStripStride);
      pack_run(strip.data, kStripStride, width, rows, panel, out, k, r + rows == k);
    }
  }
}

inline void pack(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel, float* dst) {
  if (x.k_major) {
    pack_k_major(x, i0, count, k0, k, panel, dst);
  } else {
    pack_row_major(x, i0, count, k0, k, panel, dst);
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

// Rows of two vectors as Panels has them in bfloat16: a word holds an element of each.
inline void narrow_panels(const float* x, int64_t rows, uint16_t* y) {
  uint16_t lower[kW], upper[kW];
  for (int64_t r = 0; r < rows; ++r, x += 2 * kW, y += 2 * kW) {
    store_bf16(Vec::load(x), lower);
    store_bf16(Vec::load(x + kW), upper);
    for (int i = 0; i < kW; ++i) y[2 * i] = lower[i], y[2 * i + 1] = upper[i];
  }
}

inline void widen_panels(const uint16_t* x, int64_t rows, float* y) {
  for (int64_t r = 0; r < rows; ++r, x += 2 * kW, y += 2 * kW) {
    Vec::load_lower(x).store(y);
    Vec::load_upper(x).store(y + kW);
  }
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

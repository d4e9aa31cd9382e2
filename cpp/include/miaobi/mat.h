// SPDX-License-Identifier: MIT
// Plain-data views that cross the kernel boundary. Nothing here owns memory or includes the STL.
#pragma once

#include <cstdint>

namespace miaobi {

// A row-major matrix in somebody else's memory: element (r, c) is data[r * stride + c], stride >= cols.
template <class T>
struct MatView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  constexpr MatView() = default;
  constexpr MatView(T* data_, int64_t rows_, int64_t cols_, int64_t stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}
  constexpr MatView(T* data_, int64_t rows_, int64_t cols_) : MatView(data_, rows_, cols_, cols_) {}
  // A mutable view is usable wherever a const one is asked for.
  constexpr operator MatView<const T>() const { return {data, rows, cols, stride}; }

  constexpr T* row(int64_t r) const { return data + r * stride; }
  constexpr T& operator()(int64_t r, int64_t c) const { return data[r * stride + c]; }
  constexpr bool empty() const { return rows == 0 || cols == 0; }
  // Rows [begin, begin + count) and columns [begin, begin + count) without copying.
  constexpr MatView row_block(int64_t begin, int64_t count) const { return {row(begin), count, cols, stride}; }
  constexpr MatView col_block(int64_t begin, int64_t count) const { return {data + begin, rows, count, stride}; }
};

using Mat = MatView<float>;
using ConstMat = MatView<const float>;

}  // namespace miaobi

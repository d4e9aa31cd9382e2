// SPDX-License-Identifier: MIT
// The matrix of the oracle: row-major, owning, and nothing else.
#pragma once

#include <cstdint>
#include <vector>

namespace miaobi::reference {

template <class T>
using Vector = std::vector<T>;

template <class T>
struct Matrix {
  int64_t rows = 0, cols = 0;
  Vector<T> data;

  Matrix() = default;
  Matrix(int64_t rows_, int64_t cols_) : rows(rows_), cols(cols_), data(static_cast<size_t>(rows_ * cols_)) {}

  T& operator()(int64_t r, int64_t c) { return data[static_cast<size_t>(r * cols + c)]; }
  const T& operator()(int64_t r, int64_t c) const { return data[static_cast<size_t>(r * cols + c)]; }
};

}  // namespace miaobi::reference

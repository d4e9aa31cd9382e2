// SPDX-License-Identifier: MIT
// How ops cut their work for the threads, and the shape checks that they share.
#pragma once

#include <cstdint>

#include "miaobi/check.h"
#include "miaobi/mat.h"
#include "miaobi/threads.h"

namespace miaobi {

// Elements that make a task worth handing to another thread: some ten microseconds of memory traffic.
constexpr int64_t kElementsPerTask = 1 << 14;

inline int64_t rows_per_task(int64_t cols) {
  return cols >= kElementsPerTask ? 1 : kElementsPerTask / (cols > 0 ? cols : 1);
}

// Columns of a task that sums over all rows: four cache lines, so that two threads share none.
constexpr int64_t kColumnsPerTask = 64;

inline void check_same_shape(const char* op, const char* name, ConstMat got, const char* like, ConstMat expected) {
  MIAOBI_CHECK(got.rows == expected.rows && got.cols == expected.cols, "[", op, "] expected ", name,
               " of the shape of ", like, " (", expected.rows, ", ", expected.cols, "), got (", got.rows, ", ",
               got.cols, ")");
}

}  // namespace miaobi

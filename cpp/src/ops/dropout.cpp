// SPDX-License-Identifier: MIT
// Masks of a training step, and a matrix through one.
#include "miaobi/dropout.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/dispatch.h"
#include "ops/split.h"

namespace miaobi {

void DropoutStep::validate() const {
  MIAOBI_CHECK(rate >= 0 && rate < 1, "expected dropout in [0, 1), got ", rate);
  MIAOBI_CHECK(step >= 0 && step < int64_t{1} << 44, "expected a step of dropout in [0, 2^44), got ", step);
  MIAOBI_CHECK(first_row >= 0, "expected a first_row of 0 or more, got ", first_row);
}

DropoutMask DropoutStep::mask(int64_t place) const {
  DropoutMask mask;
  if (rate == 0) return mask;
  // The highest bit keeps these streams apart from those that weights are initialised with.
  mask.stream = uint64_t{1} << 63 | static_cast<uint64_t>(step) << 18 | static_cast<uint64_t>(place);
  mask.seed = seed;
  mask.row = first_row;
  mask.threshold = static_cast<uint32_t>(std::clamp(std::lround(rate * 65536.0), 1L, 65535L));
  mask.scale = static_cast<float>(65536.0 / (65536.0 - mask.threshold));
  return mask;
}

void dropout(const DropoutMask& mask, ConstMat x, Mat y) {
  check_same_shape("dropout", "y", y, "x", x);
  const KernelTable& table = kernels_in_use();
  Epilogue epilogue;
  epilogue.dropout = mask;
  parallel_ranges(x.rows, rows_per_task(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end && y.data != x.data; ++r) {
      std::memcpy(y.row(r), x.row(r), static_cast<size_t>(x.cols) * sizeof(float));
    }
    table.epilogue(epilogue.at(begin, 0), end - begin, y.cols, y.row(begin), y.stride);
  });
}

}  // namespace miaobi

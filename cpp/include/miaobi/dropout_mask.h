// SPDX-License-Identifier: MIT
// The plain data that says which elements of a matrix are dropped.
#pragma once

#include <cstdint>

namespace miaobi {

// Element (r, c) is multiplied by 0 where its number is below `threshold`, else by `scale` = 65536 / (65536 -
// threshold), so that its expectation stays. The number is 16 bits of Philox: half c % 2 of word c % 8 / 2 of block
// (r << 32) + c / 8 of (seed, stream), r and c being counted from `row` and `col`.
struct DropoutMask {
  uint64_t seed = 0, stream = 0;
  int64_t row = 0, col = 0;
  uint32_t threshold = 0;  // of 65536; 0: nothing is dropped
  float scale = 1.0f;

  bool is_on() const { return threshold != 0; }
};

}  // namespace miaobi

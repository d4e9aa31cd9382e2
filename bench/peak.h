// SPDX-License-Identifier: MIT
// Kernels that do nothing but keep one unit of the machine busy; peak_<isa>.cpp has those of one instruction set.
#pragma once

#include <cstdint>

namespace miaobi::bench {

struct PeakKernels {
  // `rounds` of independent multiply-adds that never leave the registers; gives a value that depends on all.
  float (*multiply_add)(int64_t rounds, float a, float b);
  double flops_per_round;
  // Sum of n floats, n a multiple of 128: reads them as fast as the level of memory gives them.
  float (*read)(const float* x, int64_t n);
};

namespace generic {
extern const PeakKernels kPeak;
}
namespace avx2 {
extern const PeakKernels kPeak;
}
namespace avx512 {
extern const PeakKernels kPeak;
}
namespace avx512_bf16 {
extern const PeakKernels kPeak;  // multiply_add alone
}
namespace neon {
extern const PeakKernels kPeak;
}

}  // namespace miaobi::bench

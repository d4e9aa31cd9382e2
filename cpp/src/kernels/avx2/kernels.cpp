// SPDX-License-Identifier: MIT
// The kernels compiled for AVX2 + FMA.

#define MIAOBI_ISA_NAMESPACE avx2
#define MIAOBI_ISA_DESCRIPTION "AVX2 + FMA"
// 6 x 2 accumulators, 2 vectors of B and 1 broadcast of A fill 15 of the 16 registers.
#define MIAOBI_TILE_ROWS 6

#include "kernels/simd_avx2.h"
#include "kernels/table.inc.h"

// SPDX-License-Identifier: MIT
// The kernels compiled for AVX-512 F/BW/DQ/VL.

#define MIAOBI_ISA_NAMESPACE avx512
#define MIAOBI_ISA_DESCRIPTION "AVX-512 F/BW/DQ/VL"
// 14 x 2 accumulators and 2 vectors of B fill 30 of the 32 registers; A is broadcast from memory.
#define MIAOBI_TILE_ROWS 14

#include "kernels/simd_avx512.h"
#include "kernels/table.inc.h"

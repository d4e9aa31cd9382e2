// SPDX-License-Identifier: MIT
// The kernels compiled for AVX-512 with dot products of bfloat16 pairs: all else is as in avx512.

#define MIAOBI_ISA_NAMESPACE avx512_bf16
#define MIAOBI_ISA_DESCRIPTION "AVX-512 F/BW/DQ/VL and BF16"
#define MIAOBI_TILE_ROWS 14  // as avx512: the accumulators stay float32

#include "kernels/simd_avx512_bf16.h"
#include "kernels/table.inc.h"

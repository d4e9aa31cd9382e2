// SPDX-License-Identifier: MIT
// The kernels compiled for Advanced SIMD (arm64).

#define MIAOBI_ISA_NAMESPACE neon
#define MIAOBI_ISA_DESCRIPTION "Advanced SIMD (arm64)"
// 8 x 2 accumulators, 2 vectors of B and the broadcasts fill 26 of the 32 registers.
#define MIAOBI_TILE_ROWS 8

#include "kernels/simd_neon.h"
#include "kernels/table.inc.h"

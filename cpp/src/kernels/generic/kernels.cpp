// SPDX-License-Identifier: MIT
// The kernels compiled for portable C++.

#define MIAOBI_ISA_NAMESPACE generic
#define MIAOBI_ISA_DESCRIPTION "portable C++"
// 4 x 8 floats are 8 of the 16 registers that every x86-64 and arm64 has, with room for the operands.
#define MIAOBI_TILE_ROWS 4

#include "kernels/simd_generic.h"
#include "kernels/table.inc.h"

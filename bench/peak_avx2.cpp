// SPDX-License-Identifier: MIT
// The peak kernels in AVX2 + FMA.

#define MIAOBI_ISA_NAMESPACE avx2

#include "kernels/simd_avx2.h"
#include "peak.inc.h"

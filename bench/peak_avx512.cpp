// SPDX-License-Identifier: MIT
// The peak kernels in AVX-512.

#define MIAOBI_ISA_NAMESPACE avx512

#include "kernels/simd_avx512.h"
#include "peak.inc.h"

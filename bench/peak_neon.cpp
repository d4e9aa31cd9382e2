// SPDX-License-Identifier: MIT
// The peak kernels in NEON.

#define MIAOBI_ISA_NAMESPACE neon

#include "kernels/simd_neon.h"
#include "peak.inc.h"

// SPDX-License-Identifier: MIT
// The peak kernels in portable C++.

#define MIAOBI_ISA_NAMESPACE generic

#include "kernels/simd_generic.h"
#include "peak.inc.h"

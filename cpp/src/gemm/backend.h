// SPDX-License-Identifier: MIT
// What a provider of matrix products offers to gemm.cpp.
#pragma once

#include "miaobi/gemm.h"

namespace miaobi {

void gemm_builtin(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c, int64_t ldc,
                  bool accumulate, const Epilogue& epilogue);
void gemm_builtin(int64_t m, const Operand& a, const PackedMatrix& b, float* c, int64_t ldc, bool accumulate,
                  const Epilogue& epilogue);

#if defined(MIAOBI_HAVE_OPENBLAS)
void gemm_openblas(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c, int64_t ldc,
                   bool accumulate, const Epilogue& epilogue);
#endif

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// Matrix products: one signature for every provider, precision and fusion.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "miaobi/gemm_types.h"
#include "miaobi/memory.h"

namespace miaobi {

// C = epilogue(op(A) op(B) [+ C]), op(A): M x K with its transform applied, op(B): K x N, C: M x N.
//
//   aliasing    C overlaps neither operand nor the epilogue's residual (C = C + A B is `accumulate`)
//   zero sizes  M = 0 or N = 0 does nothing; K = 0 gives the epilogue of 0 or of C
//   accuracy    |got - exact| <= (K+2)u / (1 - (K+2)u) * (|A||B| + |C| + |bias|), u = 2^-24. Each element is one
//               chain of fused multiply-adds in ascending k that starts from C or from 0, so splitting K
//               over accumulating calls gives the same bits as one call (built-in backend, "highest")
//   threads     over M and N, never over K: the bits do not depend on their number
//   memory      packing areas are the threads' own scratch, taken at the first use of a size
void gemm(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c, int64_t ldc,
          bool accumulate = false, const Epilogue& epilogue = {});

// A right operand packed once and used many times: a weight of a decoder. Same results as from the
// matrix it was made from.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // op(B), K x N, as in gemm.
  PackedMatrix(const Operand& b, int64_t n, int64_t k);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  const float* data() const { return data_.data(); }

 private:
  Buffer<float> data_;
  int64_t n_ = 0, k_ = 0;
};

void gemm(int64_t m, const Operand& a, const PackedMatrix& b, float* c, int64_t ldc, bool accumulate = false,
          const Epilogue& epilogue = {});

// Who computes: "builtin", or "openblas" where the build found it. Throws Error for a name that is
// unknown or not in this build.
void set_backend(const std::string& name);
std::string get_backend();
std::vector<std::string> available_backends();

// "highest": float32 throughout. "bf16": operands are rounded to bfloat16 while they are packed, sums stay
// float32. Throws Error for any other name.
void set_matmul_precision(const std::string& name);
std::string get_matmul_precision();

}  // namespace miaobi

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

enum class WeightType : int32_t { kFloat32, kBf16 };
// "float32" or "bf16". Throws Error for any other name.
WeightType weight_type(const std::string& name);

// A right operand packed once and used many times: a weight of a decoder. In float32 the results are those of the
// matrix it was made from, bit for bit; in bfloat16, those of the matrix with each element rounded to it.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // op(B), K x N, as in gemm. Only for the instruction set in use.
  PackedMatrix(const Operand& b, int64_t n, int64_t k, WeightType type = WeightType::kFloat32);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t bytes() const;
  WeightType type() const { return type_; }

  const float* float32() const { return float32_.data(); }
  const uint16_t* bf16() const { return bf16_.data(); }

 private:
  Buffer<float> float32_;  // one of the two
  Buffer<uint16_t> bf16_;
  int64_t n_ = 0, k_ = 0;
  WeightType type_ = WeightType::kFloat32;
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

// Another precision for the products that the calling thread starts while this lives. Throws Error as above.
class MatmulPrecisionScope {
 public:
  explicit MatmulPrecisionScope(const std::string& name);
  ~MatmulPrecisionScope();
  MatmulPrecisionScope(const MatmulPrecisionScope&) = delete;
  MatmulPrecisionScope& operator=(const MatmulPrecisionScope&) = delete;

 private:
  int before_;
};

}  // namespace miaobi

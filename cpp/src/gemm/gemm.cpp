// SPDX-License-Identifier: MIT
// The front of the matrix products: backend and precision.
#include "miaobi/gemm.h"

#include <atomic>

#include "gemm/backend.h"
#include "miaobi/check.h"

namespace miaobi {
namespace {

enum class Backend { kBuiltin, kOpenBlas };
std::atomic<Backend> g_backend{Backend::kBuiltin};
std::atomic<bool> g_bf16{false};
thread_local int t_bf16 = -1;  // of a MatmulPrecisionScope; -1: none

bool use_bf16() { return t_bf16 >= 0 ? t_bf16 == 1 : g_bf16.load(std::memory_order_relaxed); }

void check_precision(const std::string& name) {
  MIAOBI_CHECK(name == "highest" || name == "bf16", "[set_matmul_precision] expected \"highest\" or \"bf16\", got \"",
               name, "\"");
}

}  // namespace

void gemm(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c, int64_t ldc, bool accumulate,
          const Epilogue& epilogue) {
  if (m == 0 || n == 0) return;
  Operand left = a, right = b;
  left.bf16 = right.bf16 = use_bf16();
#if defined(MIAOBI_HAVE_OPENBLAS)
  // bf16 has no counterpart in cblas: the built-in product has it wherever it is asked for.
  if (g_backend.load(std::memory_order_relaxed) == Backend::kOpenBlas && !left.bf16) {
    gemm_openblas(m, n, k, left, right, c, ldc, accumulate, epilogue);
    return;
  }
#endif
  gemm_builtin(m, n, k, left, right, c, ldc, accumulate, epilogue);
}

void gemm(int64_t m, const Operand& a, const PackedMatrix& b, float* c, int64_t ldc, bool accumulate,
          const Epilogue& epilogue) {
  if (m == 0 || b.n() == 0) return;
  Operand left = a;
  left.bf16 = use_bf16();
  gemm_builtin(m, left, b, c, ldc, accumulate, epilogue);
}

WeightType weight_type(const std::string& name) {
  MIAOBI_CHECK(name == "float32" || name == "bf16", "expected dtype \"float32\" or \"bf16\", got \"", name, "\"");
  return name == "bf16" ? WeightType::kBf16 : WeightType::kFloat32;
}

std::vector<std::string> available_backends() {
#if defined(MIAOBI_HAVE_OPENBLAS)
  return {"builtin", "openblas"};
#else
  return {"builtin"};
#endif
}

void set_backend(const std::string& name) {
  if (name == "builtin") {
    g_backend = Backend::kBuiltin;
    return;
  }
  MIAOBI_CHECK(name == "openblas", "[set_backend] expected \"builtin\" or \"openblas\", got \"", name, "\"");
  MIAOBI_CHECK(available_backends().size() > 1, "[set_backend] this build has no OpenBLAS; install its development ",
               "package and build again with -DMIAOBI_BLAS=ON");
  g_backend = Backend::kOpenBlas;
}

std::string get_backend() { return g_backend == Backend::kBuiltin ? "builtin" : "openblas"; }

void set_matmul_precision(const std::string& name) {
  check_precision(name);
  g_bf16 = name == "bf16";
}

std::string get_matmul_precision() { return use_bf16() ? "bf16" : "highest"; }

MatmulPrecisionScope::MatmulPrecisionScope(const std::string& name) : before_(t_bf16) {
  check_precision(name);
  t_bf16 = name == "bf16" ? 1 : 0;
}

MatmulPrecisionScope::~MatmulPrecisionScope() { t_bf16 = before_; }

}  // namespace miaobi

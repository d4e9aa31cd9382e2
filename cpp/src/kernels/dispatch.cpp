// SPDX-License-Identifier: MIT
// Choice of the kernel table at run time.
#include "kernels/dispatch.h"

#include <atomic>
#include <cstdlib>

#include "miaobi/check.h"
#include "miaobi/cpu.h"

namespace miaobi {
namespace {

const KernelTable* find(const std::string& name) {
  std::string names;
  for (const KernelTable* table : supported_kernels()) {
    if (name == table->name) return table;
    names += names.empty() ? table->name : std::string(", ") + table->name;
  }
  for (const char* known : {"generic", "avx2", "avx512", "avx512_bf16", "neon"}) {
    MIAOBI_CHECK(name != known, "[isa] MIAOBI_ISA=", name, " asks for instructions that this machine or this build ",
                 "does not have; it can run: ", names);
  }
  detail::fail("[isa] MIAOBI_ISA=", name, " is unknown; this machine can run: ", names);
}

std::atomic<const KernelTable*>& slot() {
  static std::atomic<const KernelTable*> table{[] {
    const char* forced = std::getenv("MIAOBI_ISA");
    return forced != nullptr && *forced != '\0' ? find(forced) : supported_kernels().front();
  }()};
  return table;
}

}  // namespace

std::vector<const KernelTable*> supported_kernels() {
  std::vector<const KernelTable*> tables;
#if defined(MIAOBI_HAVE_X86_KERNELS)
#if defined(MIAOBI_EMULATED_AVX512)
  if (cpu_features().avx2_fma) tables.push_back(&kernels::avx512_bf16::kTable);
  if (cpu_features().avx2_fma) tables.push_back(&kernels::avx512::kTable);
#else
  if (cpu_features().avx512_bf16) tables.push_back(&kernels::avx512_bf16::kTable);
  if (cpu_features().avx512) tables.push_back(&kernels::avx512::kTable);
#endif
  if (cpu_features().avx2_fma) tables.push_back(&kernels::avx2::kTable);
#endif
#if defined(MIAOBI_HAVE_NEON_KERNELS)
  if (cpu_features().neon) tables.push_back(&kernels::neon::kTable);
#endif
  tables.push_back(&kernels::generic::kTable);
  return tables;
}

const KernelTable& kernels_in_use() { return *slot().load(std::memory_order_relaxed); }

void use_kernels(const std::string& name) { slot().store(find(name), std::memory_order_relaxed); }

}  // namespace miaobi

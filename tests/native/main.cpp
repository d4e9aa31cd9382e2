// SPDX-License-Identifier: MIT
// Runs the native tests on the instruction set that MIAOBI_ISA names, or on the machine's best.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/dispatch.h"

namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE of the CMake file

const char* forced_isa() {
  const char* name = std::getenv("MIAOBI_ISA");
  return name != nullptr && *name != '\0' ? name : nullptr;
}

// Known to the engine, but not to this build or machine.
bool is_missing(const char* name) {
  for (const miaobi::KernelTable* table : miaobi::supported_kernels()) {
    if (std::strcmp(table->name, name) == 0) return false;
  }
  for (const char* known : {"generic", "avx2", "avx512", "neon"}) {
    if (std::strcmp(known, name) == 0) return true;
  }
  return false;
}

}  // namespace

TEST_CASE("the instruction set in force is the one that was asked for") {
  if (forced_isa() != nullptr) {
    CHECK(std::strcmp(forced_isa(), miaobi::kernels_in_use().name) == 0);
  } else {
    CHECK(&miaobi::kernels_in_use() == miaobi::supported_kernels().front());
  }
}

int main(int argc, char** argv) {
  if (forced_isa() != nullptr && is_missing(forced_isa())) {
    std::printf("skipped: this machine or build has no %s kernels\n", forced_isa());
    return kSkipped;
  }
  doctest::Context context(argc, argv);
  std::printf("instruction set: %s (%s)\n", miaobi::kernels_in_use().name, miaobi::kernels_in_use().description);
  return context.run();
}

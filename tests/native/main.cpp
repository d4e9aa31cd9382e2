// SPDX-License-Identifier: MIT
// Runs the native tests on the instruction set that MIAOBI_ISA names, or on the machine's best, and with the backend
// that MIAOBI_TEST_BACKEND names, or the built-in one.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "kernels/dispatch.h"
#include "miaobi/gemm.h"

namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE of the CMake file

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}
const char* forced_isa() { return variable("MIAOBI_ISA"); }

// Known to the engine, but not to this build or machine.
bool is_missing(const char* name) {
  for (const miaobi::KernelTable* table : miaobi::supported_kernels()) {
    if (std::strcmp(table->name, name) == 0) return false;
  }
  for (const char* known : {"generic", "avx2", "avx512", "avx512_bf16", "neon"}) {
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
  if (const char* backend = variable("MIAOBI_TEST_BACKEND")) {
    try {
      miaobi::set_backend(backend);
    } catch (const std::exception& e) {
      std::fprintf(stderr, "%s\n", e.what());
      return 1;
    }
  }
  doctest::Context context(argc, argv);
  std::printf("instruction set: %s (%s), backend: %s\n", miaobi::kernels_in_use().name,
              miaobi::kernels_in_use().description, miaobi::get_backend().c_str());
  return context.run();
}

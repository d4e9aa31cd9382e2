// SPDX-License-Identifier: MIT
// What this machine is: instruction sets, caches, processors that this process may use.
#pragma once

#include <cstdint>
#include <string>

namespace miaobi {

struct CpuFeatures {
  bool avx2_fma = false;  // AVX2, FMA and F16C, and the system saves their registers
  bool avx512 = false;    // AVX-512 F, BW, DQ, VL, likewise
  bool avx512_bf16 = false;
  bool neon = false;
};

struct CacheSizes {  // bytes, per core for l1 and l2; typical sizes where the system does not tell
  int64_t l1 = 32 << 10;
  int64_t l2 = 512 << 10;
  int64_t l3 = 8 << 20;
};

const CpuFeatures& cpu_features();
const CacheSizes& cache_sizes();
std::string cpu_name();

// Processors that this process may keep busy: the affinity mask, cut by the cgroup's CPU quota (rounded
// up); at least 1.
int available_processors();

}  // namespace miaobi

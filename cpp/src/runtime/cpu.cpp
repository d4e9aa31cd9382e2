// SPDX-License-Identifier: MIT
// Feature detection from CPUID, cache sizes and CPU quota from the system.
#include "miaobi/cpu.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define MIAOBI_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace miaobi {
namespace {

#if MIAOBI_X86
struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
#if defined(_MSC_VER)
  int out[4];
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<uint32_t>(out[0]), static_cast<uint32_t>(out[1]), static_cast<uint32_t>(out[2]),
       static_cast<uint32_t>(out[3])};
#else
  __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
#endif
  return r;
}

uint64_t xgetbv0() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t lo, hi;
  __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<uint64_t>(hi) << 32) | lo;
#endif
}

constexpr bool bit(uint64_t word, int n) { return ((word >> n) & 1u) != 0; }
#endif

CpuFeatures detect() {
  CpuFeatures f;
#if MIAOBI_X86
  if (cpuid(0, 0).eax < 7) return f;
  const Registers one = cpuid(1, 0);
  const bool osxsave = bit(one.ecx, 27), avx = bit(one.ecx, 28), fma = bit(one.ecx, 12), f16c = bit(one.ecx, 29);
  if (!osxsave || !avx) return f;
  const uint64_t saved = xgetbv0();
  const bool ymm = (saved & 0x6) == 0x6;    // SSE and AVX state
  const bool zmm = (saved & 0xe6) == 0xe6;  // and the mask, upper-half and high-16 state
  const Registers seven = cpuid(7, 0);
  f.avx2_fma = ymm && fma && f16c && bit(seven.ebx, 5);
  f.avx512 = zmm && f.avx2_fma && bit(seven.ebx, 16) && bit(seven.ebx, 17) && bit(seven.ebx, 30) && bit(seven.ebx, 31);
  f.avx512_bf16 = f.avx512 && seven.eax >= 1 && bit(cpuid(7, 1).eax, 5);
#elif defined(__aarch64__) || defined(_M_ARM64)
  f.neon = true;  // part of the base architecture
#endif
  return f;
}

CacheSizes detect_caches() {
  CacheSizes c;
#if defined(__linux__) && defined(_SC_LEVEL1_DCACHE_SIZE)
  const auto ask = [](int name, int64_t& size) {
    const long bytes = sysconf(name);
    if (bytes > 0) size = bytes;
  };
  ask(_SC_LEVEL1_DCACHE_SIZE, c.l1);
  ask(_SC_LEVEL2_CACHE_SIZE, c.l2);
  ask(_SC_LEVEL3_CACHE_SIZE, c.l3);
#elif defined(__APPLE__)
  const auto ask = [](const char* name, int64_t& size) {
    int64_t bytes = 0;
    size_t length = sizeof bytes;
    if (sysctlbyname(name, &bytes, &length, nullptr, 0) == 0 && bytes > 0) size = bytes;
  };
  ask("hw.perflevel0.l1dcachesize", c.l1);
  ask("hw.perflevel0.l2cachesize", c.l2);
#endif
  return c;
}

#if defined(__linux__)
// CPUs that the quota of one cgroup folder allows, or infinity.
double quota_of(const std::string& folder) {
  double quota = 0, period = 0;
  if (std::ifstream v2(folder + "/cpu.max"); v2) {
    std::string first;
    if (v2 >> first >> period && first != "max" && period > 0) return std::stod(first) / period;
    return INFINITY;
  }
  std::ifstream q(folder + "/cpu.cfs_quota_us"), p(folder + "/cpu.cfs_period_us");
  if (q >> quota && p >> period && quota > 0 && period > 0) return quota / period;
  return INFINITY;
}

// The tightest quota of this process's cgroup and those above it, v2 and v1.
double cgroup_quota() {
  double best = INFINITY;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    std::string root = "/sys/fs/cgroup";
    if (!controllers.empty()) {
      std::istringstream names(controllers);
      bool cpu = false;
      for (std::string name; std::getline(names, name, ',');) cpu = cpu || name == "cpu";
      if (!cpu) continue;
      root += "/" + controllers;
    }
    while (true) {
      best = std::min(best, quota_of(root + path));
      if (path.empty() || path == "/") break;
      path.erase(path.find_last_of('/'));
    }
  }
  return best;
}
#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

const CacheSizes& cache_sizes() {
  static const CacheSizes sizes = detect_caches();
  return sizes;
}

std::string cpu_name() {
#if defined(__linux__)
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
#elif defined(__APPLE__)
  char name[256];
  size_t length = sizeof name;
  if (sysctlbyname("machdep.cpu.brand_string", name, &length, nullptr, 0) == 0) return name;
#endif
  return "unknown";
}

int available_processors() {
  int count = std::max(1u, std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = std::max(1, CPU_COUNT(&set));
  const double quota = cgroup_quota();
  if (quota < count) count = std::max(1, static_cast<int>(std::ceil(quota)));
#endif
  return count;
}

}  // namespace miaobi

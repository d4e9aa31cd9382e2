// SPDX-License-Identifier: MIT
// The measurement of peaks.
#include "machine.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "kernels/dispatch.h"
#include "miaobi/cpu.h"
#include "miaobi/memory.h"
#include "miaobi/threads.h"
#include "peak.h"

namespace miaobi::bench {
namespace {

const PeakKernels& kernels() {
#if defined(MIAOBI_X86_PEAKS)
  if (kernels_in_use().width == 16) return avx512::kPeak;
  if (kernels_in_use().width == 8) return avx2::kPeak;
#elif defined(MIAOBI_NEON_PEAKS)
  if (std::string(kernels_in_use().name) != "generic") return neon::kPeak;
#endif
  return generic::kPeak;
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The best rate in units of `work` a second, where body(slot) does `work`. Each run has several tasks for each thread,
// so that one that wakes late costs a part of it.
template <class Body>
double best_rate(int threads, double work, Body&& body) {
  set_num_threads(threads);
  const int64_t tasks = threads == 1 ? 1 : 8 * threads;
  double best = 0;
  const double end = now() + 0.04;
  for (int run = 0; run < 5 || now() < end; ++run) {
    const double begin = now();
    parallel_for_slots(tasks, threads, [&](int64_t, int slot) { body(slot); });
    best = std::max(best, work * static_cast<double>(tasks) / (now() - begin));
  }
  return best;
}

volatile float g_sink;  // results go here, so that no loop is removed

double measure_flops(const PeakKernels& peak, int threads) {
  constexpr int64_t kRounds = 50000;  // some hundred microseconds
  return best_rate(threads, peak.flops_per_round * kRounds,
                   [&](int) { g_sink = peak.multiply_add(kRounds, 0.999f, 0.001f); });
}

double measure_bandwidth(const PeakKernels& peak, int threads, int64_t bytes_each) {
  const int64_t floats = std::max<int64_t>(bytes_each / 512, 1) * 128;
  std::vector<Buffer<float>> areas(static_cast<size_t>(threads));
  for (auto& area : areas) area = Buffer<float>(floats, true);
  const int64_t repeat = std::max<int64_t>(1, (4 << 20) / (floats * 4));
  return best_rate(threads, static_cast<double>(floats * 4 * repeat), [&](int slot) {
    float sum = 0;
    for (int64_t r = 0; r < repeat; ++r) sum += peak.read(areas[static_cast<size_t>(slot)].data(), floats);
    g_sink = sum;
  });
}

// The value of `key`, which measure() gives where it is not there yet.
template <class Map, class Measure>
double cached(Map& map, const typename Map::key_type& key, Measure&& measure) {
  const auto found = map.find(key);
  return found != map.end() ? found->second : map.emplace(key, measure()).first->second;
}

}  // namespace

double Machine::flops(int threads) {
  return cached(flops_, threads, [&] { return measure_flops(kernels(), threads); });
}

double Machine::bf16_flops(int threads) {
#if defined(MIAOBI_X86_PEAKS)
  if (cpu_features().avx512_bf16 && kernels_in_use().width == 16) {
    return cached(bf16_flops_, threads, [&] { return measure_flops(avx512_bf16::kPeak, threads); });
  }
#endif
  return flops(threads);
}

double Machine::bandwidth(int64_t bytes, int threads) {
  return cached(bandwidth_, {bytes, threads}, [&] { return measure_bandwidth(kernels(), threads, bytes / threads); });
}

std::map<std::string, std::string> Machine::facts(const std::vector<int>& threads) {
  const CacheSizes& cache = cache_sizes();
  std::map<std::string, std::string> facts;
  for (const int n : threads) {
    const auto add = [&](const std::string& name, double value, const char* unit) {
      char text[64];
      std::snprintf(text, sizeof(text), "%.1f %s", value * 1e-9, unit);
      facts["peak_" + name + "_threads_" + std::to_string(n)] = text;
    };
    add("float32", flops(n), "GFLOP/s");
    add("bf16", bf16_flops(n), "GFLOP/s");
    // Half of a cache is what it holds beside other things; four times the last one, up to 256 MB, does not fit.
    add("L1", bandwidth(n * cache.l1 / 2, n), "GB/s");
    add("L2", bandwidth(n * cache.l2 / 2, n), "GB/s");
    add("L3", bandwidth(std::max(cache.l3 / 2, n * cache.l2), n), "GB/s");
    add("memory", bandwidth(std::min<int64_t>(4 * cache.l3, 256 << 20), n), "GB/s");
  }
  return facts;
}

}  // namespace miaobi::bench

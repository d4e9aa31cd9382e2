// SPDX-License-Identifier: MIT
// main() of every benchmark and the functions of bench.h.
#include "bench.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>

#include "commit.h"
#include "kernels/dispatch.h"
#include "machine.h"
#include "miaobi/check.h"
#include "miaobi/cpu.h"
#include "miaobi/gemm.h"
#include "miaobi/rng.h"
#include "miaobi/threads.h"

namespace miaobi::bench {
namespace {

Machine g_machine;
bool g_failed = false;

// google-benchmark calls a benchmark several times to find the number of iterations; the operands of the one that runs
// are made and checked once, and go when the next one comes.
struct Current {
  std::string name;
  std::function<void()> run;
} g_current;

void run(benchmark::State& state, const Benchmark& c) {
  set_num_threads(c.threads);
  try {
    if (g_current.name != c.name) {
      g_current = {};
      g_current.run = c.setup();
      g_current.name = c.name;
    }
    for (auto _ : state) g_current.run();
  } catch (const std::exception& e) {
    g_failed = true;
    state.SkipWithError(e.what());
    return;
  }
  const Work& work = c.work;
  using benchmark::Counter;
  const auto rate = [](double amount) { return Counter(amount, Counter::kIsIterationInvariantRate); };
  if (work.flops > 0) {
    state.counters["FLOP/s"] = rate(work.flops);
    const double peak = work.bf16 ? g_machine.bf16_flops(c.threads) : g_machine.flops(c.threads);
    state.counters["of_peak"] = rate(work.flops / peak);
  }
  if (work.bytes > 0) state.counters["bytes/s"] = rate(work.bytes);
  if (work.bytes > 0 && work.working_set > 0) {
    state.counters["of_bandwidth"] = rate(work.bytes / g_machine.bandwidth(work.working_set, c.threads));
  }
  if (work.items > 0) state.counters["items_per_second"] = rate(work.items);
}

}  // namespace

const std::vector<int>& thread_counts() {
  static const std::vector<int> counts =
      available_processors() > 1 ? std::vector<int>{1, available_processors()} : std::vector<int>{1};
  return counts;
}

void add(const std::string& name, const Work& work, const Setup& setup) {
  for (const int threads : thread_counts()) {
    benchmarks().push_back({name + "/threads:" + std::to_string(threads), threads, work, setup});
  }
}

std::vector<Benchmark>& benchmarks() {
  static std::vector<Benchmark> all;
  return all;
}

Matrix::Matrix(int64_t rows_, int64_t cols_, uint64_t seed) : rows(rows_), cols(cols_), buffer(rows_ * cols_) {
  const Rng rng(seed, 0);
  for (int64_t i = 0; i < buffer.size(); ++i) buffer[i] = 2 * rng.uniform(static_cast<uint64_t>(i)) - 1;
}

void expect_near(const std::string& what, double got, double expected, double bound) {
  MIAOBI_CHECK(std::abs(got - expected) <= bound, "[bench] wrong result of ", what, ": expected ", expected, " +- ",
               bound, ", got ", got);
}

void expect_near(const std::string& what, ConstMat got, ConstMat expected, double relative) {
  double largest = 0;
  for (int64_t r = 0; r < expected.rows; ++r) {
    for (int64_t c = 0; c < expected.cols; ++c) largest = std::max(largest, std::abs(double{expected(r, c)}));
  }
  for (int64_t r = 0; r < expected.rows; ++r) {
    for (int64_t c = 0; c < expected.cols; ++c) expect_near(what, got(r, c), expected(r, c), relative * largest);
  }
}

}  // namespace miaobi::bench

int main(int argc, char** argv) {
  using namespace miaobi;
  using namespace miaobi::bench;
  try {
    register_benchmarks();
    for (const Benchmark& c : benchmarks()) {
      benchmark::RegisterBenchmark(c.name.c_str(), [&c](benchmark::State& state) { run(state, c); })
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    }
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::AddCustomContext("miaobi", MIAOBI_VERSION " " MIAOBI_COMMIT);
    benchmark::AddCustomContext("cpu", cpu_name());
    benchmark::AddCustomContext("isa", kernels_in_use().name);
    benchmark::AddCustomContext("backend", get_backend());
    for (const auto& [name, value] : g_machine.facts(thread_counts())) benchmark::AddCustomContext(name, value);
    benchmark::RunSpecifiedBenchmarks();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  g_current = {};
  return g_failed ? 1 : 0;
}

// SPDX-License-Identifier: MIT
// What the native benchmarks share: registration, the check before the timing, counters, and the head of the report.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "miaobi/mat.h"
#include "miaobi/memory.h"

namespace miaobi::bench {

// Each program defines this; main() in bench.cpp calls it.
void register_benchmarks();

// The thread counts that everything is measured with: 1 and, where there are more, all.
const std::vector<int>& thread_counts();

// What one call of the timed function does. Zero leaves out the counters that a number is for.
struct Work {
  double flops = 0;  // counter FLOP/s, and of_peak: the share of the peak that was measured at the start
  double bytes = 0;  // bytes that it must read and write; counter bytes/s
  // The bytes are among so many that are used again and again; counter of_bandwidth: the share of the bandwidth at
  // which so much can be read.
  int64_t working_set = 0;
  bool bf16 = false;  // of_peak is of the bf16 peak
  double items = 0;   // tokens; counter items_per_second
};

// Makes the operands, checks a first result, throws where it is wrong (the program then fails), and gives the function
// to time, which owns what it needs.
using Setup = std::function<std::function<void()>()>;

// Adds NAME/threads:N for each number of threads.
void add(const std::string& name, const Work& work, const Setup& setup);

struct Benchmark {
  std::string name;
  int threads;
  Work work;
  Setup setup;
};
// All that were added.
std::vector<Benchmark>& benchmarks();

// A matrix of numbers from [-1, 1), which depend on `seed` and place.
struct Matrix {
  Matrix(int64_t rows, int64_t cols, uint64_t seed);
  Mat mat() { return Mat(buffer.data(), rows, cols); }
  ConstMat mat() const { return ConstMat(buffer.data(), rows, cols); }
  float* data() { return buffer.data(); }
  const float* data() const { return buffer.data(); }

  int64_t rows, cols;
  Buffer<float> buffer;
};

// Throws Error that names `what` unless |got - expected| <= bound; NaN fails.
void expect_near(const std::string& what, double got, double expected, double bound);
// The same for all elements, with a bound relative to the largest expected one.
void expect_near(const std::string& what, ConstMat got, ConstMat expected, double relative);

}  // namespace miaobi::bench

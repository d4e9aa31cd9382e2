// SPDX-License-Identifier: MIT
// What this machine can do at most, measured: multiply-adds, and reads from each level of memory.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace miaobi::bench {

// Peaks with `threads` threads, to which the engine is then set. Each is measured when it is first asked for, for some
// hundredths of a second, and kept: the best of many short runs, because what disturbs a run only makes it slower.
class Machine {
 public:
  // Float32 multiply-adds with the instruction set in force, FLOP/s.
  double flops(int threads);
  // bfloat16 products with float32 sums where the machine has AVX-512-BF16 and uses AVX-512, else those of float32.
  double bf16_flops(int threads);
  // Bytes/s at which threads that share out `bytes` read them again and again: the bandwidth of the level of memory
  // that holds so much.
  double bandwidth(int64_t bytes, int threads);
  // The peaks for each number of threads as names and values, for the head of a report.
  std::map<std::string, std::string> facts(const std::vector<int>& threads);

 private:
  std::map<int, double> flops_, bf16_flops_;
  std::map<std::pair<int64_t, int>, double> bandwidth_;
};

}  // namespace miaobi::bench

// SPDX-License-Identifier: MIT
// The cases of a benchmark as a library of C functions, for compare_builds.py.
#include <algorithm>
#include <exception>
#include <functional>
#include <string>

#include "bench.h"
#include "miaobi/threads.h"

namespace {

std::function<void()> g_run;
std::string g_text;  // what was returned last

}  // namespace

extern "C" {

// The names of all cases, a line each.
const char* miaobi_bench_names() {
  if (miaobi::bench::benchmarks().empty()) miaobi::bench::register_benchmarks();
  g_text.clear();
  for (const miaobi::bench::Benchmark& c : miaobi::bench::benchmarks()) g_text += c.name + "\n";
  return g_text.c_str();
}

// Makes a case the one that miaobi_bench_run runs: null, or what is wrong.
const char* miaobi_bench_choose(const char* name) {
  g_run = nullptr;
  try {
    const auto& all = miaobi::bench::benchmarks();
    const auto found = std::find_if(all.begin(), all.end(), [&](const auto& c) { return c.name == name; });
    if (found == all.end()) return "there is no such case";
    miaobi::set_num_threads(found->threads);
    g_run = found->setup();
    return nullptr;
  } catch (const std::exception& e) {
    g_text = e.what();
    return g_text.c_str();
  }
}

void miaobi_bench_run() { g_run(); }

}  // extern "C"

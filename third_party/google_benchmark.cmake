# SPDX-License-Identifier: MIT
# Finds the system's google-benchmark 1.6 or newer: the target benchmark::benchmark. Without it, says what to install.
find_package(benchmark CONFIG QUIET)
if(NOT benchmark_FOUND)
  message(FATAL_ERROR "The benchmarks need google-benchmark 1.6 or newer (Debian and Ubuntu: apt install libbenchmark-dev; "
    "Fedora: google-benchmark-devel; Homebrew: google-benchmark; vcpkg: benchmark). Install it, or set "
    "-Dbenchmark_DIR=<folder that holds benchmarkConfig.cmake>, or leave them out with -DMIAOBI_BUILD_BENCH=OFF.")
endif()
if(benchmark_VERSION AND benchmark_VERSION VERSION_LESS 1.6)
  message(FATAL_ERROR "The benchmarks need google-benchmark 1.6 or newer, and found ${benchmark_VERSION} in "
    "${benchmark_DIR}. Set -Dbenchmark_DIR=<folder that holds a newer benchmarkConfig.cmake>.")
endif()

// SPDX-License-Identifier: MIT
// Threads, instruction sets, backends and precision.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "bindings.h"
#include "kernels/dispatch.h"
#include "miaobi/cpu.h"
#include "miaobi/gemm.h"
#include "miaobi/memory.h"
#include "miaobi/threads.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

py::typing::Dict<py::str, py::object> build_info() {
  std::vector<std::string> isas;
  for (const miaobi::KernelTable* table : miaobi::supported_kernels()) isas.emplace_back(table->name);
  const miaobi::CacheSizes& cache = miaobi::cache_sizes();
  return py::dict("version"_a = MIAOBI_VERSION, "compiler"_a = compiler(), "isa"_a = miaobi::kernels_in_use().name,
                  "isas"_a = isas, "backend"_a = miaobi::get_backend(), "backends"_a = miaobi::available_backends(),
                  "threads"_a = miaobi::get_num_threads(), "matmul_precision"_a = miaobi::get_matmul_precision(),
                  "cpu"_a = miaobi::cpu_name(), "processors"_a = miaobi::available_processors(),
                  "caches"_a = py::dict("l1"_a = cache.l1, "l2"_a = cache.l2, "l3"_a = cache.l3));
}

}  // namespace

void register_runtime(py::module_& m) {
  // A wrong MIAOBI_ISA is told at import, not in the middle of a run.
  miaobi::kernels_in_use();
  m.attr("__version__") = MIAOBI_VERSION;
  m.def("build_info", build_info,
        "Facts of this build and machine: version, compiler, isa in force, isas supported, backend, backends,\n"
        "threads, matmul_precision, cpu, processors, caches (bytes).");
  m.def("set_num_threads", &miaobi::set_num_threads, "n"_a,
        "Threads that the engine uses, the caller included. ValueError unless 1 <= n <= 256.");
  m.def("get_num_threads", &miaobi::get_num_threads, "Threads that the engine uses.");
  m.def("set_backend", &miaobi::set_backend, "name"_a,
        "Who computes matrix products: \"builtin\", or \"openblas\" where the build has it. ValueError otherwise.");
  m.def("get_backend", &miaobi::get_backend, "The backend in force.");
  m.def("available_backends", &miaobi::available_backends, "Backends of this build.");
  m.def("set_matmul_precision", &miaobi::set_matmul_precision, "name"_a,
        "\"highest\" (float32 throughout) or \"bf16\" (operands rounded to bfloat16, float32 sums). ValueError\n"
        "otherwise.");
  m.def("get_matmul_precision", &miaobi::get_matmul_precision, "The precision in force.");
  m.def("allocation_count", &miaobi::allocation_count, "Buffers that the engine has allocated so far.");
  m.def("allocated_bytes", &miaobi::allocated_bytes, "Bytes that the engine's buffers hold now.");
}

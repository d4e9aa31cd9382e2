// SPDX-License-Identifier: MIT
// libFuzzer entry for the safetensors reader, over memory. Any input is read completely or refused with FormatError.
//
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Icpp/include -Icpp/src
//           tests/fuzz/fuzz_safetensors.cpp cpp/src/io/*.cpp -o fuzz_safetensors
//   ./fuzz_safetensors -max_total_time=60 -max_len=4096
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "miaobi/check.h"
#include "miaobi/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const miaobi::SafetensorsFile file(std::as_bytes(std::span(data, size)), "fuzz");
    for (const miaobi::StoredTensor& tensor : file.tensors()) {
      if (tensor.dtype != "F32" && tensor.dtype != "F16" && tensor.dtype != "BF16") continue;
      std::vector<float> values(static_cast<size_t>(tensor.count));
      file.read_f32(tensor.name, values.data(), tensor.count);
    }
  } catch (const miaobi::FormatError&) {
  }
  return 0;
}

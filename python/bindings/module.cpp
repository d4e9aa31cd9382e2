// SPDX-License-Identifier: MIT
// miaobi._core: the engine as Python sees it. Strict: float32, int32 and int64 arrays, C-contiguous; the
// package above converts.
#include "bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The miaobi engine. Arrays must be C-contiguous and of the stated type.";
  register_errors(m);
  register_runtime(m);
  register_ops(m);
  register_layers(m);
  register_model(m);
  register_generation(m);
  register_io(m);
  register_text(m);
}

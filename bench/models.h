// SPDX-License-Identifier: MIT
// Models of the table in shapes.h for the benchmarks of whole steps.
#pragma once

#include "miaobi/gpt.h"
#include "shapes.h"

namespace miaobi::bench {

inline GPTConfig config_of(const Model& m, int64_t positions) {
  GPTConfig c;
  c.vocab_size = m.vocabulary;
  c.n_positions = positions;
  c.n_embd = m.width;
  c.n_layer = m.layers;
  c.n_head = m.heads;
  c.n_inner = m.inner;
  return c;
}

// Multiply-adds of one token's forward pass, without attention's scores and values: one for each weight.
inline double weights_of(const Model& m) {
  return static_cast<double>(m.vocabulary * m.width + m.layers * (4 * m.width + 2 * m.inner) * m.width);
}

}  // namespace miaobi::bench

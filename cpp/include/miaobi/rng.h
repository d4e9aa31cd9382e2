// SPDX-License-Identifier: MIT
// Counter-based random numbers: Philox 4x32-10 (Salmon et al. 2011). Number i of a stream is a function of
// (seed, stream, i) alone, so any thread can make any of them.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "miaobi/philox.h"

namespace miaobi {

class Rng {
 public:
  Rng(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  // Four 32-bit words of block `counter`.
  std::array<uint32_t, 4> block(uint64_t counter) const {
    std::array<uint32_t, 4> words;
    philox(seed_, stream_, counter, words.data());
    return words;
  }

  // Uniform in (0, 1): 23 bits and half a step, so the ends are never met and the logarithm is finite.
  float uniform(uint64_t index) const { return open_unit(block(index / 4)[index % 4]); }

  // Standard normal by Box and Muller; |x| < 6.
  float normal(uint64_t index) const {
    const auto x = block(index / 4);
    const size_t pair = (index % 4) / 2 * 2;
    const double radius = std::sqrt(-2.0 * std::log(static_cast<double>(open_unit(x[pair]))));
    const double angle = 6.283185307179586 * static_cast<double>(open_unit(x[pair + 1]));
    return static_cast<float>(radius * (index % 2 == 0 ? std::cos(angle) : std::sin(angle)));
  }

 private:
  static float open_unit(uint32_t word) { return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f; }

  uint64_t seed_, stream_;
};

}  // namespace miaobi

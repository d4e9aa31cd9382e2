// SPDX-License-Identifier: MIT
// One block of Philox 4x32-10 (Salmon et al. 2011), in plain code that the kernels of every instruction set may
// include.
#pragma once

#include <cstdint>

namespace miaobi {

// Four 32-bit words, a function of (seed, stream, counter). Static, so that every file has a copy of its own: the
// linker can never give the one that was compiled with wide instructions to everyone.
static inline void philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t words[4]) {
  uint32_t x0 = static_cast<uint32_t>(counter), x1 = static_cast<uint32_t>(counter >> 32);
  uint32_t x2 = static_cast<uint32_t>(stream), x3 = static_cast<uint32_t>(stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * x0, p1 = uint64_t{0xCD9E8D57} * x2;
    x0 = static_cast<uint32_t>(p1 >> 32) ^ x1 ^ k0;
    x1 = static_cast<uint32_t>(p1);
    x2 = static_cast<uint32_t>(p0 >> 32) ^ x3 ^ k1;
    x3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  words[0] = x0;
  words[1] = x1;
  words[2] = x2;
  words[3] = x3;
}

}  // namespace miaobi

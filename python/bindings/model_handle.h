// SPDX-License-Identifier: MIT
// A model as Python holds it: with a lock, so that two Python threads cannot be in its workspace at once.
#pragma once

#include <cstdint>
#include <mutex>

#include "miaobi/gpt.h"

struct ModelHandle {
  ModelHandle(const miaobi::GPTConfig& config, uint64_t seed) : model(config, seed) {}

  miaobi::GPT model;
  std::mutex mutex;
  miaobi::Buffer<float> losses;
  int64_t scored = 0;  // targets of the last token_losses that count
};

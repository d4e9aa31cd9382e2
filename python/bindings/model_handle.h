// SPDX-License-Identifier: MIT
// A model as Python holds it: with a lock, so that two Python threads cannot be in its workspace at once.
#pragma once

#include <cstdint>
#include <mutex>
#include <shared_mutex>

#include "miaobi/gpt.h"

struct ModelHandle {
  ModelHandle(const miaobi::GPTConfig& config, uint64_t seed) : model(config, seed) {}

  // Before weights change: what was packed of them is no longer theirs.
  void unpack() {
    const std::unique_lock<std::shared_mutex> lock(packing);
    model.unpack();
  }

  miaobi::GPT model;
  std::mutex mutex;           // of everything that uses the model's workspace
  std::shared_mutex packing;  // shared while decoding, which does not
  miaobi::Buffer<float> losses;
  int64_t scored = 0;  // targets of the last token_losses that count
};

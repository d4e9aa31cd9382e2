// SPDX-License-Identifier: MIT
// The shapes that everything in bench/ measures. The Python scripts read this file too (side_by_side.py), so a table
// is a constexpr array of one brace-enclosed row a line, with plain strings and integers.
#pragma once

#include <cstdint>

namespace miaobi::bench {

struct Gemm {
  const char* name;
  int64_t m, k, n;
};
inline constexpr Gemm kGemms[] = {
    {"small square", 128, 256, 128},
    {"square", 256, 512, 256},
    {"square", 512, 1024, 512},
    {"square", 1024, 1024, 1024},
    {"hidden layer of nano", 2048, 256, 1024},
    {"LM head of nano", 2048, 256, 8000},
};

// Decoding and small batches: these rows against each of the weights.
inline constexpr int64_t kSkinnyRows[] = {1, 2, 4, 8, 16};
struct Weight {
  const char* name;
  int64_t k, n;
};
inline constexpr Weight kSkinnyWeights[] = {
    {"QKV of nano", 256, 768},
    {"hidden layer of small", 384, 1536},
    {"hidden layer of base", 768, 3072},
    {"LM head of nano", 256, 8000},
};

// The presets of the package with the batches that training is compared on; base is GPT-2 with its own vocabulary.
struct Model {
  const char* name;
  int64_t layers, heads, width, inner, vocabulary, batch, context;
};
inline constexpr Model kModels[] = {
    {"nano", 2, 8, 256, 512, 8000, 16, 128},
    {"small", 6, 6, 384, 1536, 8000, 8, 256},
    {"base", 12, 12, 768, 3072, 50257, 4, 256},
};

// Rows of the fused ops, at the widths of each model.
inline constexpr int64_t kFusedRows[] = {1, 32, 128, 2048};

struct Attention {
  const char* name;
  int64_t batch, heads, length, head_size;
};
inline constexpr Attention kAttentions[] = {
    {"batch of nano", 16, 8, 128, 32},
    {"one long sequence", 1, 8, 1024, 64},
    {"batch of small", 8, 6, 256, 64},
};

// Tokens that are in the KV cache when the next one comes.
inline constexpr int64_t kCachedTokens[] = {16, 128, 512, 1000};
inline constexpr int64_t kSequences[] = {1, 8};  // that decode together
inline constexpr int64_t kPromptTokens = 128;    // as many as a step of prefill takes

}  // namespace miaobi::bench

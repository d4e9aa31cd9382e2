// SPDX-License-Identifier: MIT
// Decoding by the length of the context: appending to the KV cache, attention over it, and a whole step of a model; by
// the kind of the weights, whole steps of several sequences, and a prompt.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bench.h"
#include "models.h"

namespace miaobi::bench {
namespace {

constexpr int64_t kPositions = 1024;

// A model whose cache holds the same `tokens` of some sequences; every call works on the next token of each, or of the
// first, and takes it back.
struct Decoding {
  Decoding(const Model& m, int64_t tokens, WeightType type, int64_t count)
      : model(config_of(m, kPositions), 1),
        cache(m.layers, m.heads, m.width / m.heads, count * kPositions, type),
        length(tokens),
        tolerance(type == WeightType::kFloat32 ? 1e-4 : 0.03),
        logits(count, m.vocabulary, 0),
        rows(2, 3 * m.width, 1) {
    model.pack(type);
    for (int64_t i = 0; i <= tokens; ++i) ids.push_back(static_cast<int32_t>(i * 7919 % m.vocabulary));
    std::vector<int64_t> offsets;
    std::vector<int32_t> prompts;
    for (int64_t s = 0; s < count; ++s) {
      sequences.push_back(cache.add_sequence());
      offsets.push_back(s * tokens);
      ones.push_back(s);
      lasts.push_back(ids.back());
      prompts.insert(prompts.end(), ids.begin(), ids.end() - 1);
    }
    offsets.push_back(count * tokens);
    ones.push_back(count);
    model.forward_cached(cache, sequences.data(), prompts.data(), offsets.data(), count, logits.mat(), workspace);
  }

  void step() {
    const auto count = static_cast<int64_t>(sequences.size());
    model.forward_cached(cache, sequences.data(), lasts.data(), ones.data(), count, logits.mat(), workspace);
    for (const int64_t sequence : sequences) cache.truncate(sequence, length);
  }
  // The first sequence from its beginning.
  void prompt() {
    const int64_t offsets[] = {0, length};
    cache.truncate(sequences[0], 0);
    model.forward_cached(cache, sequences.data(), ids.data(), offsets, 1, logits.mat(), workspace);
  }
  // The logits must be those of the last row of a pass without cache.
  void check() {
    const int64_t offsets[] = {0, length + 1};
    Matrix all(length + 1, logits.cols, 0);
    model.forward(ids.data(), offsets, 1, all.mat());
    step();
    for (int64_t s = 0; s < logits.rows; ++s) {
      expect_near("decoding step", logits.mat().row_block(s, 1), all.mat().row_block(length, 1), tolerance);
    }
  }

  KVCache::Step next() const { return {sequences.data(), &length, {ones.data(), 1, 1}}; }
  void extend() { cache.extend(sequences.data(), {ones.data(), 1, 1}); }
  void write() {
    const ConstMat row = rows.mat().row_block(0, 1);
    const int64_t width = rows.cols / 3;
    extend();
    for (int64_t l = 0; l < cache.layers(); ++l) {
      cache.write(l, next(), row.col_block(width, width), row.col_block(2 * width, width));
    }
    cache.truncate(sequences[0], length);
  }
  void attend() {
    const int64_t width = rows.cols / 3;
    for (int64_t l = 0; l < cache.layers(); ++l) {
      cache.attend(l, next(), rows.mat().row_block(0, 1).col_block(0, width),
                   rows.mat().row_block(1, 1).col_block(0, width));
    }
  }

  GPT model;
  KVCache cache;
  int64_t length;
  double tolerance;
  Matrix logits, rows;
  std::vector<int32_t> ids, lasts;
  std::vector<int64_t> sequences, ones;
  Workspace workspace;
};

template <class Run>
void add_decoding(const std::string& what, const Model& m, int64_t tokens, const Work& work, Run run,
                  WeightType type = WeightType::kFloat32, int64_t sequences = 1) {
  add("kv_cache/" + what + "/" + m.name + "/context:" + std::to_string(tokens), work, [=]() -> std::function<void()> {
    auto decoding = std::make_shared<Decoding>(m, tokens, type, sequences);
    decoding->check();
    return [=] { run(*decoding); };
  });
}

}  // namespace

void register_benchmarks() {
  for (const Model& m : kModels) {
    const int64_t row = 2 * m.layers * m.width * static_cast<int64_t>(sizeof(float));  // keys and values of a token
    for (const int64_t tokens : kCachedTokens) {
      const int64_t cached = row * tokens;
      add_decoding("append", m, tokens, {.items = 1}, [](Decoding& d) { d.write(); });
      add_decoding("attend", m, tokens, {.bytes = static_cast<double>(cached), .working_set = cached, .items = 1},
                   [](Decoding& d) {
                     d.extend();
                     d.attend();
                     d.cache.truncate(d.sequences[0], d.length);
                   });
      // A step reads every weight and every cached key and value once.
      const double bytes = weights_of(m) * sizeof(float) + static_cast<double>(cached);
      add_decoding("step", m, tokens, {.bytes = bytes, .working_set = static_cast<int64_t>(bytes), .items = 1},
                   [](Decoding& d) { d.step(); });
    }
    for (const WeightType type : {WeightType::kFloat32, WeightType::kBf16}) {
      const bool bf16 = type == WeightType::kBf16;
      const std::string dtype = bf16 ? "bf16" : "float32";
      add_decoding(
          "prompt/" + dtype, m, kPromptTokens, {.items = static_cast<double>(kPromptTokens)},
          [](Decoding& d) { d.prompt(); }, type);
      for (const int64_t sequences : kSequences) {
        const double size = bf16 ? sizeof(uint16_t) : sizeof(float), tokens = kCachedTokens[0];
        const double bytes = size * (weights_of(m) + static_cast<double>(sequences * 2 * m.layers * m.width) * tokens);
        add_decoding(
            "batch/" + dtype + "/" + std::to_string(sequences), m, kCachedTokens[0],
            {.flops = 2.0 * weights_of(m) * static_cast<double>(sequences),
             .bytes = bytes,
             .working_set = static_cast<int64_t>(bytes),
             .items = static_cast<double>(sequences)},
            [](Decoding& d) { d.step(); }, type, sequences);
      }
    }
  }
}

}  // namespace miaobi::bench

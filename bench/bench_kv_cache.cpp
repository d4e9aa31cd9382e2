// SPDX-License-Identifier: MIT
// Decoding by the length of the context: appending to the KV cache, attention over it, and a whole step of a model.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bench.h"
#include "models.h"

namespace miaobi::bench {
namespace {

constexpr int64_t kPositions = 1024;

// A model whose cache holds `tokens` of one sequence; every call works on the next token and takes it back.
struct Decoding {
  Decoding(const Model& m, int64_t tokens)
      : model(config_of(m, kPositions), 1),
        cache(m.layers, m.heads, m.width / m.heads, kPositions),
        sequence(cache.add_sequence()),
        length(tokens),
        logits(1, m.vocabulary, 0),
        rows(2, 3 * m.width, 1) {
    model.pack(WeightType::kFloat32);
    for (int64_t i = 0; i <= tokens; ++i) ids.push_back(static_cast<int32_t>(i * 7919 % m.vocabulary));
    append(0, tokens);
  }

  void append(int64_t begin, int64_t count) {
    const int64_t offsets[] = {0, count};
    model.forward_cached(cache, &sequence, ids.data() + begin, offsets, 1, logits.mat(), workspace);
  }
  void step() {
    append(length, 1);
    cache.truncate(sequence, length);
  }
  // The logits must be those of the last row of a pass without cache.
  void check() {
    const int64_t offsets[] = {0, length + 1};
    Matrix all(length + 1, logits.cols, 0);
    model.forward(ids.data(), offsets, 1, all.mat());
    step();
    expect_near("decoding step", logits.mat(), all.mat().row_block(length, 1), 1e-4);
  }

  KVCache::Step next() const { return {&sequence, &length, {kOne, 1, 1}}; }
  void write() {
    const ConstMat row = rows.mat().row_block(0, 1);
    const int64_t width = rows.cols / 3;
    cache.extend(&sequence, {kOne, 1, 1});
    for (int64_t l = 0; l < cache.layers(); ++l) {
      cache.write(l, next(), row.col_block(width, width), row.col_block(2 * width, width));
    }
    cache.truncate(sequence, length);
  }
  void attend() {
    const int64_t width = rows.cols / 3;
    for (int64_t l = 0; l < cache.layers(); ++l) {
      cache.attend(l, next(), rows.mat().row_block(0, 1).col_block(0, width),
                   rows.mat().row_block(1, 1).col_block(0, width));
    }
  }

  static constexpr int64_t kOne[] = {0, 1};
  GPT model;
  KVCache cache;
  int64_t sequence, length;
  Matrix logits, rows;
  std::vector<int32_t> ids;
  Workspace workspace;
};

template <class Run>
void add_decoding(const char* what, const Model& m, int64_t tokens, const Work& work, Run run) {
  add(std::string("kv_cache/") + what + "/" + m.name + "/context:" + std::to_string(tokens), work,
      [=]() -> std::function<void()> {
        auto decoding = std::make_shared<Decoding>(m, tokens);
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
                     d.cache.extend(&d.sequence, {Decoding::kOne, 1, 1});
                     d.attend();
                     d.cache.truncate(d.sequence, d.length);
                   });
      // A step reads every weight and every cached key and value once.
      const double bytes = weights_of(m) * sizeof(float) + static_cast<double>(cached);
      add_decoding("step", m, tokens, {.bytes = bytes, .working_set = static_cast<int64_t>(bytes), .items = 1},
                   [](Decoding& d) { d.step(); });
    }
  }
}

}  // namespace miaobi::bench

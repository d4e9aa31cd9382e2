// SPDX-License-Identifier: MIT
// From logits to the next token, by how flat they are: the sampler's rules alone and together.
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bench.h"
#include "miaobi/check.h"
#include "miaobi/sampler.h"

namespace miaobi::bench {
namespace {

constexpr int64_t kVocabulary = 8000;
constexpr size_t kRows = 64;  // other logits for each token, as when writing: no branch may be learned by heart

struct Case {
  Case(const SamplingOptions& options, float spread) : sampler(options, 1), logits(kRows, kVocabulary, 1) {
    for (int64_t r = 0; r < logits.rows; ++r) {
      for (int64_t c = 0; c < logits.cols; ++c) logits.mat().row(r)[c] *= spread;
    }
  }
  int32_t next() {
    const auto row = static_cast<int64_t>(step++ % kRows);
    return sampler.sample({logits.mat().row(row), static_cast<size_t>(kVocabulary)}, {});
  }

  Sampler sampler;
  Matrix logits;
  size_t step = 0;
};

}  // namespace

void register_benchmarks() {
  SamplingOptions greedy, plain, top_k, top_p, all;
  greedy.do_sample = false;
  plain.temperature = top_k.temperature = top_p.temperature = all.temperature = 0.8f;
  top_k.top_k = 40;
  top_p.top_p = all.top_p = 0.95f;
  all.min_p = 0.01f;
  all.typical_p = 0.9f;
  all.repetition_penalty = 1.1f;
  all.frequency_penalty = 0.2f;
  all.no_repeat_ngram_size = 3;
  const std::pair<const char*, SamplingOptions> ways[] = {
      {"greedy", greedy}, {"temperature", plain}, {"top_k", top_k}, {"top_p", top_p}, {"all", all}};
  const std::pair<const char*, float> spreads[] = {{"flat", 0.01f}, {"spread", 2.0f}, {"peaked", 8.0f}};
  for (const auto& [way, options] : ways) {
    for (const auto& [name, spread] : spreads) {
      Work work;
      work.items = 1;
      const SamplingOptions chosen = options;
      const float factor = spread;
      add(std::string("sample/") + way + "/" + name, work, [chosen, factor]() -> std::function<void()> {
        auto c = std::make_shared<Case>(chosen, factor);
        const int32_t token = c->next();
        MIAOBI_CHECK(token >= 0 && token < kVocabulary, "expected a token of the vocabulary, got ", token);
        return [c] { c->next(); };
      });
    }
  }
}

}  // namespace miaobi::bench

// SPDX-License-Identifier: MIT
// AdamW over the arena.
#include "miaobi/adamw.h"

#include <algorithm>
#include <cmath>

#include "kernels/dispatch.h"
#include "miaobi/check.h"
#include "miaobi/threads.h"

namespace miaobi {

AdamW::AdamW(ParameterArena& arena, const AdamWOptions& options) : arena_(arena), options_(options) {
  MIAOBI_CHECK(options.lr >= 0, "[adamw] expected lr >= 0, got ", options.lr);
  MIAOBI_CHECK(options.beta1 >= 0 && options.beta1 < 1 && options.beta2 >= 0 && options.beta2 < 1,
               "[adamw] expected betas in [0, 1), got ", options.beta1, " and ", options.beta2);
  MIAOBI_CHECK(options.eps > 0, "[adamw] expected eps > 0, got ", options.eps);
  MIAOBI_CHECK(options.weight_decay >= 0, "[adamw] expected weight_decay >= 0, got ", options.weight_decay);
  constexpr int64_t kSpan = 1 << 15;  // floats: four arrays of it are half a megabyte
  for (const auto& p : arena.parameters()) {
    for (int64_t at = 0; at < p->size; at += kSpan) {
      spans_.push_back({p->offset + at, std::min(kSpan, p->size - at), p->decays(), p.get()});
    }
  }
  partial_.resize(spans_.size());
  m_ = Buffer<float>(arena.size(), true);
  v_ = Buffer<float>(arena.size(), true);
}

void AdamW::freeze(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    const Parameter* owner = arena_.find(name);
    MIAOBI_CHECK(owner != nullptr, "[adamw] expected the names of parameters to freeze, got ", name);
    std::erase_if(spans_, [&](const Span& span) { return span.owner == owner; });
  }
  partial_.resize(spans_.size());
}

void AdamW::set_step_count(int64_t steps) {
  MIAOBI_CHECK(steps >= 0, "[adamw] expected a step count of at least 0, got ", steps);
  steps_ = steps;
}

double AdamW::step(float lr, float max_grad_norm) {
  MIAOBI_CHECK(lr >= 0, "[adamw] expected lr >= 0, got ", lr);
  const KernelTable& table = kernels_in_use();
  const auto spans = static_cast<int64_t>(spans_.size());
  parallel_for(spans, [&](int64_t i) {
    const Span& s = spans_[static_cast<size_t>(i)];
    partial_[static_cast<size_t>(i)] = table.sum_squares(arena_.grads() + s.offset, s.size);
  });
  double sum = 0;
  for (const double x : partial_) sum += x;
  const double norm = std::sqrt(sum);
  if (!std::isfinite(norm)) return norm;

  ++steps_;
  const auto bias = [&](float beta) { return 1.0 - std::pow(static_cast<double>(beta), static_cast<double>(steps_)); };
  AdamWParams params{};
  params.lr = lr;
  params.beta1 = options_.beta1;
  params.beta2 = options_.beta2;
  params.eps = options_.eps;
  params.bias1 = static_cast<float>(1.0 / bias(options_.beta1));
  params.bias2 = static_cast<float>(1.0 / bias(options_.beta2));
  params.grad_scale = max_grad_norm > 0 ? static_cast<float>(std::min(1.0, max_grad_norm / (norm + 1e-6))) : 1.0f;
  parallel_for(spans, [&](int64_t i) {
    const Span& s = spans_[static_cast<size_t>(i)];
    AdamWParams p = params;
    p.weight_decay = s.decays ? options_.weight_decay : 0.0f;
    table.adamw(p, s.size, arena_.grads() + s.offset, arena_.values() + s.offset, m_.data() + s.offset,
                v_.data() + s.offset);
  });
  return norm;
}

}  // namespace miaobi

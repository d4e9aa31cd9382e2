// SPDX-License-Identifier: MIT
// The parameter arena and initialisation.
#include "miaobi/parameters.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "miaobi/check.h"
#include "miaobi/rng.h"
#include "miaobi/threads.h"

namespace miaobi {

Parameter* ParameterArena::add(std::string name, std::vector<int64_t> shape) {
  MIAOBI_CHECK(values_.size() == 0, "[arena] ", name, " was added after the arena was allocated");
  auto p = std::make_unique<Parameter>();
  p->name = std::move(name);
  p->shape = std::move(shape);
  constexpr int64_t kMost = int64_t{1} << 40;
  p->size = 1;
  for (const int64_t n : p->shape) {
    MIAOBI_CHECK(n > 0 && n <= kMost / p->size, "[arena] expected ", p->name, " with 1 to 2^40 elements, got a ",
                 "dimension of ", n, p->size > 1 ? " beside " + std::to_string(p->size) : std::string());
    p->size *= n;
  }
  p->offset = size_;
  constexpr int64_t kLine = kAlignment / static_cast<int64_t>(sizeof(float));
  size_ += (p->size + kLine - 1) / kLine * kLine;
  parameters_.push_back(std::move(p));
  return parameters_.back().get();
}

void ParameterArena::allocate() {
  values_ = Buffer<float>(size_, true);
  grads_ = Buffer<float>(size_, true);
  for (const auto& p : parameters_) {
    p->value = values_.data() + p->offset;
    p->grad = grads_.data() + p->offset;
  }
}

const Parameter* ParameterArena::find(const std::string& name) const {
  const auto it = std::find_if(parameters_.begin(), parameters_.end(), [&](const auto& p) { return p->name == name; });
  return it == parameters_.end() ? nullptr : it->get();
}

int64_t ParameterArena::count() const {
  int64_t n = 0;
  for (const auto& p : parameters_) n += p->size;
  return n;
}

void ParameterArena::zero_grad() {
  constexpr int64_t kSpan = 1 << 18;  // 1 MB to a task
  parallel_ranges(size_, kSpan, [&](int64_t begin, int64_t end) {
    std::memset(grads_.data() + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
  });
}

void init_normal(Parameter& p, float std, uint64_t seed, uint64_t stream) {
  const Rng rng(seed, stream);
  parallel_ranges(p.size, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) p.value[i] = std * rng.normal(static_cast<uint64_t>(i));
  });
}

void init_constant(Parameter& p, float value) { std::fill(p.value, p.value + p.size, value); }

}  // namespace miaobi

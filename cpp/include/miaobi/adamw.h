// SPDX-License-Identifier: MIT
// AdamW with decoupled weight decay and clipping by the global norm.
#pragma once

#include <cstdint>

#include "miaobi/parameters.h"

namespace miaobi {

struct AdamWOptions {
  float lr = 1e-3f;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float eps = 1e-8f;
  float weight_decay = 0.1f;  // matrices only
};

// Loshchilov and Hutter 2019, with PyTorch's order of operations:
//   p -= lr wd p;   m = b1 m + (1-b1) g;   v = b2 v + (1-b2) g^2
//   p -= lr m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps)
// g is the gradient times min(1, max_norm / (norm + 1e-6)), norm over all parameters of the arena that are not frozen.
class AdamW {
 public:
  // The arena must outlive the optimizer. Throws Error for options out of range.
  AdamW(ParameterArena& arena, const AdamWOptions& options);

  const AdamWOptions& options() const { return options_; }
  // One update; gradients stay as they are. max_grad_norm <= 0: no clipping. Gives the norm before
  // clipping. Where it is not finite, parameters, moments and the step count stay as they were.
  double step(float lr, float max_grad_norm);

  // From now on no step changes these parameters, decay included, nor counts their gradients in the norm. Throws Error
  // for a name that the arena does not have.
  void freeze(const std::vector<std::string>& names);

  int64_t step_count() const { return steps_; }
  void set_step_count(int64_t steps);
  float* m() { return m_.data(); }
  float* v() { return v_.data(); }
  int64_t size() const { return arena_.size(); }

 private:
  struct Span {  // a stretch of one parameter; spans are the tasks and the fixed chunks of the norm
    int64_t offset, size;
    bool decays;
    const Parameter* owner;
  };

  ParameterArena& arena_;
  AdamWOptions options_;
  std::vector<Span> spans_;
  std::vector<double> partial_;
  Buffer<float> m_, v_;
  int64_t steps_ = 0;
};

}  // namespace miaobi

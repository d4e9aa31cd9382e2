// SPDX-License-Identifier: MIT
// The arena: all parameters of a model in one buffer, their gradients in a second of the same layout.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "miaobi/mat.h"
#include "miaobi/memory.h"

namespace miaobi {

// A named tensor of the arena. Vectors have one dimension, matrices two.
struct Parameter {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset = 0;  // floats from the arena's start, a multiple of 16 (a cache line)
  int64_t size = 0;
  float* value = nullptr;
  float* grad = nullptr;

  // Decoupled weight decay is for matrices; biases and norms are not pulled towards zero.
  bool decays() const { return shape.size() > 1; }
  Mat value_mat() const { return Mat(value, shape[0], shape[1]); }
  Mat grad_mat() const { return Mat(grad, shape[0], shape[1]); }
};

// Filled once: add() everything, then allocate(). Parameters keep their addresses.
class ParameterArena {
 public:
  Parameter* add(std::string name, std::vector<int64_t> shape);
  // Takes both buffers, zeroed, and sets the pointers. Gaps between tensors stay zero for ever: zero
  // gradients leave them alone.
  void allocate();

  const std::vector<std::unique_ptr<Parameter>>& parameters() const { return parameters_; }
  const Parameter* find(const std::string& name) const;  // null where there is none
  int64_t size() const { return size_; }                 // floats of the arena, gaps included
  int64_t count() const;                                 // elements of all parameters
  float* values() { return values_.data(); }
  float* grads() { return grads_.data(); }
  const float* values() const { return values_.data(); }
  void zero_grad();

 private:
  std::vector<std::unique_ptr<Parameter>> parameters_;
  int64_t size_ = 0;
  Buffer<float> values_, grads_;
};

// value = mean 0 normal of the given standard deviation; element i of stream `stream` of the seed.
void init_normal(Parameter& p, float std, uint64_t seed, uint64_t stream);
void init_constant(Parameter& p, float value);

}  // namespace miaobi

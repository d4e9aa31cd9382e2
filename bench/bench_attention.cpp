// SPDX-License-Identifier: MIT
// Causal attention, forward and with its backward.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "bench.h"
#include "miaobi/attention.h"
#include "shapes.h"

namespace miaobi::bench {
namespace {

struct Operands {
  explicit Operands(const Attention& s)
      : shape{s.heads, s.head_size, true},
        length(s.length),
        qkv(s.batch * s.length, 3 * width(), 1),
        o(qkv.rows, width(), 2),
        d_o(qkv.rows, width(), 3),
        dqkv(qkv.rows, 3 * width(), 4),
        lse(qkv.rows, s.heads, 5) {
    for (int64_t i = 0; i <= s.batch; ++i) offsets.push_back(i * s.length);
  }
  int64_t width() const { return shape.heads * shape.head_size; }
  ConstMat third(int64_t i) const { return qkv.mat().col_block(i * width(), width()); }
  RaggedBatch batch() const { return {offsets.data(), static_cast<int64_t>(offsets.size()) - 1, length}; }

  void forward() { attention_forward(third(0), third(1), third(2), batch(), shape, o.mat(), lse.mat()); }
  void backward() {
    const auto gradient = [&](int64_t i) { return dqkv.mat().col_block(i * width(), width()); };
    attention_backward(d_o.mat(), third(0), third(1), third(2), o.mat(), lse.mat(), batch(), shape, gradient(0),
                       gradient(1), gradient(2));
  }

  // The last row of each head of the first sequence, and the gradient of its query, in double.
  void check() const {
    const int64_t size = shape.head_size, i = length - 1;
    for (int64_t h = 0; h < shape.heads; ++h) {
      const auto dot = [&](const float* a, const float* b) {
        double sum = 0;
        for (int64_t c = 0; c < size; ++c)
          sum += static_cast<double>(a[h * size + c]) * static_cast<double>(b[h * size + c]);
        return sum;
      };
      const double scale = 1 / std::sqrt(static_cast<double>(size));
      std::vector<double> p;
      double total = 0;
      for (int64_t j = 0; j <= i; ++j) p.push_back(std::exp(dot(third(0).row(i), third(1).row(j)) * scale));
      for (const double e : p) total += e;
      const double delta = dot(d_o.mat().row(i), o.mat().row(i));
      for (int64_t c = h * size; c < (h + 1) * size; ++c) {
        double out = 0, dq = 0;
        for (int64_t j = 0; j <= i; ++j) {
          const double probability = p[static_cast<size_t>(j)] / total;
          out += probability * static_cast<double>(third(2)(j, c));
          dq += probability * (dot(d_o.mat().row(i), third(2).row(j)) - delta) * scale *
                static_cast<double>(third(1)(j, c));
        }
        expect_near("attention", o.mat()(i, c), out, 1e-5);
        expect_near("dq of attention", dqkv.mat()(i, c), dq, 1e-5);
      }
    }
  }

  AttentionShape shape;
  int64_t length;
  Matrix qkv, o, d_o, dqkv, lse;
  std::vector<int64_t> offsets;
};

}  // namespace

void register_benchmarks() {
  for (const Attention& s : kAttentions) {
    // Half of T x T is visible; forward has two products of that size, backward five.
    const double product =
        static_cast<double>(s.batch * s.heads * s.length) * static_cast<double>(s.length * s.head_size);
    for (const bool backward : {false, true}) {
      add(std::string("attention/") + (backward ? "forward_backward/" : "forward/") + std::to_string(s.batch) + "x" +
              std::to_string(s.heads) + "x" + std::to_string(s.length) + "x" + std::to_string(s.head_size),
          {.flops = product * (backward ? 7 : 2), .items = static_cast<double>(s.batch * s.length)},
          [=]() -> std::function<void()> {
            auto operands = std::make_shared<Operands>(s);
            operands->forward();
            operands->backward();
            operands->check();
            return [=] {
              operands->forward();
              if (backward) operands->backward();
            };
          });
    }
  }
}

}  // namespace miaobi::bench

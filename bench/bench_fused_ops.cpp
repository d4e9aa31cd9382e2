// SPDX-License-Identifier: MIT
// What comes before a linear layer fused into it, against the same ops one after the other; the fused LM head and the
// optimizer.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench.h"
#include "miaobi/adamw.h"
#include "miaobi/cross_entropy.h"
#include "miaobi/elementwise.h"
#include "miaobi/gemm.h"
#include "miaobi/layer_norm.h"
#include "miaobi/linear.h"
#include "shapes.h"

namespace miaobi::bench {
namespace {

constexpr float kEps = 1e-5f;

// Y = f(X) W + b and its gradients, f LayerNorm or GELU, both ways.
struct Layer {
  Layer(bool is_layer_norm, int64_t rows, int64_t in, int64_t out)
      : layer_norm(is_layer_norm),
        x(rows, in, 1),
        w(in, out, 2),
        b(1, out, 3),
        gamma(1, in, 4),
        beta(1, in, 5),
        dy(rows, out, 6),
        y(rows, out, 7),
        f(rows, in, 8),
        df(rows, in, 9),
        dx(rows, in, 10),
        dw(in, out, 11),
        sums(1, 2 * in + out, 12),
        statistics(2, rows, 13) {}

  LayerNormView view() { return {gamma.data(), beta.data(), statistics.data(), statistics.data() + x.rows}; }
  float* db() { return sums.data() + 2 * x.cols; }

  void fused_forward() {
    if (layer_norm) {
      layer_norm_linear_forward(x.mat(), view(), kEps, w.mat(), b.data(), y.mat());
    } else {
      activation_linear_forward(Activation::kGelu, x.mat(), w.mat(), b.data(), y.mat());
    }
  }
  void fused_backward() {
    if (layer_norm) {
      const Workspace::Mark mark(workspace);
      layer_norm_linear_backward(dy.mat(), x.mat(), view(), w.mat(), dx.mat(), false, sums.data(), sums.data() + x.cols,
                                 dw.mat(), db(), workspace);
    } else {
      activation_linear_backward(Activation::kGelu, dy.mat(), x.mat(), w.mat(), dx.mat(), dw.mat(), db());
    }
  }
  void unfused_forward() {
    if (layer_norm) {
      layer_norm_forward(x.mat(), gamma.data(), beta.data(), kEps, f.mat(), view().mean, view().rstd);
    } else {
      activation_forward(Activation::kGelu, x.data(), x.rows * x.cols, f.data());
    }
    linear_forward(f.mat(), w.mat(), b.data(), y.mat());
  }
  void unfused_backward() {
    linear_backward(dy.mat(), f.mat(), w.mat(), df.mat(), dw.mat(), db());
    if (layer_norm) {
      layer_norm_backward(df.mat(), x.mat(), gamma.data(), view().mean, view().rstd, dx.mat(), false, sums.data(),
                          sums.data() + x.cols);
    } else {
      activation_backward(Activation::kGelu, x.data(), df.data(), x.rows * x.cols, dx.data());
    }
  }

  bool layer_norm;
  Matrix x, w, b, gamma, beta, dy, y, f, df, dx, dw, sums, statistics;
  Workspace workspace;
};

void zero(Matrix& m) { std::fill_n(m.data(), m.buffer.size(), 0.0f); }

// Both ways once, from gradients of zero: y, dx and dw must agree.
void check(Layer& layer) {
  Matrix y(layer.y.rows, layer.y.cols, 0), dx(layer.dx.rows, layer.dx.cols, 0), dw(layer.dw.rows, layer.dw.cols, 0);
  zero(layer.dw);
  layer.unfused_forward();
  layer.unfused_backward();
  std::swap(y.buffer, layer.y.buffer);
  std::swap(dx.buffer, layer.dx.buffer);
  std::swap(dw.buffer, layer.dw.buffer);
  zero(layer.dw);
  layer.fused_forward();
  layer.fused_backward();
  const double relative = 1e-4;  // sums of at most some thousand float32 products of equal size
  expect_near("y", layer.y.mat(), y.mat(), relative);
  expect_near("dx", layer.dx.mat(), dx.mat(), relative);
  expect_near("dw", layer.dw.mat(), dw.mat(), relative);
}

void add_layer(bool layer_norm, int64_t rows, int64_t in, int64_t out) {
  const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out);
  for (const bool backward : {false, true}) {
    for (const bool fused : {true, false}) {
      add(std::string(layer_norm ? "layer_norm_linear/" : "gelu_linear/") +
              (backward ? "forward_backward/" : "forward/") + (fused ? "fused/" : "unfused/") + std::to_string(rows) +
              "x" + std::to_string(in) + "x" + std::to_string(out),
          {.flops = flops * (backward ? 3 : 1)}, [=]() -> std::function<void()> {
            auto layer = std::make_shared<Layer>(layer_norm, rows, in, out);
            check(*layer);
            return [=] {
              fused ? layer->fused_forward() : layer->unfused_forward();
              if (backward) fused ? layer->fused_backward() : layer->unfused_backward();
            };
          });
    }
  }
}

// LM head, softmax, cross-entropy and their backward for the batch of a model.
struct Head {
  explicit Head(const Model& m)
      : x(m.batch * m.context, m.width, 1),
        w(m.vocabulary, m.width, 2),
        dx(x.rows, x.cols, 3),
        dw(w.rows, w.cols, 4),
        losses(1, x.rows, 5) {
    for (int64_t i = 0; i < x.rows; ++i) targets.push_back(static_cast<int32_t>(i * 7919 % m.vocabulary));
  }
  void run() {
    workspace.reset();
    const LmHeadGradients gradients{1.0f / static_cast<float>(x.rows), dx.mat(), dw.mat(), {}};
    lm_head_cross_entropy(x.mat(), w.mat(), targets.data(), losses.data(), &gradients, workspace);
  }
  // The losses from logits of the whole batch.
  void check() const {
    Matrix logits(x.rows, w.rows, 0), expected(1, x.rows, 0);
    gemm(x.rows, w.rows, x.cols, left_operand(x.mat()), right_operand(w.mat(), true), logits.data(), w.rows);
    cross_entropy_forward(logits.mat(), targets.data(), expected.data());
    expect_near("lm_head_cross_entropy", losses.mat(), expected.mat(), 1e-5);
  }

  Matrix x, w, dx, dw, losses;
  std::vector<int32_t> targets;
  Workspace workspace;
};

// One step of AdamW with clipping over `parameters` weights: it reads gradient (twice), weight and both moments, and
// writes the last three.
void add_adamw(const std::string& name, int64_t parameters) {
  const double bytes = 32.0 * static_cast<double>(parameters);
  add("adamw/" + name, {.bytes = bytes, .working_set = 16 * parameters}, [=]() -> std::function<void()> {
    auto arena = std::make_shared<ParameterArena>();
    arena->add("weight", {parameters / 256, 256});
    arena->allocate();
    for (int64_t i = 0; i < arena->size(); ++i) arena->grads()[i] = 1e-3f;
    auto optimizer = std::make_shared<AdamW>(*arena, AdamWOptions{.lr = 0.01f});
    optimizer->step(0.01f, 0);
    // The first step of Adam is lr sign(g), from a weight of zero.
    expect_near("adamw", arena->values()[0], -0.01, 1e-6);
    return [arena, optimizer] { optimizer->step(0.01f, 1.0f); };
  });
}

}  // namespace

void register_benchmarks() {
  for (const Model& m : kModels) {
    for (const int64_t rows : kFusedRows) {
      add_layer(true, rows, m.width, m.inner);
      add_layer(false, rows, m.inner, m.width);
    }
  }
  for (const Model& m : kModels) {
    const double macs = static_cast<double>(m.batch * m.context) * static_cast<double>(m.width * m.vocabulary);
    add(std::string("lm_head_cross_entropy/forward_backward/") + m.name, {.flops = 6 * macs},
        [=]() -> std::function<void()> {
          auto head = std::make_shared<Head>(m);
          head->run();
          head->check();
          return [head] { head->run(); };
        });
  }
  for (const Model& m : kModels) {
    add_adamw(m.name, m.vocabulary * m.width + m.layers * (4 * m.width + 2 * m.inner) * m.width);
  }
}

}  // namespace miaobi::bench

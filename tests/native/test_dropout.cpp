// SPDX-License-Identifier: MIT
// Dropout: the rule of the mask written out again, its statistics, its place in the epilogue of every shape of product,
// and its gradient.
#include <array>
#include <cmath>
#include <set>

#include "miaobi/check.h"
#include "miaobi/dropout.h"
#include "miaobi/layers.h"
#include "miaobi/linear.h"
#include "miaobi/rng.h"
#include "support.h"

namespace miaobi::test {
namespace {

constexpr DropoutStep kStep{0.3f, 7, 41, 0};

// dropout_mask.h, by the class Rng.
float factor(const DropoutMask& mask, int64_t row, int64_t col) {
  const uint64_t r = static_cast<uint64_t>(mask.row + row), c = static_cast<uint64_t>(mask.col + col);
  const uint32_t word = Rng(mask.seed, mask.stream).block((r << 32) + c / 8)[c % 8 / 2];
  return (c % 2 == 0 ? word & 0xffff : word >> 16) < mask.threshold ? 0.0f : mask.scale;
}

TEST_CASE("dropout multiplies by the mask, in place or not, at any width and number of threads") {
  Random random(1);
  const int64_t width = kernels_in_use().width;
  for (const int64_t cols : around({width, 2 * width, 64})) {
    for (const int threads : {1, 3}) {
      set_num_threads(threads);
      const int64_t rows = 700;
      const Guarded x = input(random, rows, cols, kLoose);
      Guarded y = output(rows, cols, kLoose), z = x;
      const DropoutMask mask = kStep.mask(3);
      dropout(mask, x.mat(), y.mat());
      dropout(mask, z.mat(), z.mat());
      bool same = y.guards_intact() && z.guards_intact();
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const float want = x(r, c) * factor(mask, r, c);
          same = same && y(r, c) == want && z(r, c) == want;
        }
      }
      CHECK_MESSAGE(same, cols, " columns, ", threads, " threads");
    }
  }
  Guarded x(2, 3), y(3, 2);
  CHECK_THROWS_AS(dropout(kStep.mask(0), x.mat(), y.mat()), Error);
}

TEST_CASE("the share that is kept and the mean are as they should be, in each place and step alike") {
  const int64_t rows = 400, cols = 250;
  for (const float rate : {0.1f, 0.5f, 0.9f}) {
    for (const int64_t place : {0, 1, 2}) {
      Guarded x(rows, cols);
      x.fill(1.0f);
      dropout(DropoutStep{rate, 5, 9, 0}.mask(place), x.mat(), x.mat());
      double kept = 0, sum = 0;
      std::set<float> values;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          kept += x(r, c) != 0;
          sum += static_cast<double>(x(r, c));
          values.insert(x(r, c));
        }
      }
      const double n = static_cast<double>(rows * cols), p = static_cast<double>(rate);
      const double deviation = std::sqrt(p * (1 - p) / n);
      CHECK(std::abs(kept / n - (1 - p)) < 4 * deviation);
      CHECK(std::abs(sum / n - 1) < 4 * deviation / (1 - p));
      CHECK(values.size() == 2);
      CHECK(static_cast<double>(*values.rbegin()) == doctest::Approx(1 / (1 - p)).epsilon(1e-3));
    }
  }
}

TEST_CASE("masks of other steps, places, seeds and rows are others, and independent") {
  const auto pattern = [](const DropoutStep& step, int64_t place) {
    Guarded x(64, 64);
    x.fill(1.0f);
    dropout(step.mask(place), x.mat(), x.mat());
    std::vector<float> v;
    for (int64_t r = 0; r < 64; ++r) v.insert(v.end(), x.mat().row(r), x.mat().row(r) + 64);
    return v;
  };
  const DropoutStep half{0.5f, 7, 41, 0};
  const std::vector<float> one = pattern(half, 1);
  CHECK(pattern(half, 1) == one);
  for (const std::vector<float>& other :
       {pattern(half, 2), pattern({0.5f, 8, 41, 0}, 1), pattern({0.5f, 7, 42, 0}, 1), pattern({0.5f, 7, 41, 64}, 1)}) {
    int64_t equal = 0;
    for (size_t i = 0; i < one.size(); ++i) equal += one[i] == other[i];
    CHECK(std::abs(static_cast<double>(equal) / 4096 - 0.5) < 4 * 0.5 / 64);
  }
  // The second half of a batch that is computed in parts.
  const std::vector<float> part = pattern({0.5f, 7, 41, 32}, 1);
  CHECK(std::equal(part.begin(), part.begin() + 32 * 64, one.begin() + 32 * 64));
  CHECK_FALSE(DropoutStep{}.mask(1).is_on());
  CHECK_THROWS_AS((DropoutStep{1.0f, 0, 0, 0}.validate()), Error);
  CHECK_THROWS_AS((DropoutStep{-0.1f, 0, 0, 0}.validate()), Error);
  CHECK_THROWS_AS((DropoutStep{std::nanf(""), 0, 0, 0}.validate()), Error);
  CHECK_THROWS_AS((DropoutStep{0.1f, 0, -1, 0}.validate()), Error);
}

TEST_CASE("a product with dropout is the mask of the product without, then the residual") {
  Random random(2);
  for (const bool bf16 : {false, true}) {
    const MatmulPrecisionScope precision(bf16 ? "bf16" : "highest");
    for (const int64_t rows : {1, 5, 30, 200}) {
      for (const int64_t cols : {1, 7, 33, 300}) {
        const int64_t in = 40;
        const Guarded x = input(random, rows, in), w = input(random, in, cols), r = input(random, rows, cols, kLoose);
        const std::vector<float> b = random.vector(cols);
        Guarded plain = output(rows, cols), dropped = output(rows, cols, kLoose);
        const DropoutMask mask = kStep.mask(2);
        activation_linear_forward(Activation::kGelu, x.mat(), w.mat(), b.data(), plain.mat());
        activation_linear_forward(Activation::kGelu, x.mat(), w.mat(), b.data(), dropped.mat(), r.mat(), mask);
        bool same = dropped.guards_intact();
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < cols; ++j) {
            same = same && dropped(i, j) == plain(i, j) * factor(mask, i, j) + r(i, j);
          }
        }
        CHECK_MESSAGE(same, rows, " x ", cols, bf16 ? " bf16" : "");
        if (rows > 1) {
          CHECK_THROWS_AS(activation_linear_forward(Activation::kNone, x.mat(), w.mat(), b.data(), dropped.mat(),
                                                    dropped.mat(), mask),
                          Error);
        }
      }
    }
  }
}

// The layer is linear in W and b but for the mask, so central differences are exact but for rounding.
TEST_CASE("backward meets the mask of forward: gradients by differences") {
  Random random(3);
  const int64_t rows = 9, in = 5, out = 11;
  ParameterArena arena;
  FusedActivationLinear layer(arena, Activation::kGelu, in, out, {});
  arena.allocate();
  layer.initialize_scaled(0.5f, 1, 1);
  layer.set_dropout(kStep.mask(1));
  Guarded x = input(random, rows, in);
  const Guarded residual = input(random, rows, out), weight_of_loss = input(random, rows, out);
  Guarded y = output(rows, out), dx = output(rows, in);
  Workspace workspace;
  const auto loss = [&] {
    layer.forward_add(x.mat(), residual.mat(), y.mat());
    double sum = 0;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < out; ++c) sum += static_cast<double>(y(r, c)) * static_cast<double>(weight_of_loss(r, c));
    }
    return sum;
  };
  const auto slope = [&](float& value) {
    constexpr float kStepSize = 1.0f / 128;
    const float before = value;
    value = before + kStepSize;
    const double high = loss();
    value = before - kStepSize;
    const double low = loss();
    value = before;
    return (high - low) / (2 * static_cast<double>(kStepSize));
  };
  loss();
  layer.backward(weight_of_loss.mat(), dx.mat(), workspace);
  for (const auto& parameter : arena.parameters()) {
    for (int64_t i = 0; i < parameter->size; ++i) {
      CHECK(static_cast<double>(parameter->grad[i]) == doctest::Approx(slope(parameter->value[i])).epsilon(1e-3));
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < in; ++c) {
      CHECK(static_cast<double>(dx(r, c)) == doctest::Approx(slope(x(r, c))).epsilon(2e-3));
    }
  }
  // What writes a text never drops.
  Guarded inferred = output(rows, out);
  layer.infer(x.mat(), residual.mat(), inferred.mat());
  layer.set_dropout({});
  layer.forward_add(x.mat(), residual.mat(), y.mat());
  bool same = true;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < out; ++c) same = same && inferred(r, c) == y(r, c);
  }
  CHECK(same);
}

}  // namespace
}  // namespace miaobi::test

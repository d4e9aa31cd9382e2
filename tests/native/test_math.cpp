// SPDX-License-Identifier: MIT
// exp, tanh and GELU over the whole float range; activations, softmax, sums and embeddings against the oracle.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "miaobi/elementwise.h"
#include "miaobi/embedding.h"
#include "reference/reference.h"
#include "support.h"

namespace miaobi::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kMax = std::numeric_limits<float>::max();

// Every step-th float of both signs, in blocks, then the edges.
void for_each_float(const std::function<void(const std::vector<float>&)>& body) {
  constexpr uint32_t kStep = 1009, kBlock = 4096;
  std::vector<float> block;
  const auto add = [&](float x) {
    if (!std::isnan(x)) block.push_back(x);
    if (block.size() == kBlock) {
      body(block);
      block.clear();
    }
  };
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += kStep) add(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  for (const float x : {0.0f, 1e-45f, 1e-38f, 1e-8f, 1.0f, 10.0f, 87.33654f, 88.72283f, 88.722840f, 88.73f, 89.0f,
                        103.97208f, 103.97209f, 104.0f, 105.0f, 1e6f, kMax, kInf}) {
    add(x);
    add(-x);
  }
  if (!block.empty()) body(block);
}

// The distance of neighbouring floats at x.
double ulp(double x) {
  const double a = std::max(std::fabs(x), static_cast<double>(std::numeric_limits<float>::min()));
  return std::ldexp(1.0, std::ilogb(a) - 23);
}

struct Worst {
  double error = 0;
  float at = 0, got = 0;
  void see(double e, float x, float y) {
    if (e <= error) return;
    error = std::isnan(e) ? static_cast<double>(kInf) : e;
    at = x;
    got = y;
  }
};

TEST_CASE("exp is within 2 ulp over the whole float range, denormal results included") {
  Worst worst;
  for_each_float([&](const std::vector<float>& x) {
    std::vector<float> y(x.size());
    exp_forward(x.data(), static_cast<int64_t>(x.size()), y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = std::exp(static_cast<double>(x[i])), got = y[i];
      // Beyond the largest float, infinity takes the place of the next power of two.
      const double shown = std::isinf(got) ? 0x1p128 : got;
      worst.see(!(got >= 0) ? kInf : std::fabs(shown - std::min(want, 0x1p128)) / ulp(std::min(want, 0x1p127)), x[i],
                y[i]);
    }
  });
  CHECK_MESSAGE(worst.error <= 2.0, "exp(", worst.at, ") = ", worst.got, ": ", worst.error, " ulp");
}

TEST_CASE("exp of the ends and of NaN") {
  const float x[] = {kInf, -kInf, 0.0f, -0.0f, 89.0f, -104.0f, kMax, -kMax, NAN};
  float y[9];
  exp_forward(x, 9, y);
  const float want[] = {kInf, 0.0f, 1.0f, 1.0f, kInf, 0.0f, kInf, 0.0f};
  for (int i = 0; i < 8; ++i) CHECK_MESSAGE(same_bits(y[i], want[i]), "exp(", x[i], ") = ", y[i]);
  CHECK(std::isnan(y[8]));
}

TEST_CASE("exp2 is within 2 ulp from 2^-126 up to 2^127, and 0 and infinity beyond its range") {
  const KernelTable& table = kernels_in_use();
  Worst worst;
  const auto see = [&](const std::vector<float>& x) {
    std::vector<float> y(x.size());
    table.exp2(x.data(), static_cast<int64_t>(x.size()), y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      if (x[i] > 128.0f) continue;  // callers see to that
      const double want = std::exp2(static_cast<double>(x[i])), got = y[i];
      if (x[i] < -126.5f) {
        CHECK_MESSAGE(got == 0.0, "exp2(", x[i], ") = ", got);
      } else if (x[i] > 127.5f) {
        CHECK_MESSAGE(std::isinf(got), "exp2(", x[i], ") = ", got);
      } else if (x[i] >= -126.0f && x[i] < 127.5f) {
        worst.see(!(got >= 0) ? kInf : std::fabs(got - want) / ulp(want), x[i], y[i]);
      }
    }
  };
  for_each_float(see);
  // Half of all floats are below 1e-19, where the result is 1: the range that matters, evenly.
  std::vector<float> even;
  for (int i = -127 * 1024; i <= 128 * 1024; ++i) even.push_back(static_cast<float>(i) / 1024.0f);
  see(even);
  CHECK_MESSAGE(worst.error <= 2.0, "exp2(", worst.at, ") = ", worst.got, ": ", worst.error, " ulp");
  const float x[] = {0.0f, -0.0f, 1.0f, -126.0f, 127.0f, 128.0f, -kInf, -kMax, NAN};
  float y[9];
  table.exp2(x, 9, y);
  const float want[] = {1.0f, 1.0f, 2.0f, 0x1p-126f, 0x1p127f, kInf, 0.0f, 0.0f};
  for (int i = 0; i < 8; ++i) CHECK_MESSAGE(same_bits(y[i], want[i]), "exp2(", x[i], ") = ", y[i]);
  CHECK(std::isnan(y[8]));
}

double gelu_exact(double x) { return reference::gelu(x); }

TEST_CASE("tanh is within 1e-6 and GELU within 1e-6 (1 + |x|) over the whole float range") {
  Worst tanh_worst, gelu_worst;
  for_each_float([&](const std::vector<float>& x) {
    const auto n = static_cast<int64_t>(x.size());
    std::vector<float> t(x.size()), g(x.size());
    tanh_forward(x.data(), n, t.data());
    activation_forward(Activation::kGelu, x.data(), n, g.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double v = x[i];
      tanh_worst.see(std::fabs(t[i] - std::tanh(v)), x[i], t[i]);
      if (std::isinf(v)) continue;
      gelu_worst.see(std::fabs(g[i] - gelu_exact(v)) / std::max(1.0, std::fabs(v)), x[i], g[i]);
    }
  });
  CHECK_MESSAGE(tanh_worst.error <= 1e-6, "tanh(", tanh_worst.at, ") = ", tanh_worst.got);
  CHECK_MESSAGE(gelu_worst.error <= 1e-6, "gelu(", gelu_worst.at, ") = ", gelu_worst.got);
}

TEST_CASE("activations pass NaN on and keep their limits") {
  const float x[] = {NAN, kInf, -1e30f, 1e30f, -5e4f};
  float y[5];
  for (const Activation kind : {Activation::kGelu, Activation::kRelu, Activation::kNone}) {
    activation_forward(kind, x, 5, y);
    CHECK(std::isnan(y[0]));
    CHECK(y[1] == kInf);
    CHECK(y[3] == 1e30f);
    if (kind != Activation::kNone) CHECK(y[2] == 0.0f);
    if (kind != Activation::kNone) CHECK(y[4] == 0.0f);
  }
  tanh_forward(x, 5, y);
  CHECK(std::isnan(y[0]));
  CHECK(y[1] == 1.0f);
  CHECK(y[2] == -1.0f);
}

TEST_CASE("the derivative of GELU stays finite and settles at 0 and 1") {
  Random random(40);
  std::vector<float> x = random.vector(1000, -12.0f, 12.0f), ones(x.size(), 1.0f), dx(x.size());
  for (const float far : {20.0f, 1e3f, 1e12f, 1e18f, 1e30f, kMax}) {
    x.insert(x.end(), {far, -far});
    ones.insert(ones.end(), {1.0f, 1.0f});
    dx.resize(x.size());
  }
  activation_backward(Activation::kGelu, x.data(), ones.data(), static_cast<int64_t>(x.size()), dx.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = std::fabs(x[i]) > 15 ? (x[i] > 0 ? 1.0 : 0.0) : reference::gelu_grad(static_cast<double>(x[i]));
    CHECK_MESSAGE(std::fabs(dx[i] - want) <= 2e-6 * std::max(1.0, std::fabs(static_cast<double>(x[i]))), "gelu'(", x[i],
                  ") = ", dx[i], ", want ", want);
  }
}

TEST_CASE("activations forward and backward around the vector width, unaligned and in place") {
  Random random(41);
  for (const Activation kind : {Activation::kGelu, Activation::kRelu, Activation::kNone}) {
    for (const int64_t n : around({kernels_in_use().width, 4 * kernels_in_use().width})) {
      Guarded x(1, n, kLoose), dy = input(random, 1, n, kLoose), y = output(1, n, kLoose), dx = output(1, n, kLoose);
      x.fill(random, -4.0f, 4.0f);
      activation_forward(kind, x.mat().data, n, y.mat().data);
      activation_backward(kind, x.mat().data, dy.mat().data, n, dx.mat().data);
      expect_close("activation", y.mat(), reference::activation_forward(kind, tracked(x)));
      expect_close("activation'", dx.mat(), reference::activation_backward(kind, tracked(dy), tracked(x)));
      CHECK(y.guards_intact());
      CHECK(dx.guards_intact());
      Guarded same = x;
      activation_backward(kind, x.mat().data, dy.mat().data, n, dy.mat().data);
      activation_forward(kind, same.mat().data, n, same.mat().data);
      expect_same_bits("in place", same.mat(), y.mat());
      expect_same_bits("in place'", dy.mat(), dx.mat());
    }
  }
  activation_forward(Activation::kGelu, nullptr, 0, nullptr);
  activation_backward(Activation::kGelu, nullptr, nullptr, 0, nullptr);
}

TEST_CASE("softmax rows around the vector width, far from zero, with -inf and with NaN") {
  Random random(42);
  for (const int64_t n : around({kernels_in_use().width, 3 * kernels_in_use().width})) {
    Guarded x = input(random, 5, n, kLoose), y = output(5, n, kLoose);
    for (int64_t c = 0; c < n; ++c) {
      x(1, c) = 10.0f * x(1, c) + 1e4f;
      x(2, c) = 40.0f * x(2, c) - 1e4f;
    }
    softmax_forward(x.mat(), y.mat());
    expect_close("softmax", y.mat(), reference::softmax_forward(tracked(x)));
    CHECK(y.guards_intact());
    x(3, n - 1) = NAN;
    x(4, 0) = -kInf;
    softmax_forward(x.mat(), x.mat());
    CHECK(x.guards_intact());
    expect_same_bits("in place", x.mat().row_block(0, 3), y.mat().row_block(0, 3));
    for (int64_t c = 0; c < n; ++c) CHECK(std::isnan(x(3, c)));
    if (n > 1) CHECK(x(4, 0) == 0.0f);
  }
  softmax_forward(Mat(nullptr, 0, 4), Mat(nullptr, 0, 4));
}

TEST_CASE("sums: add_to and column_sums_add around the vector width") {
  Random random(43);
  for (const int64_t n : around({kernels_in_use().width, 64})) {
    Guarded x = input(random, 9, n, kLoose), sums = output(1, n, kLoose);
    sums.fill(random);
    Matrix<Tracked> want = tracked(sums);
    for (int64_t r = 0; r < 9; ++r) {
      for (int64_t c = 0; c < n; ++c) want(0, c) += Tracked(x(r, c));
    }
    Guarded by_row = sums;
    column_sums_add(x.mat(), sums.mat().data);
    expect_close("column_sums_add", sums.mat(), want);
    CHECK(sums.guards_intact());
    // In ascending order of rows: the bits of adding row after row.
    for (int64_t r = 0; r < 9; ++r) add_to(x.mat().row(r), n, by_row.mat().data);
    CHECK(by_row.guards_intact());
    expect_same_bits("add_to", by_row.mat(), sums.mat());
    column_sums_add(Mat(nullptr, 0, n), sums.mat().data);
    expect_same_bits("no rows", sums.mat(), by_row.mat());
  }
}

TEST_CASE("embedding forward and backward, repeated ids accumulating onto what is there") {
  Random random(44);
  const int64_t vocab = 11, positions = 7, rows = 40;
  for (const int64_t cols : around({kernels_in_use().width, 64})) {
    const std::vector<int32_t> ids = random.indices(rows, vocab), at = random.indices(rows, positions);
    Guarded wte = input(random, vocab, cols, kLoose), wpe = input(random, positions, cols, kLoose);
    Guarded x = output(rows, cols, kLoose), dx = input(random, rows, cols, kLoose);
    embedding_forward(ids.data(), at.data(), wte.mat(), wpe.mat(), x.mat());
    expect_close("embedding", x.mat(), reference::embedding_forward(ids, at, tracked(wte), tracked(wpe)), 1.0);
    CHECK(x.guards_intact());
    Guarded dwte = output(vocab, cols, kLoose), dwpe = output(positions, cols, kLoose);
    dwte.fill(random);
    dwpe.fill(random);
    Matrix<Tracked> want_dwte = tracked(dwte), want_dwpe = tracked(dwpe);
    reference::embedding_backward(ids, at, tracked(dx), want_dwte, want_dwpe);
    embedding_backward(ids.data(), at.data(), dx.mat(), dwte.mat(), dwpe.mat());
    expect_close("dwte", dwte.mat(), want_dwte, 1.0);
    expect_close("dwpe", dwpe.mat(), want_dwpe, 1.0);
    CHECK(dwte.guards_intact());
    CHECK(dwpe.guards_intact());
  }
}

TEST_CASE("elementwise ops, softmax, sums and embeddings give the same bits for every number of threads") {
  Random random(45);
  const int64_t rows = 300, cols = 150, n = rows * cols;
  const std::vector<int32_t> ids = random.indices(rows, 20), at = random.indices(rows, 10);
  Guarded x = input(random, rows, cols), dy = input(random, rows, cols), wte = input(random, 20, cols),
          wpe = input(random, 10, cols);
  expect_same_for_all_thread_counts("elementwise", [&] {
    Guarded y = output(rows, cols), dx = output(rows, cols), p = output(rows, cols), e = output(rows, cols),
            sums = output(1, cols), dwte = output(20, cols), dwpe = output(10, cols);
    activation_forward(Activation::kGelu, x.mat().data, n, y.mat().data);
    activation_backward(Activation::kGelu, x.mat().data, dy.mat().data, n, dx.mat().data);
    softmax_forward(x.mat(), p.mat());
    column_sums_add(x.mat(), sums.mat().data);
    add_to(x.mat().data, n, y.mat().data);
    embedding_forward(ids.data(), at.data(), wte.mat(), wpe.mat(), e.mat());
    embedding_backward(ids.data(), at.data(), dy.mat(), dwte.mat(), dwpe.mat());
    return Results().add(y).add(dx).add(p).add(sums).add(e).add(dwte).add(dwpe);
  });
}

}  // namespace
}  // namespace miaobi::test

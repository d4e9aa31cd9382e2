// SPDX-License-Identifier: MIT
// LayerNorm against the oracle, and the faults that its gradient must not have.
#include <cmath>
#include <string>
#include <vector>

#include "miaobi/check.h"
#include "miaobi/layer_norm.h"
#include "reference/reference.h"
#include "support.h"

namespace miaobi::test {
namespace {

constexpr float kEps = 1e-5f;

struct Data {
  int64_t rows, cols;
  Guarded x, dy;
  std::vector<float> gamma, beta;
  std::vector<float> mean, rstd;

  Data(int64_t rows_, int64_t cols_, Layout layout, Random& random)
      : rows(rows_),
        cols(cols_),
        x(input(random, rows, cols, layout)),
        dy(input(random, rows, cols, layout)),
        gamma(random.vector(cols, 0.5f, 2.0f)),
        beta(random.vector(cols)),
        mean(static_cast<size_t>(rows)),
        rstd(static_cast<size_t>(rows)) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) x(r, c) = 3.0f * x(r, c) + static_cast<float>(r % 5);
    }
  }

  void forward(Mat y) { layer_norm_forward(x.mat(), gamma.data(), beta.data(), kEps, y, mean.data(), rstd.data()); }
  void backward(Mat dx, bool accumulate, std::vector<float>& dgamma, std::vector<float>& dbeta) {
    layer_norm_backward(dy.mat(), x.mat(), gamma.data(), mean.data(), rstd.data(), dx, accumulate, dgamma.data(),
                        dbeta.data());
  }
  reference::LayerNorm<Tracked> oracle() const {
    return reference::layer_norm_forward(tracked(x), tracked(gamma), tracked(beta), Tracked(kEps));
  }
};

TEST_CASE("LayerNorm forward and every gradient agree with the oracle around the vector width") {
  Random random(20);
  for (const int64_t cols : around({kernels_in_use().width, 2 * kernels_in_use().width, 200})) {
    for (const Layout layout : {kTight, kLoose}) {
      const std::string name = "layer_norm " + std::to_string(cols);
      Data data(7, cols, layout, random);
      Guarded y = output(data.rows, cols, layout), dx = output(data.rows, cols, layout);
      data.forward(y.mat());
      const auto want = data.oracle();
      expect_close(name + " y", y.mat(), want.y);
      expect_close(name + " mean", data.mean, want.mean);
      expect_close(name + " rstd", data.rstd, want.rstd);
      CHECK(y.guards_intact());

      for (const bool accumulate : {false, true}) {
        dx.fill(random);
        const Matrix<Tracked> before = tracked(dx);
        std::vector<float> dgamma = random.vector(cols), dbeta = random.vector(cols);
        Vector<Tracked> want_dgamma = tracked(dgamma), want_dbeta = tracked(dbeta);
        Matrix<Tracked> want_dx = reference::layer_norm_backward(tracked(data.dy), tracked(data.x), tracked(data.gamma),
                                                                 want.mean, want.rstd, want_dgamma, want_dbeta);
        if (accumulate) {
          for (size_t i = 0; i < want_dx.data.size(); ++i) want_dx.data[i] += before.data[i];
        }
        data.backward(dx.mat(), accumulate, dgamma, dbeta);
        expect_close(name + " dx", dx.mat(), want_dx);
        expect_close(name + " dgamma", dgamma, want_dgamma);
        expect_close(name + " dbeta", dbeta, want_dbeta);
        CHECK(dx.guards_intact());
      }
    }
  }
}

TEST_CASE("fault: a LayerNorm input gradient without its mean and variance terms") {
  Random random(21);
  const int64_t rows = 4, cols = 50;
  Data data(rows, cols, kTight, random);
  Guarded y = output(rows, cols), dx = output(rows, cols);
  std::vector<float> dgamma(static_cast<size_t>(cols)), dbeta(static_cast<size_t>(cols));
  data.forward(y.mat());
  data.backward(dx.mat(), false, dgamma, dbeta);
  // y does not change when a row is shifted or scaled (eps aside), so dx is orthogonal to both directions; the
  // truncated gradient dy gamma rstd is to neither.
  for (int64_t r = 0; r < rows; ++r) {
    double shift = 0, scale = 0, truncated_shift = 0, truncated_scale = 0, size = 0;
    for (int64_t c = 0; c < cols; ++c) {
      const size_t i = static_cast<size_t>(r), j = static_cast<size_t>(c);
      const double centred = static_cast<double>(data.x(r, c)) - data.mean[i];
      const double truncated = static_cast<double>(data.dy(r, c)) * data.gamma[j] * data.rstd[i];
      shift += dx(r, c);
      scale += dx(r, c) * centred;
      truncated_shift += truncated;
      truncated_scale += truncated * centred;
      size += std::fabs(truncated) * (1 + std::fabs(centred));
    }
    CHECK(std::fabs(shift) <= 1e-5 * size);
    CHECK(std::fabs(scale) <= 1e-5 * size);
    CHECK(std::fabs(truncated_shift) > 1e-3 * size);
    CHECK(std::fabs(truncated_scale) > 1e-3 * size);
  }
}

TEST_CASE("fault: dgamma computed from the scaled value instead of xhat") {
  Random random(22);
  const int64_t rows = 6, cols = 33;
  Data data(rows, cols, kTight, random);
  Guarded y = output(rows, cols), dx = output(rows, cols);
  std::vector<float> dgamma(static_cast<size_t>(cols)), dbeta(static_cast<size_t>(cols));
  data.forward(y.mat());
  data.backward(dx.mat(), false, dgamma, dbeta);
  for (int64_t c = 0; c < cols; ++c) {
    const size_t j = static_cast<size_t>(c);
    double from_xhat = 0, from_y = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const double xhat = (static_cast<double>(y(r, c)) - data.beta[j]) / data.gamma[j];
      from_xhat += data.dy(r, c) * xhat;
      from_y += static_cast<double>(data.dy(r, c)) * y(r, c);
    }
    CHECK(std::fabs(dgamma[j] - from_xhat) <= 1e-5);
    CHECK(std::fabs(from_y - from_xhat) > 1e-4);
  }
}

TEST_CASE("LayerNorm in place: y is x, dx is dy") {
  Random random(23);
  Data data(5, 37, kLoose, random);
  Guarded y = output(5, 37), dx = output(5, 37);
  std::vector<float> dgamma(37), dbeta(37), dgamma2(37), dbeta2(37);
  data.forward(y.mat());
  data.backward(dx.mat(), false, dgamma, dbeta);
  Data same = data;
  same.backward(same.dy.mat(), false, dgamma2, dbeta2);
  expect_same_bits("dx", same.dy.mat(), dx.mat());
  expect_same_bits("dgamma", dgamma2, dgamma);
  expect_same_bits("dbeta", dbeta2, dbeta);
  same.forward(same.x.mat());
  expect_same_bits("y", same.x.mat(), y.mat());
  CHECK(same.x.guards_intact());
}

TEST_CASE("LayerNorm leaves out dgamma and dbeta where they are null, and does nothing with no rows") {
  Random random(24);
  Data data(5, 20, kTight, random);
  Guarded y = output(5, 20), dx = output(5, 20), dx2 = output(5, 20);
  std::vector<float> dgamma(20), dbeta(20);
  data.forward(y.mat());
  data.backward(dx.mat(), false, dgamma, dbeta);
  layer_norm_backward(data.dy.mat(), data.x.mat(), data.gamma.data(), data.mean.data(), data.rstd.data(), dx2.mat(),
                      false, nullptr, nullptr);
  expect_same_bits("dx", dx2.mat(), dx.mat());

  Data empty(0, 20, kTight, random);
  Guarded nothing = output(0, 20);
  std::vector<float> before = dgamma;
  empty.forward(nothing.mat());
  empty.backward(nothing.mat(), false, dgamma, dbeta);
  expect_same_bits("dgamma", dgamma, before);
  layer_norm_forward(Mat(nullptr, 0, 20), data.gamma.data(), data.beta.data(), kEps, Mat(nullptr, 0, 20), nullptr,
                     nullptr);
}

TEST_CASE("LayerNorm of rows far from zero, of constant rows and of NaN") {
  const int64_t cols = 67;
  const std::vector<float> gamma(static_cast<size_t>(cols), 1.0f), beta(static_cast<size_t>(cols), 0.5f);
  std::vector<float> mean(3), rstd(3);
  Guarded x(3, cols), y = output(3, cols);
  Random random(25);
  for (int64_t c = 0; c < cols; ++c) {
    x(0, c) = 1000.0f + random.uniform();  // the variance must come from differences, not from squares
    x(1, c) = 7.0f;
    x(2, c) = c == 66 ? NAN : 1.0f;
  }
  layer_norm_forward(x.mat(), gamma.data(), beta.data(), kEps, y.mat(), mean.data(), rstd.data());
  const auto want =
      reference::layer_norm_forward(tracked(x.mat().row_block(0, 2)), tracked(gamma), tracked(beta), Tracked(kEps));
  expect_close("far", y.mat().row_block(0, 2), want.y);
  CHECK(std::fabs(rstd[0] - want.rstd[0].value) < 1e-3 * want.rstd[0].value);
  for (int64_t c = 0; c < cols; ++c) {
    CHECK(y(1, c) == 0.5f);
    CHECK(std::isnan(y(2, c)));
  }
}

TEST_CASE("LayerNorm gives the same bits for every number of threads, and a row alone those of the batch") {
  Random random(26);
  Data data(300, 211, kLoose, random);
  Guarded y = output(300, 211), dx = output(300, 211);
  expect_same_for_all_thread_counts("layer_norm", [&] {
    std::vector<float> dgamma(211, 0.25f), dbeta(211, -0.5f);
    data.forward(y.mat());
    data.backward(dx.mat(), false, dgamma, dbeta);
    return Results().add(y).add(dx).add(dgamma).add(dbeta).add(data.mean).add(data.rstd);
  });
  for (const int64_t r : {int64_t{0}, int64_t{77}, int64_t{299}}) {
    Guarded one = output(1, 211), done = output(1, 211);
    float mean, rstd;
    layer_norm_forward(data.x.mat().row_block(r, 1), data.gamma.data(), data.beta.data(), kEps, one.mat(), &mean,
                       &rstd);
    layer_norm_backward(data.dy.mat().row_block(r, 1), data.x.mat().row_block(r, 1), data.gamma.data(), &mean, &rstd,
                        done.mat(), false, nullptr, nullptr);
    expect_same_bits("row y", one.mat(), y.mat().row_block(r, 1));
    expect_same_bits("row dx", done.mat(), dx.mat().row_block(r, 1));
  }
}

TEST_CASE("LayerNorm refuses shapes that do not fit") {
  Random random(27);
  Data data(3, 8, kTight, random);
  Guarded narrow = output(3, 7);
  CHECK_THROWS_AS(data.forward(narrow.mat()), Error);
  CHECK_THROWS_AS(layer_norm_forward(Mat(nullptr, 3, 0), nullptr, nullptr, kEps, Mat(nullptr, 3, 0), data.mean.data(),
                                     data.rstd.data()),
                  Error);
}

}  // namespace
}  // namespace miaobi::test

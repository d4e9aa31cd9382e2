// SPDX-License-Identifier: MIT
// The oracle checked in double: every gradient against central differences, a few values by hand, and the tracked
// scalar's bound against float32.
#include <cmath>
#include <string>

#include "reference/composed.h"
#include "support.h"

namespace miaobi::test {
namespace {

using reference::AttentionLayout;

Matrix<double> random_matrix(Random& random, int64_t rows, int64_t cols, float low = -1.0f, float high = 1.0f) {
  Matrix<double> m(rows, cols);
  for (double& e : m.data) e = random.uniform(low, high);
  return m;
}
Vector<double> random_vector(Random& random, int64_t n, float low = -1.0f, float high = 1.0f) {
  return random_matrix(random, 1, n, low, high).data;
}

// The scalar whose gradient is dy: sum y dy.
double dot(const Matrix<double>& y, const Matrix<double>& dy) {
  double sum = 0;
  for (size_t i = 0; i < y.data.size(); ++i) sum += y.data[i] * dy.data[i];
  return sum;
}

// loss() reads `x` anew each time. Central differences with step h are off by about h^2 and 1e-16 / h.
template <class Loss>
void expect_gradient(const std::string& label, Vector<double>& x, const Vector<double>& gradient, Loss&& loss) {
  constexpr double h = 1e-5;
  REQUIRE(x.size() == gradient.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double before = x[i];
    x[i] = before + h;
    const double above = loss();
    x[i] = before - h;
    const double below = loss();
    x[i] = before;
    const double want = (above - below) / (2 * h);
    CHECK_MESSAGE(std::fabs(gradient[i] - want) <= 1e-7 * (1 + std::fabs(want)), label, " [", i, "]: ", gradient[i],
                  ", central differences say ", want);
  }
}

TEST_CASE("oracle: linear") {
  Random random(80);
  auto x = random_matrix(random, 4, 3), w = random_matrix(random, 3, 5), dy = random_matrix(random, 4, 5);
  auto b = random_vector(random, 5);
  Matrix<double> dw(3, 5);
  Vector<double> db(5);
  auto dx = reference::linear_backward(dy, x, w, dw, db);
  const auto loss = [&] { return dot(reference::linear_forward(x, w, b), dy); };
  expect_gradient("dx", x.data, dx.data, loss);
  expect_gradient("dw", w.data, dw.data, loss);
  expect_gradient("db", b, db, loss);
}

TEST_CASE("oracle: activations") {
  Random random(81);
  for (const Activation kind : {Activation::kGelu, Activation::kRelu, Activation::kNone}) {
    auto x = random_matrix(random, 5, 6, -4.0f, 4.0f), dy = random_matrix(random, 5, 6);
    const auto dx = reference::activation_backward(kind, dy, x);
    expect_gradient("dx", x.data, dx.data, [&] { return dot(reference::activation_forward(kind, x), dy); });
  }
  CHECK(reference::gelu(1.0) == doctest::Approx(0.8411919906082768).epsilon(1e-14));
  CHECK(reference::gelu(-2.0) == doctest::Approx(-0.04540230591222498).epsilon(1e-12));
}

TEST_CASE("oracle: LayerNorm") {
  Random random(82);
  auto x = random_matrix(random, 4, 7, -2.0f, 3.0f), dy = random_matrix(random, 4, 7);
  auto gamma = random_vector(random, 7, 0.5f, 2.0f), beta = random_vector(random, 7);
  // A large eps, so that its place in the formula matters.
  const double eps = 0.1;
  const auto forward = reference::layer_norm_forward(x, gamma, beta, eps);
  Vector<double> dgamma(7), dbeta(7);
  const auto dx = reference::layer_norm_backward(dy, x, gamma, forward.mean, forward.rstd, dgamma, dbeta);
  const auto loss = [&] { return dot(reference::layer_norm_forward(x, gamma, beta, eps).y, dy); };
  expect_gradient("dx", x.data, dx.data, loss);
  expect_gradient("dgamma", gamma, dgamma, loss);
  expect_gradient("dbeta", beta, dbeta, loss);
  // By hand: mean 2, biased variance 2/3.
  Matrix<double> row(1, 3);
  row.data = {1, 2, 3};
  const auto y = reference::layer_norm_forward(row, Vector<double>(3, 2.0), Vector<double>(3, 1.0), 0.0).y;
  CHECK(y(0, 0) == doctest::Approx(1 - 2 / std::sqrt(2.0 / 3)));
  CHECK(y(0, 1) == doctest::Approx(1.0));
}

TEST_CASE("oracle: cross-entropy and the LM head, targets of -100 left out") {
  Random random(83);
  auto x = random_matrix(random, 5, 3), w = random_matrix(random, 6, 3), logits = random_matrix(random, 5, 6);
  const Vector<int32_t> targets{2, kIgnoreIndex, 0, 5, kIgnoreIndex};
  const double scale = 0.4;
  const auto total = [&](const Vector<double>& losses) {
    double sum = 0;
    for (const double l : losses) sum += l;
    return scale * sum;
  };
  const auto dlogits = reference::cross_entropy_backward(logits, targets, scale);
  expect_gradient("dlogits", logits.data, dlogits.data,
                  [&] { return total(reference::cross_entropy_forward(logits, targets)); });
  Matrix<double> dw(6, 3);
  const auto dx = reference::lm_head_cross_entropy_backward(x, w, targets, scale, dw);
  const auto loss = [&] { return total(reference::lm_head_cross_entropy_forward(x, w, targets)); };
  expect_gradient("dx", x.data, dx.data, loss);
  expect_gradient("dw", w.data, dw.data, loss);
  // Equal logits of four classes cost log 4 each.
  const auto even = reference::cross_entropy_forward(Matrix<double>(2, 4), {3, kIgnoreIndex});
  CHECK(even[0] == doctest::Approx(std::log(4.0)));
  CHECK(even[1] == 0.0);
}

TEST_CASE("oracle: attention of a ragged batch, causal and not") {
  Random random(84);
  for (const bool causal : {true, false}) {
    const AttentionLayout layout{{0, 4, 4, 5, 8}, 2, causal};
    auto q = random_matrix(random, 8, 6), k = random_matrix(random, 8, 6), v = random_matrix(random, 8, 6);
    const auto d_o = random_matrix(random, 8, 6);
    const auto gradients = reference::attention_backward(d_o, q, k, v, layout);
    const auto loss = [&] { return dot(reference::attention_forward(q, k, v, layout).o, d_o); };
    expect_gradient("dq", q.data, gradients.dq.data, loss);
    expect_gradient("dk", k.data, gradients.dk.data, loss);
    expect_gradient("dv", v.data, gradients.dv.data, loss);
    // Equal keys: the mean of the values in sight.
    const auto mean = reference::attention_forward(q, Matrix<double>(8, 6), v, layout).o;
    const double want = causal ? (v(0, 1) + v(1, 1)) / 2 : (v(0, 1) + v(1, 1) + v(2, 1) + v(3, 1)) / 4;
    CHECK(mean(1, 1) == doctest::Approx(want));
    CHECK(mean(4, 2) == doctest::Approx(v(4, 2)));
  }
}

TEST_CASE("oracle: embedding") {
  Random random(85);
  const Vector<int32_t> ids{1, 3, 1, 0}, positions{0, 1, 2, 0};
  auto wte = random_matrix(random, 4, 3), wpe = random_matrix(random, 3, 3), dx = random_matrix(random, 4, 3);
  Matrix<double> dwte(4, 3), dwpe(3, 3);
  reference::embedding_backward(ids, positions, dx, dwte, dwpe);
  const auto loss = [&] { return dot(reference::embedding_forward(ids, positions, wte, wpe), dx); };
  expect_gradient("dwte", wte.data, dwte.data, loss);
  expect_gradient("dwpe", wpe.data, dwpe.data, loss);
}

TEST_CASE("oracle: the fused compositions") {
  Random random(86);
  auto x = random_matrix(random, 4, 5, -2.0f, 2.0f), w = random_matrix(random, 5, 3), dy = random_matrix(random, 4, 3);
  auto gamma = random_vector(random, 5, 0.5f, 2.0f), beta = random_vector(random, 5), b = random_vector(random, 3);
  {
    Matrix<double> dw(5, 3);
    Vector<double> db(3), dgamma(5), dbeta(5);
    const auto dx = reference::layer_norm_linear_backward(dy, x, gamma, beta, 0.01, w, dgamma, dbeta, dw, db);
    const auto loss = [&] { return dot(reference::layer_norm_linear_forward(x, gamma, beta, 0.01, w, b), dy); };
    expect_gradient("dx", x.data, dx.data, loss);
    expect_gradient("dgamma", gamma, dgamma, loss);
    expect_gradient("dbeta", beta, dbeta, loss);
    expect_gradient("dw", w.data, dw.data, loss);
    expect_gradient("db", b, db, loss);
  }
  for (const Activation kind : {Activation::kGelu, Activation::kRelu}) {
    Matrix<double> dw(5, 3);
    Vector<double> db(3);
    const auto dx = reference::activation_linear_backward(kind, dy, x, w, dw, db);
    const auto loss = [&] { return dot(reference::activation_linear_forward(kind, x, w, b), dy); };
    expect_gradient("dx", x.data, dx.data, loss);
    expect_gradient("dw", w.data, dw.data, loss);
    expect_gradient("db", b, db, loss);
  }
}

TEST_CASE("oracle: AdamW and clipping by hand") {
  // The first step moves every weight by lr against the sign of its gradient, after the decay.
  Vector<double> value{1.0, -2.0, 3.0}, m(3), v(3);
  const reference::AdamW<double> options{0.01, 0.9, 0.95, 0.0, 0.1};
  reference::adamw_step(options, 1, {0.5, -0.25, 1e-3}, value, m, v);
  CHECK(value[0] == doctest::Approx(1.0 * 0.999 - 0.01));
  CHECK(value[1] == doctest::Approx(-2.0 * 0.999 + 0.01));
  CHECK(value[2] == doctest::Approx(3.0 * 0.999 - 0.01));
  CHECK(m[0] == doctest::Approx(0.05));
  CHECK(v[0] == doctest::Approx(0.0125));
  const double squares = reference::sum_squares(Vector<double>{3.0, 4.0});
  CHECK(squares == 25.0);
  CHECK(reference::clip_factor(squares, 1.0) == doctest::Approx(0.2));
  CHECK(reference::clip_factor(squares, 6.0) == 1.0);
}

TEST_CASE("a comparison fails for NaN on either side, and outside the bound") {
  CHECK(is_close(1.0f, Tracked(1.0)));
  CHECK(is_close(1.0f, Tracked(1.5, 0.2)));
  CHECK_FALSE(is_close(1.0f, Tracked(1.5, 0.1)));
  CHECK_FALSE(is_close(NAN, Tracked(1.0, 10.0)));
  CHECK_FALSE(is_close(1.0f, Tracked(NAN)));
  CHECK_FALSE(is_close(1.0f, Tracked(1.0, NAN)));
  CHECK_FALSE(is_close(INFINITY, Tracked(1.0, 10.0)));
  Guarded g = output(2, 3, kLoose);
  CHECK(g.guards_intact());
  g.mat().data[3] = 0.0f;  // between the rows
  CHECK_FALSE(g.guards_intact());
  Guarded behind = output(2, 3);
  behind.mat().data[6] = 0.0f;
  CHECK_FALSE(behind.guards_intact());
}

TEST_CASE("the tracked scalar bounds the same formulas in float32") {
  Random random(87);
  const auto x = random.vector(60 * 40), w = random.vector(40 * 20), gamma = random.vector(40), b = random.vector(20);
  const ConstMat xm(x.data(), 60, 40), wm(w.data(), 40, 20);
  const auto want = reference::layer_norm_linear_forward(tracked(xm), tracked(gamma), tracked(gamma), Tracked(1e-5),
                                                         tracked(wm), tracked(b));
  const auto got = reference::layer_norm_linear_forward(as<float>(xm), gamma, gamma, 1e-5f, as<float>(wm), b);
  expect_close("layer_norm_linear", ConstMat(got.data.data(), 60, 20), want, 1.0);
  // And not by much more than it takes: the bound is of the size of K u times what is summed.
  for (const Tracked& t : want.data) CHECK(t.error < 1e-4);
}

}  // namespace
}  // namespace miaobi::test

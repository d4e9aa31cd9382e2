// SPDX-License-Identifier: MIT
// Linear layers and their fusions: forward and every gradient against the oracle's composition, equality with the
// unfused ops, accumulation, and a bias gradient of the right size.
#include <algorithm>
#include <string>
#include <vector>

#include "miaobi/check.h"
#include "miaobi/elementwise.h"
#include "miaobi/gemm.h"
#include "miaobi/layer_norm.h"
#include "miaobi/linear.h"
#include "reference/composed.h"
#include "support.h"

namespace miaobi::test {
namespace {

constexpr float kEps = 1e-5f;

// What stands in front of the product.
enum class Front { kNothing, kLayerNorm, kGelu, kRelu };
constexpr Front kFronts[] = {Front::kNothing, Front::kLayerNorm, Front::kGelu, Front::kRelu};

Activation activation_of(Front f) {
  return f == Front::kGelu ? Activation::kGelu : f == Front::kRelu ? Activation::kRelu : Activation::kNone;
}
std::string name_of(Front f) {
  const char* names[] = {"linear", "layer_norm_linear", "gelu_linear", "relu_linear"};
  return names[static_cast<int>(f)];
}

struct Gradients {
  Guarded dx, dw;
  std::vector<float> db, dgamma, dbeta;
  Gradients(int64_t rows, int64_t in, int64_t out, Layout layout)
      : dx(output(rows, in, layout)),
        dw(output(in, out, layout)),
        db(static_cast<size_t>(out)),
        dgamma(static_cast<size_t>(in)),
        dbeta(static_cast<size_t>(in)) {}
  Results results() const { return Results().add(dx).add(dw).add(db).add(dgamma).add(dbeta); }
};

struct Layer {
  Front front;
  int64_t rows, in, out;
  Guarded x, w, dy, residual;
  std::vector<float> b, gamma, beta, mean, rstd;
  Workspace workspace;

  Layer(Front front_, int64_t rows_, int64_t in_, int64_t out_, Layout layout, Random& random)
      : front(front_),
        rows(rows_),
        in(in_),
        out(out_),
        x(rows, in, layout),
        w(input(random, in, out, layout)),
        dy(input(random, rows, out, layout)),
        residual(input(random, rows, out, layout)),
        b(random.vector(out)),
        gamma(random.vector(in, 0.5f, 2.0f)),
        beta(random.vector(in)),
        mean(static_cast<size_t>(rows)),
        rstd(static_cast<size_t>(rows)) {
    x.fill(random, -3.0f, 3.0f);
  }

  LayerNormView view() { return {gamma.data(), beta.data(), mean.data(), rstd.data()}; }
  void forward(Mat y) {
    if (front == Front::kLayerNorm) {
      layer_norm_linear_forward(x.mat(), view(), kEps, w.mat(), b.data(), y);
    } else {
      activation_linear_forward(activation_of(front), x.mat(), w.mat(), b.data(), y);
    }
  }
  void backward(Gradients& g, bool accumulate_dx = false) {
    if (front == Front::kLayerNorm) {
      layer_norm_linear_backward(dy.mat(), x.mat(), view(), w.mat(), g.dx.mat(), accumulate_dx, g.dgamma.data(),
                                 g.dbeta.data(), g.dw.mat(), g.db.data(), workspace);
    } else {
      activation_linear_backward(activation_of(front), dy.mat(), x.mat(), w.mat(), g.dx.mat(), g.dw.mat(), g.db.data());
    }
  }

  Matrix<Tracked> oracle_forward() const {
    if (front == Front::kLayerNorm) {
      return reference::layer_norm_linear_forward(tracked(x), tracked(gamma), tracked(beta), Tracked(kEps), tracked(w),
                                                  tracked(b));
    }
    return reference::activation_linear_forward(activation_of(front), tracked(x), tracked(w), tracked(b));
  }
};

struct OracleGradients {
  Matrix<Tracked> dx, dw;
  Vector<Tracked> db, dgamma, dbeta;
  // Continues from what the engine's gradients hold now.
  OracleGradients(const Layer& l, const Gradients& before, bool accumulate_dx)
      : dw(tracked(before.dw)), db(tracked(before.db)), dgamma(tracked(before.dgamma)), dbeta(tracked(before.dbeta)) {
    if (l.front == Front::kLayerNorm) {
      dx = reference::layer_norm_linear_backward(tracked(l.dy), tracked(l.x), tracked(l.gamma), tracked(l.beta),
                                                 Tracked(kEps), tracked(l.w), dgamma, dbeta, dw, db);
    } else {
      dx = reference::activation_linear_backward(activation_of(l.front), tracked(l.dy), tracked(l.x), tracked(l.w), dw,
                                                 db);
    }
    const Matrix<Tracked> dx_before = tracked(before.dx);
    for (size_t i = 0; accumulate_dx && i < dx.data.size(); ++i) dx.data[i] += dx_before.data[i];
  }
};

void expect_gradients(const std::string& name, const Gradients& got, const OracleGradients& want) {
  expect_close(name + " dx", got.dx.mat(), want.dx);
  expect_close(name + " dw", got.dw.mat(), want.dw);
  expect_close(name + " db", got.db, want.db);
  expect_close(name + " dgamma", got.dgamma, want.dgamma);
  expect_close(name + " dbeta", got.dbeta, want.dbeta);
  CHECK(got.dx.guards_intact());
  CHECK(got.dw.guards_intact());
}

TEST_CASE("linear layers: forward, every gradient and accumulation agree with the composed oracle") {
  const KernelTable& table = kernels_in_use();
  Random random(30);
  for (const Front front : kFronts) {
    for (const int64_t rows : {int64_t{1}, int64_t{table.mr} + 1, int64_t{2 * table.mr} + 3}) {
      for (const int64_t in : around({table.width, table.nr})) {
        const int64_t out = in % 2 == 0 ? table.nr + 1 : table.width - 1;
        const Layout layout = in % 2 == 0 ? kLoose : kTight;
        const std::string name = name_of(front) + " " + std::to_string(rows) + "x" + std::to_string(in);
        Layer layer(front, rows, in, out, layout, random);
        Guarded y = output(rows, out, layout);
        layer.forward(y.mat());
        expect_close(name + " y", y.mat(), layer.oracle_forward());
        CHECK(y.guards_intact());

        Gradients g(rows, in, out, layout);
        OracleGradients want(layer, g, false);
        layer.backward(g);
        expect_gradients(name, g, want);

        // Again, onto what is there: parameters always accumulate, dx where it is asked to.
        const bool accumulate_dx = front == Front::kLayerNorm;
        OracleGradients twice(layer, g, accumulate_dx);
        layer.backward(g, accumulate_dx);
        expect_gradients(name + " twice", g, twice);
      }
    }
  }
}

TEST_CASE("linear layers deeper than a block of K, on every backend") {
  Random random(31);
  const std::string before = get_backend();
  for (const std::string& backend : available_backends()) {
    set_backend(backend);
    for (const Front front : kFronts) {
      for (const int64_t rows : {int64_t{0}, int64_t{9}, int64_t{70}}) {
        const std::string name = backend + " " + name_of(front) + " " + std::to_string(rows);
        Layer layer(front, rows, 530, 20, kLoose, random);
        Guarded y = output(rows, 20, kLoose);
        layer.forward(y.mat());
        expect_close(name + " y", y.mat(), layer.oracle_forward());
        CHECK(y.guards_intact());
        Gradients g(rows, 530, 20, kLoose);
        g.dw.fill(random);
        const OracleGradients want(layer, g, false);
        layer.backward(g);
        expect_gradients(name, g, want);
      }
    }
  }
  set_backend(before);
}

TEST_CASE("a fused layer has the bits of the unfused ops in sequence") {
  Random random(32);
  for (const Front front : {Front::kLayerNorm, Front::kGelu, Front::kRelu}) {
    const int64_t rows = 21, in = 45, out = 37;
    Layer layer(front, rows, in, out, kLoose, random);
    Guarded y = output(rows, out);
    Gradients fused(rows, in, out, kTight), plain(rows, in, out, kTight);
    layer.forward(y.mat());
    layer.backward(fused);

    Guarded f = output(rows, in), df = output(rows, in), y2 = output(rows, out);
    for (int64_t r = 0; r < rows; ++r) std::copy_n(&layer.x(r, 0), in, &f(r, 0));
    std::vector<float> mean(static_cast<size_t>(rows)), rstd(static_cast<size_t>(rows));
    if (front == Front::kLayerNorm) {
      layer_norm_forward(f.mat(), layer.gamma.data(), layer.beta.data(), kEps, f.mat(), mean.data(), rstd.data());
    } else {
      activation_forward(activation_of(front), f.mat().data, rows * in, f.mat().data);
    }
    linear_forward(f.mat(), layer.w.mat(), layer.b.data(), y2.mat());
    expect_same_bits(name_of(front) + " y", y.mat(), y2.mat());

    linear_backward(layer.dy.mat(), f.mat(), layer.w.mat(), df.mat(), plain.dw.mat(), plain.db.data());
    if (front == Front::kLayerNorm) {
      layer_norm_backward(df.mat(), layer.x.mat(), layer.gamma.data(), mean.data(), rstd.data(), plain.dx.mat(), false,
                          plain.dgamma.data(), plain.dbeta.data());
    } else {
      Guarded x(rows, in);
      for (int64_t r = 0; r < rows; ++r) std::copy_n(&layer.x(r, 0), in, &x(r, 0));
      activation_backward(activation_of(front), x.mat().data, df.mat().data, rows * in, plain.dx.mat().data);
    }
    expect_same_bits(name_of(front) + " gradients", fused.results().floats(), plain.results().floats());
  }
}

TEST_CASE("fault: a bias gradient that is too small by T") {
  // The loss is the sum of y over T tokens: each bias is in T of its terms, so its gradient is T, not 1.
  const int64_t T = 48, in = 5, out = 19;
  Random random(33);
  for (const Front front : kFronts) {
    Layer layer(front, T, in, out, kTight, random);
    layer.dy.fill(1.0f);
    Guarded y = output(T, out);
    Gradients g(T, in, out, kTight);
    layer.forward(y.mat());
    layer.backward(g);
    for (const float db : g.db) CHECK(db == static_cast<float>(T));
  }
}

TEST_CASE("a residual is added, also where it is the output's own memory") {
  Random random(34);
  for (const Front front : {Front::kNothing, Front::kGelu}) {
    for (const int64_t rows : {int64_t{1}, int64_t{30}}) {
      Layer layer(front, rows, 300, 21, kTight, random);
      Matrix<Tracked> want = layer.oracle_forward();
      const Matrix<Tracked> r = tracked(layer.residual);
      for (size_t i = 0; i < want.data.size(); ++i) want.data[i] += r.data[i];
      Guarded y = output(rows, 21, kLoose);
      activation_linear_forward(activation_of(front), layer.x.mat(), layer.w.mat(), layer.b.data(), y.mat(),
                                layer.residual.mat());
      expect_close("residual apart", y.mat(), want);
      for (int64_t i = 0; i < rows; ++i) std::copy_n(&layer.residual(i, 0), 21, &y(i, 0));
      activation_linear_forward(activation_of(front), layer.x.mat(), layer.w.mat(), layer.b.data(), y.mat(), y.mat());
      expect_close("residual in place", y.mat(), want);
      CHECK(y.guards_intact());
    }
  }
}

TEST_CASE("linear layers leave out what is null") {
  Random random(35);
  const int64_t rows = 12, in = 19, out = 23;
  for (const Front front : kFronts) {
    Layer layer(front, rows, in, out, kTight, random);
    Guarded y = output(rows, out);
    layer.forward(y.mat());
    Gradients all(rows, in, out, kTight), some(rows, in, out, kTight);
    layer.backward(all);
    if (front == Front::kLayerNorm) {
      layer_norm_linear_backward(layer.dy.mat(), layer.x.mat(), layer.view(), layer.w.mat(), Mat{}, false,
                                 some.dgamma.data(), some.dbeta.data(), Mat{}, nullptr, layer.workspace);
      expect_same_bits("dgamma alone", some.dgamma, all.dgamma);
      layer_norm_linear_backward(layer.dy.mat(), layer.x.mat(), layer.view(), layer.w.mat(), some.dx.mat(), false,
                                 nullptr, nullptr, some.dw.mat(), nullptr, layer.workspace);
    } else {
      const Activation kind = activation_of(front);
      activation_linear_backward(kind, layer.dy.mat(), layer.x.mat(), layer.w.mat(), Mat{}, some.dw.mat(), nullptr);
      activation_linear_backward(kind, layer.dy.mat(), layer.x.mat(), layer.w.mat(), some.dx.mat(), Mat{}, nullptr);
    }
    expect_same_bits("dx", some.dx.mat(), all.dx.mat());
    expect_same_bits("dw", some.dw.mat(), all.dw.mat());
    // Without a bias the output is lower by it.
    Matrix<Tracked> want = layer.oracle_forward();
    const Vector<Tracked> b = tracked(layer.b);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < out; ++c) want(r, c) = want(r, c) - b[static_cast<size_t>(c)];
    }
    if (front == Front::kLayerNorm) {
      layer_norm_linear_forward(layer.x.mat(), layer.view(), kEps, layer.w.mat(), nullptr, y.mat());
    } else {
      activation_linear_forward(activation_of(front), layer.x.mat(), layer.w.mat(), nullptr, y.mat());
    }
    expect_close("no bias", y.mat(), want);
  }
}

TEST_CASE("linear layers of no rows leave accumulated gradients alone") {
  Random random(36);
  for (const Front front : kFronts) {
    Layer layer(front, 0, 9, 17, kTight, random);
    Guarded y = output(0, 17);
    Gradients g(0, 9, 17, kTight);
    g.dw.fill(random);
    g.db = random.vector(17);
    g.dgamma = random.vector(9);
    const std::vector<float> before = g.results().floats();
    layer.forward(y.mat());
    layer.backward(g);
    expect_same_bits(name_of(front), g.results().floats(), before);
  }
}

TEST_CASE("linear layers give the same bits for every number of threads, and a row alone those of the batch") {
  Random random(37);
  const int64_t rows = 150, in = 140, out = 130;
  for (const Front front : kFronts) {
    Layer layer(front, rows, in, out, kTight, random);
    Guarded y = output(rows, out);
    Gradients last(rows, in, out, kTight);
    expect_same_for_all_thread_counts(name_of(front), [&] {
      Gradients g(rows, in, out, kTight);
      g.dw.fill(0.5f);
      layer.forward(y.mat());
      layer.backward(g);
      last = g;
      return g.results().add(y);
    });
    for (const int64_t r : {int64_t{0}, int64_t{101}}) {
      Layer alone(front, 1, in, out, kTight, random);
      alone.w = layer.w;
      alone.b = layer.b;
      alone.gamma = layer.gamma;
      alone.beta = layer.beta;
      std::copy_n(&layer.x(r, 0), in, &alone.x(0, 0));
      std::copy_n(&layer.dy(r, 0), out, &alone.dy(0, 0));
      Guarded row = output(1, out);
      Gradients g(1, in, out, kTight);
      alone.forward(row.mat());
      alone.backward(g);
      expect_same_bits(name_of(front) + " row y", row.mat(), y.mat().row_block(r, 1));
      expect_same_bits(name_of(front) + " row dx", g.dx.mat(), last.dx.mat().row_block(r, 1));
    }
  }
}

TEST_CASE("linear layers refuse shapes that do not fit") {
  Random random(38);
  Layer layer(Front::kNothing, 3, 4, 5, kTight, random);
  Guarded y = output(3, 5), wrong = output(3, 4), tall = output(4, 5);
  CHECK_THROWS_AS(linear_forward(layer.dy.mat(), layer.w.mat(), nullptr, y.mat()), Error);
  CHECK_THROWS_AS(linear_forward(layer.x.mat(), layer.w.mat(), nullptr, wrong.mat()), Error);
  CHECK_THROWS_AS(linear_forward(layer.x.mat(), layer.w.mat(), nullptr, y.mat(), wrong.mat()), Error);
  CHECK_THROWS_AS(linear_backward(tall.mat(), layer.x.mat(), layer.w.mat(), wrong.mat(), Mat{}, nullptr), Error);
  CHECK_THROWS_AS(linear_backward(layer.dy.mat(), layer.x.mat(), layer.w.mat(), y.mat(), Mat{}, nullptr), Error);
  CHECK_THROWS_AS(linear_backward(layer.dy.mat(), layer.x.mat(), layer.w.mat(), Mat{}, y.mat(), nullptr), Error);
}

}  // namespace
}  // namespace miaobi::test

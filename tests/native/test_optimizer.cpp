// SPDX-License-Identifier: MIT
// The optimizer's kernels against the oracle.
#include <cmath>
#include <string>
#include <vector>

#include "reference/composed.h"
#include "support.h"

namespace miaobi::test {
namespace {

TEST_CASE("AdamW: three steps around the vector width agree with the oracle") {
  const KernelTable& table = kernels_in_use();
  Random random(70);
  for (const int64_t n : around({table.width, 4 * table.width})) {
    for (const float weight_decay : {0.0f, 0.1f}) {
      const double lr = 0.01, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, clip = 0.37;
      std::vector<float> m(static_cast<size_t>(n)), v(m.size());
      std::vector<double> power{1, 1};
      Guarded value = output(1, n, kLoose);
      value.fill(random);
      Vector<Tracked> want = tracked(value).data, want_m = tracked(m), want_v = tracked(v);
      const reference::AdamW<Tracked> options{Tracked(lr), Tracked(beta1), Tracked(beta2), Tracked(eps),
                                              Tracked(weight_decay)};
      for (int64_t step = 1; step <= 3; ++step) {
        const std::vector<float> g = random.vector(n);
        power[0] *= beta1;
        power[1] *= beta2;
        AdamWParams params{};
        params.lr = static_cast<float>(lr);
        params.beta1 = static_cast<float>(beta1);
        params.beta2 = static_cast<float>(beta2);
        params.eps = static_cast<float>(eps);
        params.weight_decay = weight_decay;
        params.bias1 = static_cast<float>(1 / (1 - power[0]));
        params.bias2 = static_cast<float>(1 / (1 - power[1]));
        params.grad_scale = static_cast<float>(clip);
        table.adamw(params, n, g.data(), value.mat().data, m.data(), v.data());
        Vector<Tracked> clipped = tracked(g);
        for (Tracked& e : clipped) e = e * Tracked(clip);
        reference::adamw_step(options, step, clipped, want, want_m, want_v);
      }
      // 1 - 0.95 in float32 is off by 2^-24 / 0.05 of itself, and so are the moments.
      const double slack = 10 * kSlack;
      expect_close("value", Results().add(value).floats(), want, slack);
      expect_close("m", m, want_m, slack);
      expect_close("v", v, want_v, slack);
      CHECK(value.guards_intact());
    }
  }
}

TEST_CASE("AdamW without a gradient leaves zeros alone and decays weights") {
  const KernelTable& table = kernels_in_use();
  std::vector<float> value{0.0f, 1.0f, -2.0f}, m(3), v(3);
  const std::vector<float> g(3);
  AdamWParams params{0.1f, 0.9f, 0.95f, 1e-8f, 0.5f, 10.0f, 20.0f, 1.0f};
  table.adamw(params, 3, g.data(), value.data(), m.data(), v.data());
  CHECK(value[0] == 0.0f);
  CHECK(value[1] == doctest::Approx(0.95f));
  CHECK(value[2] == doctest::Approx(-1.9f));
}

TEST_CASE("the sum of squares keeps its digits over a million elements") {
  const KernelTable& table = kernels_in_use();
  Random random(71);
  for (const int64_t n :
       {int64_t{0}, int64_t{1}, int64_t{table.width} + 1, int64_t{1023}, int64_t{1025}, int64_t{1} << 20}) {
    const std::vector<float> x = random.vector(n, 0.9f, 1.1f);
    double want = 0;
    for (const float e : x) want += static_cast<double>(e) * e;
    CHECK(std::fabs(table.sum_squares(x.data(), n) - want) <= 1e-5 * want);
  }
  // Squares that add up exactly over a run of 1024, but over a million of them only in double.
  const std::vector<float> equal(size_t{1} << 20, 1.00390625f);
  CHECK(table.sum_squares(equal.data(), int64_t{1} << 20) == 0x1p20 * 1.00390625 * 1.00390625);
  const std::vector<float> bad{1.0f, NAN, 2.0f};
  CHECK(std::isnan(table.sum_squares(bad.data(), 3)));
}

}  // namespace
}  // namespace miaobi::test

// SPDX-License-Identifier: MIT
// Cross-entropy and the chunked LM head against the oracle.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "miaobi/check.h"
#include "miaobi/cross_entropy.h"
#include "reference/composed.h"
#include "support.h"

namespace miaobi::test {
namespace {

constexpr float kInf = INFINITY;

// Random targets, every fourth of which is not scored; the ends of the vocabulary among them.
std::vector<int32_t> some_targets(Random& random, int64_t rows, int64_t vocab) {
  std::vector<int32_t> targets = random.indices(rows, vocab);
  for (size_t i = 0; i < targets.size(); i += 4) targets[i] = kIgnoreIndex;
  if (rows > 2) {
    targets[1] = 0;
    targets[2] = static_cast<int32_t>(vocab - 1);
  }
  return targets;
}

TEST_CASE("cross_entropy around the vector width agrees with the oracle; targets of -100 are not scored") {
  Random random(50);
  for (const int64_t vocab : around({kernels_in_use().width, 2 * kernels_in_use().width, 300})) {
    Guarded logits = input(random, 9, vocab, kLoose);
    for (int64_t c = 0; c < vocab; ++c) {
      logits(5, c) = 20.0f * logits(5, c) + 1e4f;
      logits(6, c) = 20.0f * logits(6, c) - 1e4f;
    }
    const std::vector<int32_t> targets = some_targets(random, 9, vocab);
    std::vector<float> losses(9, NAN);
    cross_entropy_forward(logits.mat(), targets.data(), losses.data());
    expect_close("losses", losses, reference::cross_entropy_forward(tracked(logits), targets));
    CHECK(losses[0] == 0.0f);
    CHECK(losses[4] == 0.0f);
  }
  cross_entropy_forward(Mat(nullptr, 0, 10), nullptr, nullptr);
}

TEST_CASE("cross_entropy of impossible, certain and undefined logits") {
  Guarded logits(4, 19);
  logits(0, 3) = -kInf;
  logits(1, 7) = 200.0f;
  logits(2, 18) = NAN;
  for (int64_t c = 0; c < 19; ++c) logits(3, c) = -kInf;
  logits(3, 4) = 2.0f;
  const std::vector<int32_t> targets{3, 7, 0, 4};
  std::vector<float> losses(4);
  cross_entropy_forward(logits.mat(), targets.data(), losses.data());
  CHECK(losses[0] == kInf);
  CHECK(losses[1] == 0.0f);
  CHECK(std::isnan(losses[2]));
  CHECK(losses[3] == 0.0f);
}

struct Head {
  Guarded x, w, dx, dw;
  std::vector<int32_t> targets;
  std::vector<float> losses;
  Workspace workspace;

  Head(int64_t rows, int64_t cols, int64_t vocab, Layout layout, Random& random)
      : x(input(random, rows, cols, layout)),
        w(input(random, vocab, cols, layout)),
        dx(output(rows, cols, layout)),
        dw(output(vocab, cols, layout)),
        targets(some_targets(random, rows, vocab)),
        losses(static_cast<size_t>(rows), NAN) {
    dw.fill(random);
  }
  void run(float scale) {
    const LmHeadGradients gradients{scale, dx.mat(), dw.mat()};
    lm_head_cross_entropy(x.mat(), w.mat(), targets.data(), losses.data(), &gradients, workspace);
  }
};

TEST_CASE("the LM head: losses, dx and accumulated dw agree with the composed oracle") {
  Random random(51);
  for (const int64_t vocab : around({kernels_in_use().nr, 300})) {
    for (const int64_t rows : {int64_t{1}, int64_t{13}}) {
      Head head(rows, 20, vocab, kLoose, random);
      const float scale = 1.0f / 3.0f;
      Matrix<Tracked> want_dw = tracked(head.dw);
      const Matrix<Tracked> want_dx = reference::lm_head_cross_entropy_backward(tracked(head.x), tracked(head.w),
                                                                                head.targets, Tracked(scale), want_dw);
      head.run(scale);
      const std::string name = "lm_head " + std::to_string(vocab);
      expect_close(name + " losses", head.losses,
                   reference::lm_head_cross_entropy_forward(tracked(head.x), tracked(head.w), head.targets));
      expect_close(name + " dx", head.dx.mat(), want_dx);
      expect_close(name + " dw", head.dw.mat(), want_dw);
      CHECK(head.dx.guards_intact());
      CHECK(head.dw.guards_intact());

      std::vector<float> alone(head.losses.size());
      lm_head_cross_entropy(head.x.mat(), head.w.mat(), head.targets.data(), alone.data(), nullptr, head.workspace);
      expect_same_bits(name + " losses without gradients", alone, head.losses);
    }
  }
}

TEST_CASE("the LM head in several chunks has the bits of its parts, and never holds all logits") {
  // 2^21 logits are held at a time: 90000 columns leave 32 rows to a chunk.
  Random random(52);
  const int64_t rows = 75, cols = 6, vocab = 90000;
  Head whole(rows, cols, vocab, kTight, random);
  std::vector<float> losses(static_cast<size_t>(rows));
  Guarded dx = output(rows, cols), dw = whole.dw;
  const int64_t held = allocated_bytes();
  whole.run(0.25f);
  CHECK(allocated_bytes() - held < rows * vocab * 4 * 3 / 4);
  int64_t begin = 0;
  for (const int64_t end : {int64_t{1}, int64_t{20}, int64_t{60}, rows}) {
    const LmHeadGradients gradients{0.25f, dx.mat().row_block(begin, end - begin), dw.mat()};
    lm_head_cross_entropy(whole.x.mat().row_block(begin, end - begin), whole.w.mat(), whole.targets.data() + begin,
                          losses.data() + begin, &gradients, whole.workspace);
    begin = end;
  }
  expect_same_bits("losses", losses, whole.losses);
  expect_same_bits("dx", dx.mat(), whole.dx.mat());
  expect_same_bits("dw", dw.mat(), whole.dw.mat());
}

TEST_CASE("the LM head with nothing scored gives zero losses and gradients") {
  Random random(53);
  Head head(5, 8, 30, kTight, random);
  std::fill(head.targets.begin(), head.targets.end(), kIgnoreIndex);
  const Guarded before = head.dw;
  head.run(1.0f);
  for (const float loss : head.losses) CHECK(loss == 0.0f);
  for (int64_t r = 0; r < 5; ++r) {
    for (int64_t c = 0; c < 8; ++c) CHECK(head.dx(r, c) == 0.0f);
  }
  expect_same_bits("dw", head.dw.mat(), before.mat());

  Head empty(0, 8, 30, kTight, random);
  empty.run(1.0f);
}

TEST_CASE("cross-entropy refuses targets outside the vocabulary and names them") {
  Random random(54);
  for (const int32_t wrong : {30, -1, -99, -101, 2147483647}) {
    Head head(5, 8, 30, kTight, random);
    head.targets[3] = wrong;
    const Guarded before = head.dw;
    CHECK_THROWS_AS(head.run(1.0f), Error);
    expect_same_bits("dw", head.dw.mat(), before.mat());
    try {
      const Guarded logits(5, 30);
      cross_entropy_forward(logits.mat(), head.targets.data(), head.losses.data());
      FAIL("not refused");
    } catch (const Error& e) {
      CHECK(std::string(e.what()).find(std::to_string(wrong)) != std::string::npos);
    }
  }
}

TEST_CASE("cross-entropy gives the same bits for every number of threads, and a row alone those of the batch") {
  Random random(55);
  Head head(200, 40, 700, kTight, random);
  const Guarded start = head.dw;
  expect_same_for_all_thread_counts("lm_head", [&] {
    head.dw = start;
    head.run(0.125f);
    std::vector<float> losses(200);
    lm_head_cross_entropy(head.x.mat(), head.w.mat(), head.targets.data(), losses.data(), nullptr, head.workspace);
    return Results().add(head.losses).add(head.dx).add(head.dw).add(losses);
  });
  for (const int64_t r : {int64_t{1}, int64_t{122}}) {
    float loss;
    Guarded dx = output(1, 40), dw = output(700, 40);
    const LmHeadGradients gradients{0.125f, dx.mat(), dw.mat()};
    lm_head_cross_entropy(head.x.mat().row_block(r, 1), head.w.mat(), head.targets.data() + r, &loss, &gradients,
                          head.workspace);
    CHECK(same_bits(loss, head.losses[static_cast<size_t>(r)]));
    expect_same_bits("row dx", dx.mat(), head.dx.mat().row_block(r, 1));
  }
}

}  // namespace
}  // namespace miaobi::test

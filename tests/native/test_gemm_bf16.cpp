// SPDX-License-Identifier: MIT
// Matrix products of bfloat16: operands that are rounded, weights that are kept rounded, and the rounding itself.
#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "gemm_case.h"
#include "miaobi/check.h"

namespace miaobi::test {
namespace {

float rounded_to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return std::bit_cast<float>((bits | 0x00400000u) & 0xffff0000u);
  const uint32_t below = bits & 0xffff0000u, rest = bits & 0xffffu;
  const bool up = rest > 0x8000u || (rest == 0x8000u && (below & 0x10000u) != 0);
  return std::bit_cast<float>(below + (up ? 0x10000u : 0u));
}

TEST_CASE("bf16 precision is float32 on operands rounded to bfloat16, ties to even") {
  const Settings settings;
  Random random(10);
  for (const int64_t m : {int64_t{2}, int64_t{33}}) {
    for_each_mode([&](bool transpose_a, bool transpose_b, bool accumulate) {
      const Case t{m, 45, 70, transpose_a, transpose_b, accumulate, kLoose, true};
      Run run(t, random, false);
      // Halfway cases, both ways.
      run.a(0, 0) = std::bit_cast<float>(0x3f808000u);
      run.b(0, 0) = std::bit_cast<float>(0x3f818000u);
      set_matmul_precision("bf16");
      run.compute(t);
      Run plain = run;
      for (Guarded* g : {&plain.a, &plain.b}) {
        for (int64_t r = 0; r < g->mat().rows; ++r) {
          for (int64_t c = 0; c < g->mat().cols; ++c) (*g)(r, c) = rounded_to_bf16((*g)(r, c));
        }
      }
      set_matmul_precision("highest");
      plain.compute(t);
      if (kernels_in_use().gemm_pairs_block != nullptr) return;  // sums in another order
      expect_same_bits("bf16 " + t.name(), run.c.mat(), plain.c.mat());

      set_matmul_precision("bf16");
      const PackedMatrix packed(right_operand(run.b.mat(), transpose_b), t.n, t.k);
      Guarded c = output(t.m, t.n);
      for (int64_t i = 0; i < t.m; ++i) std::copy_n(&run.before(i, 0), t.n, &c(i, 0));
      gemm(t.m, left_operand(run.a.mat(), transpose_a), packed, c.mat().data, t.n, accumulate, run.epilogue(t));
      expect_same_bits("packed bf16 " + t.name(), c.mat(), plain.c.mat());
    });
  }
}

TEST_CASE("a matrix packed as bfloat16 gives the bits of the rounded matrix") {
  Random random(13);
  const KernelTable& table = kernels_in_use();
  for (const int64_t m : {int64_t{1}, int64_t{2}, int64_t{table.mr} + 1, 5 * int64_t{table.mr}}) {
    for (const bool transpose : {false, true}) {
      const Case t{m, 9 * table.nr + 3, 300, false, transpose, true, kLoose, true};
      Run run(t, random, false);
      const PackedMatrix packed(right_operand(run.b.mat(), transpose), t.n, t.k, WeightType::kBf16);
      for (int64_t r = 0; r < run.b.mat().rows; ++r) {
        for (int64_t i = 0; i < run.b.mat().cols; ++i) run.b(r, i) = rounded_to_bf16(run.b(r, i));
      }
      run.compute(t);
      Guarded c = output(t.m, t.n, kLoose);
      for (int64_t i = 0; i < m; ++i) std::copy_n(&run.before(i, 0), t.n, &c(i, 0));
      gemm(m, left_operand(run.a.mat()), packed, c.mat().data, c.mat().stride, true, run.epilogue(t));
      CHECK(c.guards_intact());
      expect_same_bits("packed as bf16 " + t.name(), c.mat(), run.c.mat());
    }
  }
}

TEST_CASE("bf16 products are within the bound of the rounded operands, whatever the batch and the threads") {
  const Settings settings;
  Random random(15);
  const KernelTable& table = kernels_in_use();
  for (const int64_t k : {int64_t{1}, int64_t{2}, int64_t{7}, int64_t{300}, int64_t{1301}}) {
    const Case t{5 * table.mr + 1, 3 * table.nr + 5, k, k == 7, k == 300, k == 2, kLoose, true};
    Run run(t, random, false);
    Run rounded = run;
    for (Guarded* x : {&rounded.a, &rounded.b}) {
      for (int64_t r = 0; r < x->mat().rows; ++r) {
        for (int64_t i = 0; i < x->mat().cols; ++i) (*x)(r, i) = rounded_to_bf16((*x)(r, i));
      }
    }
    set_matmul_precision("bf16");
    run.compute(t);
    set_matmul_precision("highest");
    rounded.compute(t);
    expect_close("bf16 " + t.name(), run.c.mat(), rounded.bounded(t), 1.0);
    if (t.transpose_a) continue;
    set_matmul_precision("bf16");
    for (const int threads : {1, 3}) {
      set_num_threads(threads);
      Guarded row = output(1, t.n, kLoose);
      std::copy_n(&run.before(4, 0), t.n, &row(0, 0));
      Epilogue e = run.epilogue(t);
      e = e.at(4, 0);
      gemm(1, t.n, k, left_operand(run.a.mat().row_block(4, 1)), right_operand(run.b.mat(), t.transpose_b),
           row.mat().data, row.mat().stride, t.accumulate, e);
      expect_same_bits("a row of bf16 " + t.name(), row.mat(), run.c.mat().row_block(4, 1));
    }
  }
}

TEST_CASE("rounding to bfloat16 keeps infinities, NaN, signs and the smallest numbers") {
  const KernelTable& table = kernels_in_use();
  std::vector<float> x{0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-40f, -1e-45f, 3.3895e38f, 3.4028235e38f, -1.00390625f};
  Random random(11);
  while (x.size() < 64) x.push_back(random.uniform());
  Operand operand;
  operand.data = x.data();
  operand.stride = 1;
  operand.bf16 = true;
  const int64_t n = static_cast<int64_t>(x.size());
  std::vector<float> packed(static_cast<size_t>(n * table.nr + table.width));
  // One element of depth 1 in each place of the panels.
  table.pack(operand, 0, n, 0, 1, table.nr, packed.data());
  for (int64_t i = 0; i < n; ++i) {
    const float got = packed[static_cast<size_t>(i)], want = rounded_to_bf16(x[static_cast<size_t>(i)]);
    CHECK_MESSAGE(same_bits(got, want), x[static_cast<size_t>(i)], " gave ", got);
  }
}

}  // namespace
}  // namespace miaobi::test

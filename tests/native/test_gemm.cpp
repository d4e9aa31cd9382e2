// SPDX-License-Identifier: MIT
// Matrix products: exact on integers, one chain of multiply-adds in ascending k, within the promised bound.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gemm_case.h"
#include "miaobi/check.h"

namespace miaobi::test {
namespace {

TEST_CASE("gemm is exact on small integers: every backend, mode and shape around the tiles") {
  const KernelTable& table = kernels_in_use();
  const Settings settings;
  Random random(1);
  for (const std::string& backend : available_backends()) {
    set_backend(backend);
    for (const int64_t m : around({table.mr, table.width})) {
      for (const int64_t n : around({table.width, table.nr})) {
        for_each_mode([&](bool transpose_a, bool transpose_b, bool accumulate) {
          const Layout layout = (m + n) % 2 == 0 ? kTight : kLoose;
          const Case t{m, n, random.integer(1, 9), transpose_a, transpose_b, accumulate, layout, accumulate};
          Run run(t, random, true);
          run.compute(t);
          expect_same_bits(backend + " " + t.name(), run.c.mat(), run.chains(t).mat());
        });
      }
    }
  }
}

TEST_CASE("gemm is one chain of multiply-adds for each element, and within its bound") {
  const KernelTable& table = kernels_in_use();
  const Settings settings;
  Random random(2);
  const int64_t mr = table.mr, nr = table.nr;
  for (const std::string& backend : available_backends()) {
    set_backend(backend);
    // Few rows take wide tiles, or B where it lies, deeper than 64 in pieces; more rows packed panels.
    for (const int64_t m :
         {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{5}, mr, mr + 1, 2 * mr, 2 * mr + 1, 5 * mr + 2}) {
      for (const int64_t n : {nr - 1, 4 * nr, 5 * nr + 3}) {
        for_each_mode([&](bool transpose_a, bool transpose_b, bool accumulate) {
          const Case t{m, n, n < nr ? 37 : 131, transpose_a, transpose_b, accumulate, kLoose, transpose_a, transpose_b};
          Run run(t, random, false);
          run.compute(t);
          if (backend == "builtin") expect_same_bits(t.name(), run.c.mat(), run.chains(t).mat());
          expect_close(backend + " " + t.name(), run.c.mat(), run.bounded(t), 1.0);
        });
      }
    }
    // Deeper than a block of depth, which is at most 512.
    for_each_mode([&](bool transpose_a, bool transpose_b, bool accumulate) {
      const Case t{2 * mr + 3, nr + 5, 1100, transpose_a, transpose_b, accumulate, kTight, true, true};
      Run run(t, random, false);
      run.compute(t);
      if (backend == "builtin") expect_same_bits(t.name(), run.c.mat(), run.chains(t).mat());
      expect_close(backend + " " + t.name(), run.c.mat(), run.bounded(t), 1.0);
    });
  }
}

TEST_CASE("gemm cut into blocks of rows, columns and depth equals its parts, bit for bit") {
  Random random(3);
  const KernelTable& table = kernels_in_use();
  // Rows beyond half of a large L2, columns beyond the largest block of columns (8 MB of 256 deep).
  const Case tall{2100, table.nr + 1, 300, false, false}, wide{2 * table.mr + 1, 8200 + table.nr, 260, false, true};
  for (const Case& t : {tall, wide}) {
    Run run(t, random, false);
    run.compute(t);
    Guarded parts = output(t.m, t.n);
    const int64_t rows = t.m / 7 + 1, cols = t.n / 5 + 1;
    for (int64_t i = 0; i < t.m; i += rows) {
      for (int64_t j = 0; j < t.n; j += cols) {
        const int64_t m = std::min(rows, t.m - i), n = std::min(cols, t.n - j);
        const ConstMat b = t.transpose_b ? run.b.mat().row_block(j, n) : run.b.mat().col_block(j, n);
        gemm(m, n, t.k, left_operand(run.a.mat().row_block(i, m)), right_operand(b, t.transpose_b),
             parts.mat().row(i) + j, parts.mat().stride);
      }
    }
    expect_same_bits(t.name(), run.c.mat(), parts.mat());
  }
}

TEST_CASE("gemm with K split over accumulating calls equals one call, bit for bit") {
  Random random(4);
  for (const int64_t m : {int64_t{1}, int64_t{45}}) {
    const Case t{m, 50, 700, false, true};
    Run run(t, random, false);
    run.compute(t);
    Guarded split = output(t.m, t.n);
    int64_t begin = 0;
    for (const int64_t end : {int64_t{1}, int64_t{256}, int64_t{300}, int64_t{699}, int64_t{700}}) {
      gemm(t.m, t.n, end - begin, left_operand(run.a.mat().col_block(begin, end - begin)),
           right_operand(run.b.mat().col_block(begin, end - begin), true), split.mat().data, split.mat().stride,
           begin > 0);
      begin = end;
    }
    expect_same_bits(t.name(), run.c.mat(), split.mat());
  }
}

TEST_CASE("a row of a product alone has the bits it has in the batch") {
  Random random(5);
  const Case t{70, 150, 90, false, false, false, kTight, true, true, Activation::kGelu};
  Run run(t, random, false);
  run.compute(t);
  for (const int64_t i : {int64_t{0}, int64_t{13}, t.m - 1}) {
    Guarded row = output(1, t.n);
    gemm(1, t.n, t.k, left_operand(run.a.mat().row_block(i, 1)), right_operand(run.b.mat()), row.mat().data, t.n, false,
         run.epilogue(t).at(i, 0));
    expect_same_bits("row " + std::to_string(i), row.mat(), run.c.mat().row_block(i, 1));
  }
}

TEST_CASE("gemm epilogue: activation, its derivative, bias and residual") {
  Random random(6);
  const KernelTable& table = kernels_in_use();
  for (const int64_t n : around({table.width, table.nr})) {
    for (const Activation kind : {Activation::kNone, Activation::kGelu, Activation::kRelu}) {
      for (const bool grad_of : {false, true}) {
        for (const bool bias : {false, true}) {
          const Case t{table.mr + 2, n, 300, false, false, n % 2 == 0, kLoose, bias, !bias, kind, grad_of};
          Run run(t, random, false);
          run.compute(t);
          Matrix<Tracked> want = t.accumulate ? tracked(run.before) : Matrix<Tracked>(t.m, t.n);
          reference::matmul_add(tracked(run.a), false, tracked(run.b), false, want);
          const Vector<Tracked> b = tracked(run.bias);
          const Matrix<Tracked> g = tracked(run.grad_of), r = tracked(run.residual);
          reference::apply_epilogue(reference::MatmulEpilogue<Tracked>{t.bias ? &b : nullptr, t.grad_of ? &g : nullptr,
                                                                       t.residual ? &r : nullptr, t.activation},
                                    want);
          expect_close(t.name(), run.c.mat(), want);
        }
      }
    }
  }
}

TEST_CASE("gemm of nothing: M or N = 0 leaves C alone, K = 0 gives the epilogue of 0 or of C") {
  Random random(7);
  for_each_mode([&](bool transpose_a, bool transpose_b, bool accumulate) {
    for (const Case& t : {Case{0, 5, 3, transpose_a, transpose_b, accumulate, kLoose, true},
                          Case{5, 0, 3, transpose_a, transpose_b, accumulate, kLoose, true},
                          Case{5, 37, 0, transpose_a, transpose_b, accumulate, kLoose, true, true},
                          Case{40, 3, 0, transpose_a, transpose_b, accumulate, kLoose}}) {
      Run run(t, random, false);
      run.compute(t);
      expect_same_bits(t.name(), run.c.mat(), run.chains(t).mat());
    }
  });
  gemm(0, 0, 0, Operand{}, Operand{}, nullptr, 0);
  float c[2] = {3.0f, 4.0f};
  gemm(1, 2, 0, Operand{}, Operand{}, c, 2);
  CHECK(c[0] == 0.0f);
  CHECK(c[1] == 0.0f);
}

TEST_CASE("gemm passes NaN and infinity on, to the rows and columns they belong to") {
  Random random(8);
  for (const int64_t m : {int64_t{3}, int64_t{40}}) {
    const Case t{m, 37, 21};
    Run run(t, random, false);
    run.a(1, 20) = NAN;
    run.b(5, 36) = INFINITY;
    run.compute(t);
    for (int64_t i = 0; i < t.m; ++i) {
      for (int64_t j = 0; j < t.n; ++j) {
        CHECK(std::isnan(run.c(i, j)) == (i == 1));
        CHECK(std::isinf(run.c(i, j)) == (i != 1 && j == 36));
      }
    }
  }
}

TEST_CASE("a matrix packed once gives the bits of the matrix") {
  const KernelTable& table = kernels_in_use();
  Random random(9);
  for (const int64_t m : {int64_t{1}, int64_t{table.mr}, int64_t{table.mr} + 1, int64_t{40}}) {
    for (const int64_t n : around({table.nr})) {
      for (const int64_t k : {int64_t{0}, int64_t{5}, int64_t{1100}}) {
        const bool transpose = (m + n) % 2 == 0;
        const Case t{m, n, k, false, transpose, k == 5, kLoose, true, true};
        Run run(t, random, false);
        run.compute(t);
        const PackedMatrix packed(right_operand(run.b.mat(), transpose), n, k);
        Guarded c = output(m, n, kLoose);
        for (int64_t i = 0; i < m; ++i) std::copy_n(&run.before(i, 0), n, &c(i, 0));
        gemm(m, left_operand(run.a.mat()), packed, c.mat().data, c.mat().stride, t.accumulate, run.epilogue(t));
        CHECK(c.guards_intact());
        expect_same_bits("packed " + t.name(), c.mat(), run.c.mat());
      }
    }
  }
}

TEST_CASE("one row times a matrix has the bits of a row among many, at every edge of the vectors") {
  Random random(14);
  const int64_t w = kernels_in_use().width;
  for (const bool transpose : {false, true}) {
    for (const int64_t n : {int64_t{1}, w - 1, w, 3 * w + 1, 7 * w + 2}) {
      for (const int64_t k : {int64_t{1}, int64_t{3}, int64_t{8}, int64_t{21}, int64_t{1024}}) {
        const Case many{40 * kernels_in_use().mr, n, k, false, transpose, k == 8, kLoose};
        Run run(many, random, false);
        run.compute(many);
        Guarded row = output(1, n, kLoose);
        std::copy_n(&run.before(3, 0), n, &row(0, 0));
        gemm(1, n, k, left_operand(run.a.mat().row_block(3, 1)), right_operand(run.b.mat(), transpose), row.mat().data,
             row.mat().stride, many.accumulate);
        CHECK(row.guards_intact());
        expect_same_bits("row 3 of " + many.name(), row.mat(), run.c.mat().row_block(3, 1));
      }
    }
  }
}

// --- Threads, tables and settings ---------------------------------------------------------------------------------

TEST_CASE("gemm gives the same bits for every number of threads") {
  for (const Case& t : {Case{700, 70, 90, false, true, true, kTight, true, true, Activation::kGelu}, Case{1, 5000, 70},
                        Case{60, 600, 600, true, false}}) {
    Random random(12);
    Run run(t, random, false);
    expect_same_for_all_thread_counts(t.name(), [&] {
      run.compute(t);
      return Results().add(run.c);
    });
  }
}

TEST_CASE("tables with fused multiply-add agree on products bit for bit") {
  const KernelsInForce restore;
  const Case t{61, 77, 530, false, true, true, kLoose, true, true};
  std::vector<float> first;
  for (const KernelTable* table : supported_kernels()) {
    if (!fuses(*table)) continue;
    use_kernels(table->name);
    Random random(13);
    Run run(t, random, false);
    run.compute(t);
    const Results got = Results().add(run.c);
    if (first.empty()) first = got.floats();
    expect_same_bits(table->name, got.floats(), first);
  }
}

TEST_CASE("backend, precision and instruction set refuse unknown names and keep the old one") {
  const Settings settings;
  const KernelsInForce restore;
  CHECK_THROWS_AS(set_backend("mkl"), Error);
  CHECK_THROWS_AS(set_matmul_precision("fp8"), Error);
  CHECK_THROWS_AS(use_kernels("avx10"), Error);
  if (available_backends().size() == 1) CHECK_THROWS_AS(set_backend("openblas"), Error);
  CHECK(get_backend() == settings.backend);
  CHECK(get_matmul_precision() == settings.precision);
  CHECK(std::string(kernels_in_use().name) == restore.name);
  CHECK(std::string(supported_kernels().back()->name) == "generic");
}

}  // namespace
}  // namespace miaobi::test

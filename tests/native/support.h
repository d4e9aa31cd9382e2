// SPDX-License-Identifier: MIT
// What all native tests share: seeded numbers, guarded matrices, comparisons, loops over threads and widths.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "miaobi/gemm.h"
#include "miaobi/mat.h"
#include "miaobi/threads.h"
#include "reference/matrix.h"
#include "tracked.h"

namespace miaobi::test {

using reference::Matrix;
using reference::Vector;

// --- Numbers ------------------------------------------------------------------------------------------------------

// The same numbers on every platform: the distributions of the standard library are not.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  // In [low, high), a multiple of 2^-24 of the range.
  float uniform(float low = -1.0f, float high = 1.0f) {
    return low + (high - low) * static_cast<float>(static_cast<double>(engine_() >> 40) * 0x1p-24);
  }
  int64_t integer(int64_t low, int64_t high) {  // in [low, high]
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  std::vector<float> vector(int64_t n, float low = -1.0f, float high = 1.0f) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& e : v) e = uniform(low, high);
    return v;
  }
  std::vector<int32_t> indices(int64_t n, int64_t end) {  // in [0, end)
    std::vector<int32_t> v(static_cast<size_t>(n));
    for (int32_t& e : v) e = static_cast<int32_t>(integer(0, end - 1));
    return v;
  }

 private:
  std::mt19937_64 engine_;
};

// Around a vector or tile width.
inline std::set<int64_t> around(std::initializer_list<int64_t> widths) {
  std::set<int64_t> sizes{1};
  for (const int64_t w : widths) sizes.insert({w > 1 ? w - 1 : 1, w, w + 1, 2 * w + 3});
  return sizes;
}

// --- Guarded matrices ---------------------------------------------------------------------------------------------

// Where a matrix starts after a cache line, and how far its rows are apart beyond their columns.
struct Layout {
  int64_t shift = 0;
  int64_t pad = 0;
};
constexpr Layout kTight{};
constexpr Layout kLoose{1, 3};

// A matrix among canaries: NaNs, so that a kernel that reads one gives NaN, of a pattern of their own, so that one
// that writes one is caught by guards_intact(). Nothing is allocated behind the last element of an input, for the
// sanitizer to see a read past it; outputs have a guard there.
class Guarded {
 public:
  enum class Role { kInput, kOutput };

  Guarded(int64_t rows, int64_t cols, Layout layout = kTight, Role role = Role::kInput)
      : rows_(rows), cols_(cols), stride_(cols + layout.pad), start_(kFront + layout.shift) {
    const int64_t body = rows > 0 ? (rows - 1) * stride_ + cols : 0;
    floats_.assign(static_cast<size_t>(start_ + body + (role == Role::kOutput ? kBack : 0)), canary());
    fill(0.0f);
  }

  Mat mat() { return Mat(floats_.data() + start_, rows_, cols_, stride_); }
  ConstMat mat() const { return ConstMat(floats_.data() + start_, rows_, cols_, stride_); }
  float& operator()(int64_t r, int64_t c) { return mat()(r, c); }
  float operator()(int64_t r, int64_t c) const { return mat()(r, c); }

  Guarded& fill(float value) {
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) (*this)(r, c) = value;
    }
    return *this;
  }
  Guarded& fill(Random& random, float low = -1.0f, float high = 1.0f) {
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) (*this)(r, c) = random.uniform(low, high);
    }
    return *this;
  }
  Guarded& fill_integers(Random& random, int64_t low, int64_t high) {
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) (*this)(r, c) = static_cast<float>(random.integer(low, high));
    }
    return *this;
  }

  bool guards_intact() const {
    for (int64_t i = 0; i < static_cast<int64_t>(floats_.size()); ++i) {
      const int64_t at = i - start_;
      const bool inside = at >= 0 && at / stride_ < rows_ && at % stride_ < cols_ && stride_ > 0;
      if (!inside && std::bit_cast<uint32_t>(floats_[static_cast<size_t>(i)]) != kCanary) return false;
    }
    return true;
  }

 private:
  static constexpr uint32_t kCanary = 0x7fc5a5a5;
  static constexpr int64_t kFront = 16, kBack = 64;
  static float canary() { return std::bit_cast<float>(kCanary); }

  int64_t rows_, cols_, stride_, start_;
  std::vector<float> floats_;
};

inline Guarded input(Random& random, int64_t rows, int64_t cols, Layout layout = kTight) {
  Guarded g(rows, cols, layout);
  g.fill(random);
  return g;
}
inline Guarded output(int64_t rows, int64_t cols, Layout layout = kTight) {
  return Guarded(rows, cols, layout, Guarded::Role::kOutput);
}

// --- From the engine's numbers to the oracle's --------------------------------------------------------------------

template <class T>
Matrix<T> as(ConstMat x) {
  Matrix<T> y(x.rows, x.cols);
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) y(r, c) = T(static_cast<double>(x(r, c)));
  }
  return y;
}
inline Matrix<Tracked> tracked(ConstMat x) { return as<Tracked>(x); }
inline Matrix<Tracked> tracked(const Guarded& x) { return as<Tracked>(x.mat()); }
inline Vector<Tracked> tracked(const std::vector<float>& x) {
  return as<Tracked>(ConstMat(x.data(), 1, static_cast<int64_t>(x.size()))).data;
}
inline ConstMat row_of(const std::vector<float>& x) { return {x.data(), 1, static_cast<int64_t>(x.size())}; }

// --- Comparisons --------------------------------------------------------------------------------------------------

// Kernels add in another order than the oracle and rescale on the way, which multiplies its bound by a small number.
constexpr double kSlack = 4.0;

inline double bound_of(const Tracked& want, double slack) { return slack * want.error + kTiniest; }
// NaN, on either side, is not.
inline bool is_close(float got, const Tracked& want, double slack = kSlack) {
  return std::fabs(static_cast<double>(got) - want.value) <= bound_of(want, slack);
}

// Every element within `slack` times the oracle's own bound.
inline void expect_close(const std::string& label, ConstMat got, const Matrix<Tracked>& want, double slack = kSlack) {
  REQUIRE(got.rows == want.rows);
  REQUIRE(got.cols == want.cols);
  for (int64_t r = 0; r < want.rows; ++r) {
    for (int64_t c = 0; c < want.cols; ++c) {
      if (is_close(got(r, c), want(r, c), slack)) continue;
      FAIL_CHECK(label << " (" << want.rows << ", " << want.cols << ") at (" << r << ", " << c << "): got " << got(r, c)
                       << ", want " << want(r, c).value << " +- " << bound_of(want(r, c), slack));
      return;
    }
  }
  CHECK(true);
}
inline void expect_close(const std::string& label, const std::vector<float>& got, const Vector<Tracked>& want,
                         double slack = kSlack) {
  Matrix<Tracked> row(1, static_cast<int64_t>(want.size()));
  row.data = want;
  expect_close(label, row_of(got), row, slack);
}

inline bool same_bits(float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }

// Another backend than ours promises no bits: there 1e-5 of the largest element is allowed, which is still less than
// any error in a sum of small integers.
inline void expect_same_bits(const std::string& label, ConstMat got, ConstMat want) {
  REQUIRE(got.rows == want.rows);
  REQUIRE(got.cols == want.cols);
  float bound = 0;
  if (get_backend() != "builtin") {
    for (int64_t r = 0; r < want.rows; ++r) {
      for (int64_t c = 0; c < want.cols; ++c) bound = std::max(bound, 1e-5f * std::abs(want(r, c)));
    }
  }
  for (int64_t r = 0; r < want.rows; ++r) {
    for (int64_t c = 0; c < want.cols; ++c) {
      if (same_bits(got(r, c), want(r, c)) || std::abs(got(r, c) - want(r, c)) < bound) continue;
      FAIL_CHECK(label << " (" << want.rows << ", " << want.cols << ") at (" << r << ", " << c << "): got " << got(r, c)
                       << ", want the bits of " << want(r, c) << " (difference " << got(r, c) - want(r, c) << ")");
      return;
    }
  }
  CHECK(true);
}
inline void expect_same_bits(const std::string& label, const std::vector<float>& got, const std::vector<float>& want) {
  expect_same_bits(label, row_of(got), row_of(want));
}

// --- Results as one string of floats, compared over thread counts -------------------------------------------------

class Results {
 public:
  Results& add(ConstMat x) {
    for (int64_t r = 0; r < x.rows; ++r) all_.insert(all_.end(), x.row(r), x.row(r) + x.cols);
    return *this;
  }
  Results& add(const Guarded& x) { return add(x.mat()); }
  Results& add(const std::vector<float>& x) { return add(row_of(x)); }
  const std::vector<float>& floats() const { return all_; }

 private:
  std::vector<float> all_;
};

struct ThreadCount {
  explicit ThreadCount(int n) : before(get_num_threads()) { set_num_threads(n); }
  ~ThreadCount() { set_num_threads(before); }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;
  int before;
};

// run() -> Results gives the same bits for every number of threads.
template <class Run>
void expect_same_for_all_thread_counts(const std::string& label, Run&& run) {
  const auto with = [&](int n) {
    const ThreadCount threads(n);
    return run();
  };
  const Results alone = with(1);
  for (const int n : {2, 3, 8}) {
    expect_same_bits(label + " with " + std::to_string(n) + " threads", with(n).floats(), alone.floats());
  }
}

// Puts the table in force back at the end of a test that changes it.
struct KernelsInForce {
  KernelsInForce() : name(kernels_in_use().name) {}
  ~KernelsInForce() { use_kernels(name); }
  KernelsInForce(const KernelsInForce&) = delete;
  KernelsInForce& operator=(const KernelsInForce&) = delete;
  std::string name;
};

// The generic table rounds the product before it adds; all others fuse.
inline bool fuses(const KernelTable& table) { return std::string(table.name) != "generic"; }

}  // namespace miaobi::test

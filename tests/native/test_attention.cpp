// SPDX-License-Identifier: MIT
// Tiled attention against the oracle: ragged, causal and not, every head size, bits that depend on nothing but the
// row's own sequence, and memory that grows with T and not with its square.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "miaobi/attention.h"
#include "miaobi/check.h"
#include "reference/reference.h"
#include "support.h"

namespace miaobi::test {
namespace {

std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

// Q, K and V are the thirds of one matrix, as the projection makes them.
struct Data {
  std::vector<int64_t> offsets;
  int64_t longest, heads, head_size;
  Guarded qkv, d_o, o, lse, dqkv;

  Data(const std::vector<int64_t>& lengths, int64_t heads_, int64_t head_size_, Random& random, Layout layout = kTight)
      : offsets(offsets_of(lengths)),
        longest(lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end())),
        heads(heads_),
        head_size(head_size_),
        qkv(input(random, tokens(), 3 * width(), layout)),
        d_o(input(random, tokens(), width(), layout)),
        o(output(tokens(), width(), layout)),
        lse(output(tokens(), heads, layout)),
        dqkv(output(tokens(), 3 * width(), layout)) {
    for (int64_t r = 0; r < tokens(); ++r) {
      for (int64_t c = 0; c < 2 * width(); ++c) qkv(r, c) *= 2.0f;  // scores that differ
    }
    o.fill(NAN);
    dqkv.fill(NAN);
  }

  int64_t tokens() const { return offsets.back(); }
  int64_t width() const { return heads * head_size; }
  RaggedBatch batch() const { return {offsets.data(), static_cast<int64_t>(offsets.size()) - 1, longest}; }
  AttentionShape shape(bool causal) const { return {heads, head_size, causal}; }
  ConstMat third(int64_t i) const { return qkv.mat().col_block(i * width(), width()); }
  Mat gradient(int64_t i) { return dqkv.mat().col_block(i * width(), width()); }

  void forward(bool causal) {
    attention_forward(third(0), third(1), third(2), batch(), shape(causal), o.mat(), lse.mat());
  }
  void backward(bool causal) {
    attention_backward(d_o.mat(), third(0), third(1), third(2), o.mat(), lse.mat(), batch(), shape(causal), gradient(0),
                       gradient(1), gradient(2));
  }
  bool guards_intact() const { return o.guards_intact() && lse.guards_intact() && dqkv.guards_intact(); }
};

void expect_oracle(const std::string& name, Data& data, bool causal) {
  const reference::AttentionLayout layout{data.offsets, data.heads, causal};
  const Matrix<Tracked> q = tracked(data.third(0)), k = tracked(data.third(1)), v = tracked(data.third(2));
  const auto want = reference::attention_forward(q, k, v, layout);
  data.forward(causal);
  expect_close(name + " o", data.o.mat(), want.o);
  expect_close(name + " lse", data.lse.mat(), want.lse);
  const auto gradients = reference::attention_backward(tracked(data.d_o), q, k, v, layout);
  data.backward(causal);
  expect_close(name + " dq", data.gradient(0), gradients.dq);
  expect_close(name + " dk", data.gradient(1), gradients.dk);
  expect_close(name + " dv", data.gradient(2), gradients.dv);
  CHECK_MESSAGE(data.guards_intact(), name);
}

TEST_CASE("attention of ragged batches agrees with the oracle for every head size, causal and not") {
  Random random(60);
  for (const int64_t head_size : {8, 12, 24, 32, 64, 80}) {
    for (const bool causal : {true, false}) {
      Data data({5, 0, 1, 23, 50}, head_size >= 64 ? 1 : 3, head_size, random, kLoose);
      expect_oracle("D " + std::to_string(head_size) + (causal ? " causal" : ""), data, causal);
    }
  }
}

TEST_CASE("attention around the tiles of 48 or 64 queries and 84 or 96 keys") {
  Random random(61);
  for (const int64_t length : {2, 47, 48, 49, 63, 65, 83, 84, 85, 95, 96, 97, 99, 145, 168, 195}) {
    for (const bool causal : {true, false}) {
      Data data({length}, 1, 8, random);
      expect_oracle("T " + std::to_string(length) + (causal ? " causal" : ""), data, causal);
    }
  }
}

TEST_CASE("attention of a single token is its value, and of nothing nothing") {
  Random random(62);
  Data one({1, 1}, 2, 12, random);
  one.forward(true);
  expect_same_bits("o", one.o.mat(), one.third(2));
  Data none({}, 2, 12, random), empty({0, 0}, 2, 12, random);
  for (Data* data : {&none, &empty}) {
    data->forward(true);
    data->backward(true);
    CHECK(data->guards_intact());
  }
}

TEST_CASE("attention with scores of hundreds stays finite and picks the largest") {
  Random random(63);
  Data data({100}, 1, 16, random);
  for (int64_t r = 0; r < 100; ++r) {
    for (int64_t c = 0; c < 16; ++c) data.qkv(r, c) *= 300.0f;
  }
  data.forward(true);
  data.backward(true);
  const reference::AttentionLayout layout{data.offsets, 1, true};
  const auto want = reference::attention_forward(as<double>(data.third(0)), as<double>(data.third(1)),
                                                 as<double>(data.third(2)), layout);
  for (int64_t r = 0; r < 100; ++r) {
    CHECK(std::fabs(data.lse(r, 0) - want.lse(r, 0)) <= 1e-5 * (1 + std::fabs(want.lse(r, 0))));
    for (int64_t c = 0; c < 16; ++c) {
      CHECK(std::fabs(data.o(r, c)) <= 1.0f);
      for (int64_t i = 0; i < 3; ++i) CHECK(std::isfinite(data.gradient(i)(r, c)));
    }
  }
}

TEST_CASE("a NaN stays in its own sequence and head, and behind the causal mask") {
  Random random(64);
  Data data({40, 60, 30}, 2, 8, random);
  data.qkv(40 + 50, 16 + 3) = NAN;  // a key of sequence 1, head 0, token 50
  data.forward(true);
  for (int64_t r = 0; r < data.tokens(); ++r) {
    const bool reached = r >= 40 + 50 && r < 100;
    for (int64_t c = 0; c < 16; ++c) CHECK(std::isnan(data.o(r, c)) == (reached && c < 8));
  }
}

// The rows of sequence s in the batch are those of the sequence alone.
TEST_CASE("a sequence's bits do not depend on its batch neighbours") {
  Random random(65);
  const std::vector<int64_t> lengths{130, 7, 0, 97, 20};
  for (const bool causal : {true, false}) {
    Data all(lengths, 2, 12, random);
    all.forward(causal);
    all.backward(causal);
    for (size_t s = 0; s < lengths.size(); ++s) {
      Data alone({lengths[s]}, 2, 12, random);
      const int64_t begin = all.offsets[s];
      for (int64_t r = 0; r < lengths[s]; ++r) {
        std::copy_n(&all.qkv(begin + r, 0), 3 * all.width(), &alone.qkv(r, 0));
        std::copy_n(&all.d_o(begin + r, 0), all.width(), &alone.d_o(r, 0));
      }
      alone.forward(causal);
      alone.backward(causal);
      const std::string name = "sequence " + std::to_string(s);
      expect_same_bits(name + " o", alone.o.mat(), all.o.mat().row_block(begin, lengths[s]));
      expect_same_bits(name + " lse", alone.lse.mat(), all.lse.mat().row_block(begin, lengths[s]));
      expect_same_bits(name + " dqkv", alone.dqkv.mat(), all.dqkv.mat().row_block(begin, lengths[s]));
    }
  }
}

TEST_CASE("a causal row's bits do not depend on the tokens after it") {
  Random random(66);
  Data all({150}, 2, 24, random);
  all.forward(true);
  for (const int64_t length : {1, 48, 90, 149}) {
    Data prefix({length}, 2, 24, random);
    for (int64_t r = 0; r < length; ++r) std::copy_n(&all.qkv(r, 0), 3 * all.width(), &prefix.qkv(r, 0));
    prefix.forward(true);
    expect_same_bits("prefix o", prefix.o.mat(), all.o.mat().row_block(0, length));
    expect_same_bits("prefix lse", prefix.lse.mat(), all.lse.mat().row_block(0, length));
  }
}

TEST_CASE("attention gives the same bits for every number of threads") {
  Random random(67);
  for (const bool causal : {true, false}) {
    for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{400}, std::vector<int64_t>{130, 3, 70, 99}}) {
      Data data(lengths, 3, 16, random);
      expect_same_for_all_thread_counts("attention", [&] {
        data.forward(causal);
        data.backward(causal);
        return Results().add(data.o).add(data.lse).add(data.dqkv);
      });
    }
  }
}

TEST_CASE("attention over 8192 tokens in scratch that is linear in T") {
  Random random(70);
  const int64_t T = 8192, D = 8, wide = std::max<int64_t>(D, kernels_in_use().nr);
  const ThreadCount threads(2);
  Data data({T}, 1, D, random);
  const int64_t held = allocated_bytes();
  data.forward(true);
  data.backward(true);
  // Seven packed operands, the gradient of the queries and a few tiles for each of two threads, none narrower than a
  // GEMM tile; a matrix of scores would be 268 MB.
  CHECK(allocated_bytes() - held <= 2 * 4 * (9 * T * wide + 4 * 100 * 100));
  for (int64_t c = 0; c < D; ++c) CHECK(std::isfinite(data.gradient(1)(T - 1, c)));
}

TEST_CASE("attention over 2000 tokens agrees with the oracle") {
  Random random(68);
  const int64_t T = 2000, D = 8;
  Data data({T}, 1, D, random);
  data.forward(true);
  data.backward(true);
  const Matrix<Tracked> q = tracked(data.third(0)), k = tracked(data.third(1)), v = tracked(data.third(2));
  const auto want = reference::attention_forward(q, k, v, {data.offsets, 1, true});
  expect_close("o", data.o.mat(), want.o);
  expect_close("lse", data.lse.mat(), want.lse);
  // Every row of the probabilities adds up to one, so the column sums of dV are those of dO.
  for (int64_t c = 0; c < D; ++c) {
    double sum_dv = 0, sum_do = 0;
    for (int64_t r = 0; r < T; ++r) {
      sum_dv += data.gradient(2)(r, c);
      sum_do += data.d_o(r, c);
    }
    CHECK(std::fabs(sum_dv - sum_do) <= 1e-3);
  }
}

TEST_CASE("attention refuses shapes that do not fit") {
  Random random(69);
  Data data({4, 5}, 2, 8, random);
  Guarded short_o = output(8, 16), narrow = output(9, 15), wide_lse = output(9, 3);
  const auto call = [&](Mat o, Mat lse, AttentionShape shape) {
    attention_forward(data.third(0), data.third(1), data.third(2), data.batch(), shape, o, lse);
  };
  CHECK_THROWS_AS(call(short_o.mat(), data.lse.mat(), data.shape(true)), Error);
  CHECK_THROWS_AS(call(narrow.mat(), data.lse.mat(), data.shape(true)), Error);
  CHECK_THROWS_AS(call(data.o.mat(), wide_lse.mat(), data.shape(true)), Error);
  CHECK_THROWS_AS(call(data.o.mat(), data.lse.mat(), (AttentionShape{3, 8, true})), Error);
  CHECK_THROWS_AS(call(data.o.mat(), data.lse.mat(), (AttentionShape{0, 8, true})), Error);
}

}  // namespace
}  // namespace miaobi::test

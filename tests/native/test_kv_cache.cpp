// SPDX-License-Identifier: MIT
// Attention over cached keys and values: equal to attention over the whole sequence for every prefix, in bits that
// depend neither on how the rows were cut into steps nor on other sequences, shared blocks or threads.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "miaobi/check.h"
#include "miaobi/kv_cache.h"
#include "reference/reference.h"
#include "support.h"

namespace miaobi::test {
namespace {

constexpr int64_t kHeads = 2, kHeadSize = 12, kWidth = kHeads * kHeadSize;

// Rows [begin, end) of a sequence's Q, K and V go into the cache as one step; their outputs.
void step(KVCache& cache, int64_t sequence, const Guarded& qkv, int64_t begin, int64_t end, Guarded& o) {
  const int64_t offsets[] = {0, end - begin};
  const RaggedBatch batch{offsets, 1, end - begin};
  const KVCache::Step s{&sequence, &begin, batch};
  const ConstMat rows = qkv.mat().row_block(begin, end - begin);
  cache.extend(&sequence, batch);
  cache.write(0, s, rows.col_block(kWidth, kWidth), rows.col_block(2 * kWidth, kWidth));
  cache.attend(0, s, rows.col_block(0, kWidth), o.mat().row_block(begin, end - begin));
}

Guarded run(const Guarded& qkv, const std::vector<int64_t>& ends) {
  Guarded o = output(qkv.mat().rows, kWidth, kLoose);
  KVCache cache(1, kHeads, kHeadSize, qkv.mat().rows);
  const int64_t sequence = cache.add_sequence();
  int64_t begin = 0;
  for (const int64_t end : ends) {
    step(cache, sequence, qkv, begin, end, o);
    begin = end;
  }
  CHECK(o.guards_intact());
  return o;
}

TEST_CASE("cached attention, token by token, agrees with the oracle for every prefix") {
  Random random(90);
  const int64_t T = 100;
  const Guarded qkv = input(random, T, 3 * kWidth, kLoose);
  std::vector<int64_t> one_by_one;
  for (int64_t t = 1; t <= T; ++t) one_by_one.push_back(t);
  const Guarded o = run(qkv, one_by_one);
  const auto want = reference::attention_forward(
      tracked(qkv.mat().col_block(0, kWidth)), tracked(qkv.mat().col_block(kWidth, kWidth)),
      tracked(qkv.mat().col_block(2 * kWidth, kWidth)), {{0, T}, kHeads, true});
  expect_close("o", o.mat(), want.o);
  // Other cuts, among them single rows after many, blocks and their neighbours: the same bits.
  for (const std::vector<int64_t>& ends :
       {std::vector<int64_t>{T}, {31, 32, 33, 64, 65, T}, {1, 40, 41, 97, 98, T}, {32, 64, 96, T}}) {
    expect_same_bits("cut " + std::to_string(ends[0]), run(qkv, ends).mat(), o.mat());
  }
  expect_same_for_all_thread_counts("cached attention", [&] { return Results().add(run(qkv, {50, 51, T})); });
}

TEST_CASE("a cache in bfloat16 has the bits of a float32 cache of rounded keys and values, at any number of threads") {
  Random random(93);
  for (const int64_t head_size : {8, 64, 70, 136}) {
    const int64_t heads = 3, width = heads * head_size, T = 40;
    Guarded qkv = input(random, T, 3 * width, kLoose), rounded = input(random, T, 3 * width, kLoose);
    std::vector<uint16_t> narrow(static_cast<size_t>(2 * width));
    for (int64_t r = 0; r < T; ++r) {
      std::copy_n(qkv.mat().row(r), width, rounded.mat().row(r));
      kernels_in_use().narrow(qkv.mat().row(r) + width, 2 * width, narrow.data());
      kernels_in_use().widen(narrow.data(), 2 * width, rounded.mat().row(r) + width);
    }
    const auto outputs = [&](const Guarded& x, WeightType type) {
      Guarded o = output(T, width, kLoose);
      KVCache cache(1, heads, head_size, T, type);
      const int64_t sequence = cache.add_sequence(), ends[] = {0, 1, 3, T};  // rows alone, a few, many
      for (int i = 0; i < 3; ++i) {
        const int64_t rows = ends[i + 1] - ends[i], offsets[] = {0, rows};
        const RaggedBatch batch{offsets, 1, rows};
        const ConstMat in = x.mat().row_block(ends[i], rows);
        cache.extend(&sequence, batch);
        cache.write(0, {&sequence, &ends[i], batch}, in.col_block(width, width), in.col_block(2 * width, width));
        cache.attend(0, {&sequence, &ends[i], batch}, in.col_block(0, width), o.mat().row_block(ends[i], rows));
      }
      return o;
    };
    const Guarded want = outputs(rounded, WeightType::kFloat32);
    expect_same_bits("head size " + std::to_string(head_size), outputs(qkv, WeightType::kBf16).mat(), want.mat());
    expect_same_for_all_thread_counts("bf16 cache", [&] { return Results().add(outputs(qkv, WeightType::kBf16)); });
  }
}

TEST_CASE("forked sequences share blocks until one writes, and freed blocks come back") {
  Random random(91);
  const int64_t T = 70;
  Guarded qkv = input(random, T, 3 * kWidth), other = qkv;
  for (int64_t r = 45; r < T; ++r) {
    for (int64_t c = 0; c < 3 * kWidth; ++c) other(r, c) = random.uniform();
  }
  Guarded o = output(T, kWidth), o2 = output(T, kWidth);
  KVCache cache(1, kHeads, kHeadSize, 6 * KVCache::kBlockTokens);
  const int64_t a = cache.add_sequence();
  step(cache, a, qkv, 0, 45, o);
  const int64_t b = cache.fork(a);
  CHECK(cache.length(b) == 45);
  CHECK(cache.used() == 2 * KVCache::kBlockTokens);
  step(cache, b, other, 45, T, o2);
  step(cache, a, qkv, 45, T, o);
  expect_same_bits("a", o.mat(), run(qkv, {45, T}).mat());
  expect_same_bits("b", o2.mat().row_block(45, T - 45), run(other, {45, T}).mat().row_block(45, T - 45));
  // Cut back and gone another way.
  cache.truncate(a, 45);
  step(cache, a, other, 45, T, o);
  expect_same_bits("a again", o.mat().row_block(45, T - 45), o2.mat().row_block(45, T - 45));
  CHECK_THROWS_AS(cache.truncate(a, T + 1), Error);
  cache.free_sequence(a);
  CHECK_THROWS_AS(cache.length(a), Error);
  cache.clear();
  CHECK(cache.used() == 0);
}

TEST_CASE("a cache at its capacity refuses more and stays as it was") {
  Random random(92);
  const Guarded qkv = input(random, 70, 3 * kWidth);
  Guarded o = output(70, kWidth);
  KVCache cache(1, kHeads, kHeadSize, 64);
  const int64_t a = cache.add_sequence();
  step(cache, a, qkv, 0, 64, o);
  CHECK(cache.used() == cache.capacity());
  CHECK_THROWS_AS(step(cache, a, qkv, 64, 65, o), Error);
  CHECK(cache.length(a) == 64);
  const int64_t b = cache.add_sequence();
  CHECK_THROWS_AS(step(cache, b, qkv, 0, 1, o), Error);
  cache.truncate(a, 32);
  step(cache, b, qkv, 0, 32, o);
  expect_same_bits("b", o.mat().row_block(0, 32), run(qkv, {64}).mat().row_block(0, 32));
  CHECK_THROWS_AS(KVCache(1, 0, 8, 10), Error);
}

TEST_CASE("the softmax of one query has the bits of its column in a tile") {
  const KernelTable& table = kernels_in_use();
  Random random(93);
  const int64_t width = table.width;
  for (const int64_t keys : around({width, 32})) {
    const std::vector<float> scores = random.vector(keys, -3.0f, 3.0f);
    std::vector<float> tile(static_cast<size_t>(keys * width)), row = scores;
    std::vector<float> max(static_cast<size_t>(width), -INFINITY), sum(max.size()), alpha(max.size());
    float row_max = -INFINITY, row_sum = 0, row_alpha = 0;
    for (int pass = 0; pass < 3; ++pass) {
      const float shift = static_cast<float>(pass);
      for (int64_t j = 0; j < keys; ++j) {
        row[static_cast<size_t>(j)] = scores[static_cast<size_t>(j)] + shift;
        std::fill_n(tile.begin() + j * width, width, row[static_cast<size_t>(j)]);
      }
      table.attention_softmax_tile(tile.data(), width, keys, width, 0, 0, false, max.data(), sum.data(), alpha.data());
      table.attention_softmax_row(row.data(), keys, &row_max, &row_sum, &row_alpha);
      for (int64_t j = 0; j < keys; ++j)
        CHECK(same_bits(row[static_cast<size_t>(j)], tile[static_cast<size_t>(j * width)]));
      CHECK(same_bits(row_max, max[0]));
      CHECK(same_bits(row_sum, sum[0]));
      CHECK(same_bits(row_alpha, alpha[0]));
    }
  }
}

}  // namespace
}  // namespace miaobi::test

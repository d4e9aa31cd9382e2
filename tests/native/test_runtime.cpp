// SPDX-License-Identifier: MIT
// The thread pool, aligned memory and the counter RNG.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <ctime>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "miaobi/check.h"
#include "miaobi/cpu.h"
#include "miaobi/memory.h"
#include "miaobi/rng.h"
#include "support.h"

namespace miaobi::test {
namespace {

// --- Threads ------------------------------------------------------------------------------------------------------

// How often each index was called.
std::vector<int> calls_of_loop(int64_t count) {
  const auto calls = std::make_unique<std::atomic<int>[]>(static_cast<size_t>(count) + 1);
  parallel_for(count, [&](int64_t i) { calls[static_cast<size_t>(i)].fetch_add(1); });
  std::vector<int> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(calls[static_cast<size_t>(i)].load());
  return out;
}
bool each_once(int64_t count) {
  for (const int calls : calls_of_loop(count)) {
    if (calls != 1) return false;
  }
  return true;
}

TEST_CASE("a parallel loop calls each index once and waits for all of them") {
  for (const int threads : {1, 2, 3, 8, 40}) {
    const ThreadCount in_force(threads);
    for (const int64_t count : {0, 1, 2, 3, 7, 1000}) CHECK(each_once(count));
    for (int repeat = 0; repeat < 300; ++repeat) REQUIRE(each_once(repeat % 20));
  }
}

TEST_CASE("parallel_ranges covers every element once, in chunks whose bounds are multiples of the grain") {
  for (const int threads : {1, 2, 3, 8}) {
    const ThreadCount in_force(threads);
    for (const int64_t count : {-1, 0, 1, 15, 16, 17, 1000, 100003}) {
      for (const int64_t grain : {1, 16, 1024}) {
        if (count > 10000 && grain == 1) continue;
        std::atomic<int64_t> sum{0}, wrong{0};
        parallel_ranges(count, grain, [&](int64_t begin, int64_t end) {
          sum += end - begin;
          wrong += begin % grain != 0 || begin >= end || (end != count && (end - begin) % grain != 0);
        });
        CHECK(sum == std::max<int64_t>(count, 0));
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("loops inside loops run on the calling thread and call each index once") {
  const ThreadCount threads(3);
  std::atomic<int64_t> inner{0}, strangers{0};
  parallel_for(20, [&](int64_t) {
    const std::thread::id here = std::this_thread::get_id();
    parallel_for(30, [&](int64_t) {
      strangers += std::this_thread::get_id() != here;
      parallel_for(2, [&](int64_t) { inner += 1; });
    });
  });
  CHECK(inner == 20 * 30 * 2);
  CHECK(strangers == 0);
}

TEST_CASE("many threads may start loops at once, while the number of threads changes") {
  const ThreadCount threads(4);
  std::atomic<int> failures{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 6; ++t) {
    callers.emplace_back([&, t] {
      for (int repeat = 0; repeat < 200; ++repeat) {
        if (t == 0) set_num_threads(1 + repeat % 5);
        if (!each_once(1 + (repeat * 7 + t) % 50)) failures += 1;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(failures == 0);
}

TEST_CASE("writes of a loop's tasks are seen after it") {
  const ThreadCount threads(4);
  std::vector<int64_t> out(5000);
  for (int64_t repeat = 1; repeat <= 50; ++repeat) {
    parallel_for(5000, [&](int64_t i) { out[static_cast<size_t>(i)] = i * repeat; });
    CHECK(std::accumulate(out.begin(), out.end(), int64_t{0}) == repeat * 4999 * 5000 / 2);
  }
}

TEST_CASE("no two threads of a loop have the same slot at a time, and no slot is past the end") {
  const ThreadCount threads(8);
  for (const int slots : {1, 2, 5, 8}) {
    std::vector<std::atomic<int>> inside(8);
    std::atomic<int64_t> shared{0}, outside{0}, calls{0};
    for (int repeat = 0; repeat < 50; ++repeat) {
      parallel_for_slots(40, slots, [&](int64_t, int slot) {
        outside += slot < 0 || slot >= slots;
        shared += inside[static_cast<size_t>(slot)].fetch_add(1) != 0;
        calls += 1;
        inside[static_cast<size_t>(slot)].fetch_sub(1);
      });
    }
    CHECK(calls == 50 * 40);
    CHECK(shared == 0);
    CHECK(outside == 0);
  }
}

TEST_CASE("a task that throws ends its loop with that exception, and the pool goes on") {
  for (const int n : {1, 3}) {
    const ThreadCount threads(n);
    for (const int64_t wrong : {0, 7, 99}) {
      std::string message;
      try {
        parallel_for(100, [&](int64_t i) {
          if (i == wrong) throw Error("task " + std::to_string(i));
        });
      } catch (const Error& e) {
        message = e.what();
      }
      CHECK(message == "task " + std::to_string(wrong));
      CHECK(each_once(100));
    }
    CHECK_THROWS_AS(parallel_for(100, [](int64_t) { throw Error("all"); }), Error);
    CHECK(each_once(100));
  }
}

TEST_CASE("the number of threads is refused below 1 and above 256, and stays") {
  const ThreadCount threads(2);
  CHECK_THROWS_AS(set_num_threads(0), Error);
  CHECK_THROWS_AS(set_num_threads(-3), Error);
  CHECK_THROWS_AS(set_num_threads(257), Error);
  CHECK(get_num_threads() == 2);
}

TEST_CASE("a library that nobody calls takes no processor time") {
  for (const int n : {2, 8}) {
    const ThreadCount threads(n);
    CHECK(each_once(1000));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // whoever waits has gone to sleep
    const std::clock_t before = std::clock();                    // of all threads
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    CHECK(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC < 0.02);
    CHECK(each_once(1000));
  }
}

#if defined(__linux__)
TEST_CASE("the pool leaves its threads all processors that they had, and works where they have but one") {
  const ThreadCount threads(2);
  cpu_set_t all, one;
  REQUIRE(sched_getaffinity(0, sizeof(all), &all) == 0);
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(sched_getcpu()), &one);
  std::atomic<int> changed{0};
  const auto loops = [&](const cpu_set_t& expected) {
    for (int repeat = 0; repeat < 200; ++repeat) {
      parallel_for(20, [&](int64_t) {
        cpu_set_t mine;
        if (sched_getaffinity(0, sizeof(mine), &mine) != 0 || !CPU_EQUAL(&mine, &expected)) changed += 1;
      });
    }
  };
  loops(all);
  CHECK(changed == 0);
  // A pool whose worker shares the caller's processor: a new process, for the threads of this one are allowed all.
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    if (sched_setaffinity(0, sizeof(one), &one) != 0) _exit(2);
    loops(one);
    _exit(changed == 0 ? 0 : 1);
  }
  int status = 1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}
#endif

#if !defined(_WIN32)
TEST_CASE("a forked child has a pool of its own, and so has its child; the parent's goes on") {
  const ThreadCount threads(3);
  CHECK(each_once(100));
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    bool good = each_once(100) && each_once(3);
    const pid_t grandchild = fork();
    if (grandchild == 0) _exit(each_once(50) ? 0 : 1);
    int status = 1;
    good = good && grandchild > 0 && waitpid(grandchild, &status, 0) == grandchild && status == 0;
    _exit(good && each_once(100) ? 0 : 1);
  }
  CHECK(each_once(100));
  int status = 1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(each_once(100));
}
#endif

TEST_CASE("the machine has a name, caches and at least one processor for us") {
  CHECK(available_processors() >= 1);
  CHECK_FALSE(cpu_name().empty());
  CHECK(cache_sizes().l1 > 0);
  CHECK(cache_sizes().l2 >= cache_sizes().l1);
}

// --- Memory -------------------------------------------------------------------------------------------------------

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(kAlignment) == 0; }

TEST_CASE("buffers are aligned, counted, moved and given back") {
  const int64_t count = allocation_count(), bytes = allocated_bytes();
  {
    Buffer<float> a(100, true), none(0), b;
    CHECK(aligned(a.data()));
    CHECK(a[0] == 0.0f);
    CHECK(a[99] == 0.0f);
    CHECK(none.data() == nullptr);
    CHECK(allocation_count() == count + 1);
    CHECK(allocated_bytes() == bytes + 400);
    const float* address = a.data();
    b = std::move(a);
    CHECK(b.data() == address);
    const Buffer<float> c(std::move(b));
    CHECK(c.data() == address);
    CHECK(allocation_count() == count + 1);
    Buffer<float> grows(10);
    const float* before = grows.data();
    CHECK(grows.reserve(10) == before);
    grows.reserve(20);
    CHECK(aligned(grows.data()));
    CHECK(grows.size() == 20);
  }
  CHECK(allocated_bytes() == bytes);
}

TEST_CASE("a workspace hands out aligned memory that does not overlap, and allocates nothing the second time") {
  Workspace workspace;
  const auto use = [&] {
    std::vector<std::pair<char*, int64_t>> pieces;
    for (const int64_t size : {1, 64, 65, 0, 5000, 3, 100000, 64}) {
      char* p = static_cast<char*>(workspace.bytes(size));
      CHECK(aligned(p));
      for (int64_t i = 0; i < size; ++i) p[i] = static_cast<char>(pieces.size());
      pieces.emplace_back(p, size);
    }
    for (size_t n = 0; n < pieces.size(); ++n) {
      for (int64_t i = 0; i < pieces[n].second; ++i) REQUIRE(pieces[n].first[i] == static_cast<char>(n));
    }
  };
  use();
  workspace.reset();
  use();
  const int64_t count = allocation_count();
  for (int repeat = 0; repeat < 3; ++repeat) {
    workspace.reset();
    use();
  }
  CHECK(allocation_count() == count);
}

TEST_CASE("a workspace's mark gives back what was handed out since, nested and across blocks") {
  Workspace workspace;
  float* first = workspace.floats(10);
  first[9] = 42.0f;
  float* begin = nullptr;
  for (int repeat = 0; repeat < 3; ++repeat) {
    const Workspace::Mark outer(workspace);
    float* a = workspace.floats(1000);
    if (repeat == 0) begin = a;
    CHECK(a == begin);
    {
      const Workspace::Mark inner(workspace);
      workspace.floats(100000)[99999] = 1.0f;
      workspace.floats(7)[6] = 2.0f;
    }
    a[999] = 3.0f;
    const Mat m = workspace.mat(3, 5);
    CHECK(m.stride == 5);
    m(2, 4) = 4.0f;
    CHECK(a[999] == 3.0f);
  }
  const int64_t count = allocation_count();
  {
    const Workspace::Mark again(workspace);
    CHECK(workspace.floats(1000) == begin);
  }
  CHECK(allocation_count() == count);
  CHECK(first[9] == 42.0f);

  workspace.reset();  // one block now
  const float* in_front = workspace.floats(10);
  for (int repeat = 0; repeat < 2; ++repeat) {
    const Workspace::Mark mark(workspace);
    CHECK(workspace.floats(10) == in_front + 16);
  }
}

TEST_CASE("scratch belongs to its thread and area and grows only") {
  float* mine = thread_scratch(Scratch::kPackA, 100);
  CHECK(aligned(mine));
  CHECK(thread_scratch(Scratch::kPackA, 50) == mine);
  CHECK(thread_scratch(Scratch::kPackB, 50) != mine);
  float* other = nullptr;
  const int64_t before = allocated_bytes();
  std::thread([&] { other = thread_scratch(Scratch::kPackA, 100); }).join();
  CHECK(other != mine);
  CHECK(allocated_bytes() == before);  // the thread took its scratch with it
}

TEST_CASE("a loop's scratch is a piece for each thread, aligned and apart") {
  const ThreadCount threads(5);
  const LoopScratch scratch(Scratch::kAttention, 37);
  REQUIRE(scratch.slots == 5);
  parallel_for_slots(200, scratch.slots, [&](int64_t i, int slot) {
    std::fill_n(scratch[slot], 37, static_cast<float>(i));
    for (int j = 0; j < 37; ++j) {
      if (scratch[slot][j] != static_cast<float>(i)) throw Error("overwritten");
    }
  });
  for (int slot = 0; slot < 5; ++slot) CHECK(aligned(scratch[slot]));
  CHECK(scratch[1] - scratch[0] >= 37);
}

// --- Random numbers -----------------------------------------------------------------------------------------------

TEST_CASE("Philox 4x32-10 gives the vectors that its authors published") {
  using Words = std::array<uint32_t, 4>;
  CHECK(Rng(0, 0).block(0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const uint64_t ones = ~uint64_t{0};
  CHECK(Rng(ones, ones).block(ones) == Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(Rng(0x299f31d0a4093822, 0x0370734413198a2e).block(0x85a308d3243f6a88) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("uniform numbers lie strictly between 0 and 1, fill it evenly and depend on their index alone") {
  const Rng rng(1, 2);
  const int64_t n = 200000;
  std::array<int, 16> bins{};
  double sum = 0;
  bool inside = true;
  for (int64_t i = 0; i < n; ++i) {
    const float u = rng.uniform(static_cast<uint64_t>(i));
    inside = inside && u > 0.0f && u < 1.0f;
    sum += u;
    ++bins[static_cast<size_t>(u * 16)];
  }
  CHECK(inside);
  CHECK(std::fabs(sum / n - 0.5) < 0.003);
  for (const int count : bins) CHECK(std::abs(count - n / 16) < 600);
  CHECK(rng.uniform(777) == Rng(1, 2).uniform(777));
  CHECK(rng.uniform(777) != Rng(1, 3).uniform(777));
  CHECK(rng.uniform(777) != Rng(2, 2).uniform(777));
}

TEST_CASE("fault: a normal number that is infinite, from the logarithm of 0") {
  const Rng rng(0, 0);
  // Blocks of this stream, found by search, whose words have no or all of the 23 bits that count: the smallest and the
  // largest uniform numbers there are.
  const uint64_t low = 14883995, high = 4826271, low_angle = 10639176, high_angle = 2330056;
  REQUIRE((rng.block(low)[0] >> 9) == 0);
  REQUIRE((rng.block(high)[0] >> 9) == 0x7fffff);
  REQUIRE((rng.block(low_angle)[2] >> 9) == 0);
  REQUIRE((rng.block(high_angle)[2] >> 9) == 0x7fffff);
  CHECK(rng.uniform(4 * low) == 0x1p-24f);
  CHECK(rng.uniform(4 * high) == 1.0f - 0x1p-24f);
  for (const uint64_t block : {low, high, low_angle, high_angle}) {
    for (uint64_t i = 0; i < 4; ++i) CHECK(std::fabs(rng.normal(4 * block + i)) < 6.0f);
  }
}

TEST_CASE("normal numbers are finite, with mean 0, variance 1, the right tails and no correlation in a pair") {
  const Rng rng(3, 4);
  const int64_t n = 400000;
  double sum = 0, squares = 0, fourth = 0, pairs = 0, last = 0;
  int64_t beyond_two = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    const double x = rng.normal(static_cast<uint64_t>(i));
    finite = finite && std::fabs(x) < 6;
    sum += x;
    squares += x * x;
    fourth += x * x * x * x;
    beyond_two += std::fabs(x) > 2;
    if (i % 2 == 1) pairs += last * x;
    last = x;
  }
  CHECK(finite);
  CHECK(std::fabs(sum / n) < 0.01);
  CHECK(std::fabs(squares / n - 1) < 0.01);
  CHECK(std::fabs(fourth / n - 3) < 0.08);
  CHECK(std::fabs(static_cast<double>(beyond_two) / n - 0.0455) < 0.002);
  CHECK(std::fabs(pairs / n * 2) < 0.01);
}

}  // namespace
}  // namespace miaobi::test

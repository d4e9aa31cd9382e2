// SPDX-License-Identifier: MIT
// Parallel loops over a process-wide pool.
#pragma once

#include <cstdint>
#include <type_traits>

namespace miaobi {

// Number of threads that parallel loops use, the caller included. Starts as available_processors().
// Throws Error unless 1 <= n <= 256.
void set_num_threads(int n);
int get_num_threads();

// Calls body(context, i, slot) for every i in [0, count), each exactly once, on the pool's threads and the
// calling one; returns when all are done. `slot` is in [0, slots) and no two threads of the loop have the
// same at a time, so it may index scratch memory; no more than `slots` threads take part. Tasks are claimed one by one,
// so a thread that loses its processor holds up no more than the task it is in. Which thread runs a task never matters
// to a result.
//
// A loop inside a task, a loop of one task, and a loop that is started while another Python or C++ thread
// has the pool all run on the calling thread alone. After fork() the child gets a pool of its own.
// Where a body throws, its thread takes no more tasks and the first exception is thrown again here at the end.
void parallel_run(int64_t count, int slots, void (*body)(void* context, int64_t index, int slot), void* context);

// body(index, slot).
template <class Body>
void parallel_for_slots(int64_t count, int slots, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  parallel_run(
      count, slots, [](void* context, int64_t index, int slot) { (*static_cast<Plain*>(context))(index, slot); },
      const_cast<std::remove_const_t<Plain>*>(&body));
}

// body(index).
template <class Body>
void parallel_for(int64_t count, Body&& body) {
  parallel_for_slots(count, get_num_threads(), [&](int64_t index, int) { body(index); });
}

// body(begin, end) over [0, count) in chunks of at least `grain`; the chunks' boundaries are multiples of
// `grain` and depend on the number of threads, so bodies must treat elements independently.
template <class Body>
void parallel_ranges(int64_t count, int64_t grain, Body&& body) {
  if (count <= 0) return;
  const int64_t grains = (count + grain - 1) / grain;
  const int64_t wanted = 4 * static_cast<int64_t>(get_num_threads());
  const int64_t per_task = grains <= wanted ? 1 : (grains + wanted - 1) / wanted;
  const int64_t tasks = (grains + per_task - 1) / per_task;
  parallel_for(tasks, [&](int64_t t) {
    const int64_t begin = t * per_task * grain;
    const int64_t end = begin + per_task * grain < count ? begin + per_task * grain : count;
    body(begin, end);
  });
}

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// The process-wide thread pool behind parallel_run.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#include "miaobi/check.h"
#include "miaobi/cpu.h"
#include "miaobi/threads.h"

namespace miaobi {
namespace {

constexpr int kMaxThreads = 256;

// How long a waiting thread looks before it sleeps. Longer than what a program does between two steps of decoding: to
// wake a thread costs as much as a tenth of such a step, and on a busy machine its turn comes only milliseconds later.
// Those milliseconds are also the measure of what a wait may burn there, and an idle library burns it once.
constexpr std::chrono::microseconds kPatience{200};
constexpr std::chrono::microseconds kHaste{10};  // where there are more threads than processors

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// True as soon as ready() is, false where it is not for so long.
template <class Ready>
bool spin(std::chrono::microseconds patience, Ready&& ready) {
  if (ready()) return true;
  const auto end = std::chrono::steady_clock::now() + patience;
  do {
    for (int i = 0; i < 4; ++i) {  // a look at the clock costs as much as a pause
      pause();
      if (ready()) return true;
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

#if defined(__linux__)
int this_processor() { return sched_getcpu(); }

// A thread that is woken may be put on the processor of the one that woke it, and then computes in its place, not
// beside it. Taking the processor out of the set of those allowed for a moment moves the calling thread elsewhere.
void leave_processor(int processor) {
  cpu_set_t allowed;
  if (processor < 0 || processor >= CPU_SETSIZE || sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  cpu_set_t others = allowed;
  CPU_CLR(static_cast<size_t>(processor), &others);
  if (sched_setaffinity(0, sizeof(others), &others) == 0) sched_setaffinity(0, sizeof(allowed), &allowed);
}
#else
int this_processor() { return -1; }
void leave_processor(int) {}
#endif

class Pool {
 public:
  // Never destroyed: workers may outlive main's statics, and a forked child must not join its parent's.
  static Pool& instance() {
    Pool* pool = current().load(std::memory_order_acquire);
    if (pool == nullptr) {
      static std::once_flag once;
      std::call_once(once, [] {
#if !defined(_WIN32)
        // The child has only the forking thread; the old pool, its locks in any state, is left behind.
        pthread_atfork(nullptr, nullptr, [] { current().store(new Pool, std::memory_order_release); });
#endif
        current().store(new Pool, std::memory_order_release);
      });
      pool = current().load(std::memory_order_acquire);
    }
    return *pool;
  }

  void run(int64_t count, int threads, void (*body)(void*, int64_t, int), void* context) {
    std::unique_lock<std::mutex> owner(owner_, std::defer_lock);
    if (count <= 1 || threads == 1 || inside_task() || !owner.try_lock()) {
      for (int64_t i = 0; i < count; ++i) body(context, i, 0);
      return;
    }
    start_workers(threads - 1);
    body_ = body;
    context_ = context;
    count_ = count;
    processor_ = each_has_a_processor() ? this_processor() : -1;
    next_.store(0, std::memory_order_relaxed);
    const uint64_t loop = state_.load(std::memory_order_relaxed) / kLoop + 1;
    state_.store(loop * kLoop + static_cast<uint64_t>(threads - 1) * kPlace, std::memory_order_seq_cst);
    const int awake = static_cast<int>(workers_.size()) - sleeping_.load(std::memory_order_seq_cst);
    if (awake < threads - 1) notify(wake_);
    work(0);
    // No more tasks: whoever has not joined yet stays out, whoever has is waited for.
    state_.fetch_and(~(kLoop - kPlace), std::memory_order_relaxed);
    const auto done = [this] { return state_.load(std::memory_order_seq_cst) % kPlace == 0; };
    if (!spin(patience(), done)) {
      std::unique_lock<std::mutex> lock(mutex_);
      caller_sleeps_.store(true, std::memory_order_seq_cst);
      done_.wait(lock, done);
      caller_sleeps_.store(false, std::memory_order_relaxed);
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  static std::atomic<int>& threads_wanted() {
    static std::atomic<int> n{available_processors() < kMaxThreads ? available_processors() : kMaxThreads};
    return n;
  }

 private:
  static std::atomic<Pool*>& current() {
    static std::atomic<Pool*> pool{nullptr};
    return pool;
  }
  static bool each_has_a_processor() {
    static const int processors = available_processors();
    return get_num_threads() <= processors;
  }
  static std::chrono::microseconds patience() { return each_has_a_processor() ? kPatience : kHaste; }
  static bool& inside_task() {
    thread_local bool inside = false;
    return inside;
  }

  void notify(std::condition_variable& condition) {
    // Who has looked and not begun to wait holds the lock.
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }
    condition.notify_all();
  }

  void start_workers(int count) {
    while (static_cast<int>(workers_.size()) < count) {
      const int index = static_cast<int>(workers_.size()) + 1;
      workers_.emplace_back([this, index] { worker(index); });
      workers_.back().detach();
    }
  }

  void work(int slot) {
    inside_task() = true;
    try {
      for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) body_(context_, i, slot);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    inside_task() = false;
  }

  // Takes a place in loop `seen` and returns its slot, or 0 where there is none.
  int join(uint64_t seen) {
    uint64_t state = state_.load(std::memory_order_relaxed);
    while (state / kLoop == seen && state % kLoop >= kPlace) {
      if (state_.compare_exchange_weak(state, state - kPlace + 1, std::memory_order_acq_rel)) {
        return static_cast<int>(state % kLoop / kPlace);
      }
    }
    return 0;
  }

  // The `index`-th thread, the caller being the first.
  void worker(int index) {
    uint64_t seen = 0;
    const auto comes = [&] { return state_.load(std::memory_order_seq_cst) / kLoop != seen; };
    while (true) {
      if (!spin(index < get_num_threads() ? patience() : std::chrono::microseconds{0}, comes)) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, comes);
        sleeping_.fetch_sub(1, std::memory_order_relaxed);
      }
      seen = state_.load(std::memory_order_relaxed) / kLoop;
      const int slot = join(seen);
      if (slot == 0) continue;
      if (processor_ >= 0 && processor_ == this_processor()) leave_processor(processor_);
      work(slot);
      const uint64_t before = state_.fetch_sub(1, std::memory_order_seq_cst);
      if (before % kPlace == 1 && caller_sleeps_.load(std::memory_order_seq_cst)) notify(done_);
    }
  }

  std::mutex owner_;  // held by the thread whose loop has the pool

  std::mutex mutex_;  // of the condition variables, and guards error_
  std::condition_variable wake_, done_;
  std::exception_ptr error_;  // the first that a task threw
  std::vector<std::thread> workers_;

  // What a loop is. The caller writes it while no worker is in a loop; joining and leaving through state_ orders it.
  void (*body_)(void*, int64_t, int) = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  int processor_ = -1;  // the caller's, where each thread is to have one of its own

  // The number of the loop, the workers that may still join it, and those that are in it, in one word: a worker either
  // joins before the caller closes the loop, and is waited for, or finds no place. Lines of their own, for all threads
  // look at the one and write the other.
  static constexpr uint64_t kPlace = uint64_t{1} << 16, kLoop = uint64_t{1} << 32;
  alignas(64) std::atomic<uint64_t> state_{0};
  std::atomic<int> sleeping_{0};  // workers
  std::atomic<bool> caller_sleeps_{false};
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace

void set_num_threads(int n) {
  MIAOBI_CHECK(n >= 1 && n <= kMaxThreads, "[set_num_threads] expected 1 to ", kMaxThreads, " threads, got ", n);
  Pool::threads_wanted().store(n, std::memory_order_relaxed);
}

int get_num_threads() { return Pool::threads_wanted().load(std::memory_order_relaxed); }

void parallel_run(int64_t count, int slots, void (*body)(void*, int64_t, int), void* context) {
  Pool::instance().run(count, slots, body, context);
}

}  // namespace miaobi

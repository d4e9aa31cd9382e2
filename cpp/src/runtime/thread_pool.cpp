// SPDX-License-Identifier: MIT
// The process-wide thread pool behind parallel_run.
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
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

// How often a waiting thread looks before it sleeps: about ten microseconds, a few times the gap between
// two loops of a training step. On a busy machine that is all a wait can burn.
constexpr int kSpins = 300;

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

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
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      body_ = body;
      context_ = context;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      places_ = threads - 1;
      generation_.fetch_add(1, std::memory_order_release);
    }
    if (sleeping_.load(std::memory_order_seq_cst) > 0) wake_.notify_all();
    work(0);
    // No more tasks: whoever has not joined yet stays out, whoever has is waited for.
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      places_ = 0;
    }
    for (int i = 0; i < kSpins && active_.load(std::memory_order_acquire) != 0; ++i) pause();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return active_ == 0; });
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
  static bool& inside_task() {
    thread_local bool inside = false;
    return inside;
  }

  void start_workers(int count) {
    while (static_cast<int>(workers_.size()) < count) {
      workers_.emplace_back([this] { worker(); });
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

  void worker() {
    uint64_t seen = 0;
    while (true) {
      for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen; ++i) pause();
      std::unique_lock<std::mutex> lock(mutex_);
      if (generation_ == seen) {
        sleeping_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return generation_ != seen; });
        sleeping_.fetch_sub(1, std::memory_order_seq_cst);
      }
      seen = generation_;
      if (places_ == 0) continue;
      const int slot = places_--;
      active_.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();
      work(slot);
      lock.lock();
      if (active_.fetch_sub(1, std::memory_order_release) == 1) done_.notify_one();
    }
  }

  std::mutex owner_;  // held by the thread whose loop has the pool

  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> generation_{0};
  int places_ = 0;              // workers that may still join this loop
  std::exception_ptr error_;    // the first that a task threw
  std::atomic<int> active_{0};  // workers in it
  std::atomic<int> sleeping_{0};
  std::vector<std::thread> workers_;

  void (*body_)(void*, int64_t, int) = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
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

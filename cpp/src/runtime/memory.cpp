// SPDX-License-Identifier: MIT
// Aligned allocation with its counters, the workspace and the threads' scratch areas.
#include "miaobi/memory.h"

#include <array>
#include <atomic>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "miaobi/threads.h"

namespace miaobi {
namespace {
std::atomic<int64_t> g_allocations{0};
std::atomic<int64_t> g_bytes{0};

// A buffer of at least one huge page begins at one and asks for them: rows of a matrix lie pages apart, and in a
// virtual machine each entry that the TLB misses costs a walk through two page tables.
constexpr int64_t kHugePage = 2 << 20;

std::align_val_t alignment_of(int64_t bytes) {
  return std::align_val_t{static_cast<size_t>(bytes >= kHugePage ? kHugePage : kAlignment)};
}
}  // namespace

int64_t allocation_count() { return g_allocations.load(std::memory_order_relaxed); }
int64_t allocated_bytes() { return g_bytes.load(std::memory_order_relaxed); }

void* aligned_allocate(int64_t bytes) {
  if (bytes <= 0) return nullptr;
  void* p = ::operator new(static_cast<size_t>(bytes), alignment_of(bytes));
#if defined(__linux__)
  // Whole pages only: what is left at the end takes no more memory than before. A refusal changes nothing but speed.
  if (bytes >= kHugePage) madvise(p, static_cast<size_t>(bytes / kHugePage * kHugePage), MADV_HUGEPAGE);
#endif
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  g_bytes.fetch_add(bytes, std::memory_order_relaxed);
  return p;
}

void aligned_release(void* p, int64_t bytes) noexcept {
  if (p == nullptr) return;
  ::operator delete(p, alignment_of(bytes));
  g_bytes.fetch_sub(bytes, std::memory_order_relaxed);
}

void* Workspace::bytes(int64_t size) {
  size = (size + kAlignment - 1) / kAlignment * kAlignment;
  while (block_ < blocks_.size() && used_ + size > blocks_[block_].size()) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size()) blocks_.emplace_back(size);
  void* p = blocks_[block_].data() + used_;
  used_ += size;
  return p;
}

void Workspace::reset() {
  if (blocks_.size() > 1) {
    int64_t total = 0;
    for (const auto& block : blocks_) total += block.size();
    blocks_.clear();
    blocks_.emplace_back(total);
  }
  block_ = 0;
  used_ = 0;
}

float* thread_scratch(Scratch area, int64_t floats) {
  thread_local std::array<Buffer<float>, static_cast<size_t>(Scratch::kCount)> areas;
  return areas[static_cast<size_t>(area)].reserve(floats);
}

LoopScratch::LoopScratch(Scratch area, int64_t floats) : slots(get_num_threads()) {
  constexpr int64_t kLine = kAlignment / static_cast<int64_t>(sizeof(float));
  each = (floats + kLine - 1) / kLine * kLine;
  base = thread_scratch(area, each * slots);
}

}  // namespace miaobi

// SPDX-License-Identifier: MIT
// Aligned memory: buffers that own it and a stack-like workspace that lends it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "miaobi/check.h"
#include "miaobi/mat.h"

namespace miaobi {

constexpr int64_t kAlignment = 64;  // a cache line, and the widest vector

// Every buffer of the engine comes from here, so that a test can see that a training step takes none:
// the number of allocations made so far in this process.
int64_t allocation_count();
// Bytes held now by all buffers of the engine.
int64_t allocated_bytes();

void* aligned_allocate(int64_t bytes);  // throws std::bad_alloc
void aligned_release(void* p, int64_t bytes) noexcept;

// Uninitialised (or zeroed) elements, aligned to kAlignment.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size, bool zeroed = false)
      : data_(static_cast<T*>(aligned_allocate(size * static_cast<int64_t>(sizeof(T))))), size_(size) {
    if (zeroed) {
      for (int64_t i = 0; i < size; ++i) data_[i] = T{};
    }
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() { aligned_release(data_, size_ * static_cast<int64_t>(sizeof(T))); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

  // Room for at least `size` elements; what was there is lost when it grows.
  T* reserve(int64_t size) {
    if (size > size_) {
      *this = Buffer();  // the old one goes before the new one comes
      *this = Buffer(size);
    }
    return data_;
  }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

// Scratch memory that is handed out upwards and taken back in one go. It grows by adding blocks; after
// reset() the blocks are merged into one, so a repeated use of the same sizes allocates nothing.
class Workspace {
 public:
  float* floats(int64_t count) { return static_cast<float*>(bytes(count * static_cast<int64_t>(sizeof(float)))); }
  Mat mat(int64_t rows, int64_t cols) { return Mat(floats(rows * cols), rows, cols); }
  void* bytes(int64_t size);

  // Everything handed out is given back; pointers to it become invalid.
  void reset();

  // Gives back what was handed out since the mark was made.
  class Mark {
   public:
    explicit Mark(Workspace& w) : workspace_(w), block_(w.block_), used_(w.used_) {}
    ~Mark() {
      workspace_.block_ = block_;
      workspace_.used_ = used_;
    }
    Mark(const Mark&) = delete;
    Mark& operator=(const Mark&) = delete;

   private:
    Workspace& workspace_;
    size_t block_;
    int64_t used_;
  };

 private:
  std::vector<Buffer<char>> blocks_;
  size_t block_ = 0;  // index of the block that is being handed out
  int64_t used_ = 0;  // bytes of it
};

// Grow-only scratch of the calling thread, one area for each purpose; valid until the same thread asks for the
// same area again. A parallel loop takes the areas of all its threads from the thread that starts it, before it
// starts: which thread gets which task then decides nothing about memory.
enum class Scratch { kPackA, kPackB, kPairs, kAttention, kSampling, kCount };
float* thread_scratch(Scratch area, int64_t floats);

// An area of the calling thread cut into one piece of `floats` for each thread of a parallel loop.
struct LoopScratch {
  LoopScratch(Scratch area, int64_t floats);
  float* operator[](int slot) const { return base + slot * each; }

  int slots;  // for parallel_for_slots
  int64_t each;
  float* base;
};

}  // namespace miaobi

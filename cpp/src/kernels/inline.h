// SPDX-License-Identifier: MIT
// Compiler words that the kernels need and C++20 has no name for.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#define MIAOBI_INLINE __forceinline
#define MIAOBI_RESTRICT __restrict
#define MIAOBI_UNROLL
#define MIAOBI_PREFETCH(p) _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0)
#define MIAOBI_PREFETCH_L2(p) _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1)
#else
#define MIAOBI_INLINE inline __attribute__((always_inline))
#define MIAOBI_RESTRICT __restrict__
#define MIAOBI_PREFETCH(p) __builtin_prefetch(p)
#define MIAOBI_PREFETCH_L2(p) __builtin_prefetch(p, 0, 2)
#if defined(__clang__)
#define MIAOBI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MIAOBI_UNROLL _Pragma("GCC unroll 64")
#endif
#endif

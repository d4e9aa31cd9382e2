// SPDX-License-Identifier: MIT
// Stands in for the compiler's <immintrin.h> where the AVX-512 kernels are compiled for a machine that has only AVX2:
// SIMDe computes most 512-bit intrinsics with narrower ones, and the loops below those that it lacks. For tests only.
#if !defined(MIAOBI_EMULATED_IMMINTRIN)
#define MIAOBI_EMULATED_IMMINTRIN

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

struct MiaobiLanes {
  float f[16];
  explicit MiaobiLanes(__m512 x) { simde_mm512_storeu_ps(f, x); }
  explicit MiaobiLanes() : f{} {}
  __m512 vector() const { return simde_mm512_loadu_ps(f); }
};

static inline __m512 miaobi_maskz_loadu_ps(__mmask16 mask, const void* p) {
  MiaobiLanes out;
  for (int i = 0; i < 16; ++i) {
    if ((mask >> i & 1) != 0) out.f[i] = static_cast<const float*>(p)[i];
  }
  return out.vector();
}
static inline void miaobi_mask_storeu_ps(void* p, __mmask16 mask, __m512 x) {
  const MiaobiLanes in(x);
  for (int i = 0; i < 16; ++i) {
    if ((mask >> i & 1) != 0) static_cast<float*>(p)[i] = in.f[i];
  }
}
static inline __m512i miaobi_cvtps_epi32(__m512 x) {
  const MiaobiLanes in(x);
  int out[16];
  for (int i = 0; i < 16; i += 8) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_cvtps_epi32(_mm256_loadu_ps(in.f + i)));
  }
  return simde_mm512_loadu_si512(out);
}
static inline __m256 miaobi_extractf32x8_ps(__m512 x, int half) { return _mm256_loadu_ps(MiaobiLanes(x).f + 8 * half); }
static inline __m512 miaobi_shuffle_f32x4(__m512 a, __m512 b, int order) {
  const MiaobiLanes in[2] = {MiaobiLanes(a), MiaobiLanes(b)};
  MiaobiLanes out;
  for (int i = 0; i < 16; ++i) out.f[i] = in[i / 8].f[(order >> (2 * (i / 4)) & 3) * 4 + i % 4];
  return out.vector();
}

static inline __m512i miaobi_cvtepu16_epi32(__m256i x) {
  int out[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 8), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)));
  return simde_mm512_loadu_si512(out);
}
static inline __m256i miaobi_cvtepi32_epi16(__m512i x) {
  int in[16];
  short out[16];
  simde_mm512_storeu_si512(in, x);
  for (int i = 0; i < 16; ++i) out[i] = static_cast<short>(in[i]);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(out));
}
static inline __m512 miaobi_insertf32x4(__m512 x, __m128 part, int place) {
  MiaobiLanes lanes(x);
  _mm_storeu_ps(lanes.f + 4 * place, part);
  return lanes.vector();
}
// Pairs of bfloat16 in 32 bits: the odd element first.
using MiaobiPairs = __m512i;
static inline __m512 miaobi_dpbf16_ps(__m512 c, MiaobiPairs a, MiaobiPairs b) {
  MiaobiLanes sums(c);
  unsigned x[16], y[16];
  simde_mm512_storeu_si512(x, a);
  simde_mm512_storeu_si512(y, b);
  for (int i = 0; i < 16; ++i) {
    for (const unsigned shift : {0u, 16u}) {
      const unsigned u = x[i] << shift & 0xffff0000u, v = y[i] << shift & 0xffff0000u;
      float p, q;
      __builtin_memcpy(&p, &u, 4);
      __builtin_memcpy(&q, &v, 4);
      sums.f[i] += p * q;
    }
  }
  return sums.vector();
}

#undef _mm512_maskz_loadu_ps
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepi32_epi16
#undef _mm512_insertf32x4
#undef _mm512_dpbf16_ps
#define _mm512_cvtepu16_epi32 miaobi_cvtepu16_epi32
#define _mm512_cvtepi32_epi16 miaobi_cvtepi32_epi16
#define _mm512_insertf32x4 miaobi_insertf32x4
#define _mm512_dpbf16_ps miaobi_dpbf16_ps
#define __m512bh MiaobiPairs
#undef _mm512_mask_storeu_ps
#undef _mm512_cvtps_epi32
#undef _mm512_extractf32x8_ps
#undef _mm512_shuffle_f32x4
#define _mm512_maskz_loadu_ps miaobi_maskz_loadu_ps
#define _mm512_mask_storeu_ps miaobi_mask_storeu_ps
#define _mm512_cvtps_epi32 miaobi_cvtps_epi32
#define _mm512_extractf32x8_ps miaobi_extractf32x8_ps
#define _mm512_shuffle_f32x4 miaobi_shuffle_f32x4

#else
#include_next <immintrin.h>
#endif

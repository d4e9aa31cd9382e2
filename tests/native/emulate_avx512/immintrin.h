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

#undef _mm512_maskz_loadu_ps
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

// SPDX-License-Identifier: MIT
// The plain-data contract between the engine and the code compiled for one instruction set.
//
// Every function computes each output element in one fixed order that depends neither on the number of
// threads nor on how many rows or columns are computed together: sums over K are one chain of fused
// multiply-adds in ascending k that starts from the element already in C (or from zero).
#pragma once

#include <cstddef>
#include <cstdint>

#include "miaobi/gemm_types.h"

namespace miaobi {

// Where a packed or strided operand of gemm_block lies. Element (i, k) of the left one is
// data[(i / height) * panel_stride + k * k_stride + i % height], where height is at most mr; the right one likewise
// with nr for height. A right operand may be kept as bfloat16: then `data` is not used, and `bf16` has whole panels. Of
// a row of those, elements i and nr / 2 + i lie side by side: a shift and a mask widen them, and nothing has to cross
// lanes.
struct Panels {
  const float* data;
  int64_t panel_stride;
  int64_t k_stride;
  int64_t height = 0;  // 0: mr; of the left operand alone
  const uint16_t* bf16 = nullptr;
};

// A right operand that is not packed, but lies as it is stored, (K, N): from kStoredRows rows on, gemm_block is at its
// best where it gets kStoredDepth of it at a time, over whole rows. That many lines of a panel, 4 or 8 KB, stay in L1;
// deeper, and their pages no longer fit a TLB of 64 entries. Fewer rows are done with a line too soon for that: 8 rows
// of B at a time are streams that the prefetcher of the machine follows.
constexpr int64_t kStoredRows = 4, kStoredDepth = 64;

struct AdamWParams {
  float lr;  // step size of this step
  float beta1;
  float beta2;
  float eps;
  float weight_decay;  // 0 for vectors
  float bias1;         // 1 / (1 - beta1^t)
  float bias2;         // 1 / (1 - beta2^t)
  float grad_scale;    // clipping factor, applied to g first
};

// One head of one sequence: (T, D) each, T of q at most that of k. Key j is visible to query i where j <= i if causal.
struct AttentionHead {
  ConstMat q, k, v;
  bool causal;
};
// Matrices that are needed soon: what a head writes at its end, and what the next one reads. Rows of a head are a line
// or two each, far apart, and no machine's prefetcher follows them; they are fetched while the head is computed.
struct Upcoming {
  static constexpr int32_t kMost = 8;
  ConstMat matrices[kMost];
  int32_t count = 0;
};
struct AttentionGradients {
  ConstMat d_o, o;
  const float* lse;
  int64_t lse_stride;
  Mat dq, dk, dv;
};

// The sampler's rows over a vocabulary are of whole kSampleLanes floats. Sums are taken by strata: stratum
// b * kSampleLanes + l has the elements of lane l in block b, b * kSampleBlock + r * kSampleLanes + l, in order of r.
constexpr int64_t kSampleLanes = 32, kSampleBlock = 1024;
// A place in the order of keys, the largest first and among equal ones the smaller id.
struct SampleRank {
  float key;  // not negative
  int64_t id;
};

struct KernelTable {
  const char* name;         // "avx2"
  const char* description;  // "AVX2 + FMA"
  int32_t width;            // floats in a vector
  int32_t mr;               // rows of a GEMM tile
  int32_t nr;               // columns of a GEMM tile

  // --- GEMM -----------------------------------------------------------------------------------------
  // C[m x n] = (load_c ? C : 0) + A B over k; then the epilogue where it is not null.
  void (*gemm_block)(int64_t m, int64_t n, int64_t k, const Panels& a, const Panels& b, float* c, int64_t ldc,
                     bool load_c, const Epilogue* epilogue);
  // y[n] = (accumulate ? y : 0) + x[k] op(B); B is stored (K, N) where k_major, else (N, K), with rows ldb apart; k >
  // 0.
  void (*gemv)(int64_t n, int64_t k, const float* x, const float* b, int64_t ldb, bool k_major, float* y,
               bool accumulate);
  // The epilogue alone, on `rows` x `cols` elements of C.
  void (*epilogue)(const Epilogue& e, int64_t rows, int64_t cols, float* c, int64_t ldc);
  // Packs op(X)[i0 .. i0+count) x [k0 .. k0+k) into panels of `panel` (mr or nr) at dst: element (i, k) at
  // dst[(i / panel) * panel * k_count + k * panel + i % panel]. dst has room for whole panels + width.
  void (*pack)(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel, float* dst);
  // The same on pairs of bfloat16 along k; null where there is no instruction for them. Sums are float32, pair by pair
  // in ascending k. Panels are contiguous: a panel of `height` rows, or nr columns, takes that many times `pairs`.
  void (*gemm_pairs_block)(int64_t m, int64_t n, int64_t pairs, const uint32_t* a, int64_t height, const uint32_t* b,
                           float* c, int64_t ldc, bool load_c, const Epilogue* epilogue);
  // As `pack`, in pairs; `scratch` holds one panel in float32, and dst room for whole panels + width.
  void (*pack_pairs)(const Operand& x, int64_t i0, int64_t count, int64_t k0, int64_t k, int64_t panel, float* scratch,
                     uint32_t* dst);
  // bfloat16 to float32 and back, ties to even.
  void (*widen)(const uint16_t* x, int64_t n, float* y);
  void (*narrow)(const float* x, int64_t n, uint16_t* y);
  // The same of `rows` rows of a right operand's panels, nr elements each, as Panels has them.
  void (*widen_panels)(const uint16_t* x, int64_t rows, float* y);
  void (*narrow_panels)(const float* x, int64_t rows, uint16_t* y);
  // dst[c * ldd + r] = scale * src[r * lds + c]. dst rows have room for rows rounded up to width.
  void (*transpose)(const float* src, int64_t lds, int64_t rows, int64_t cols, float scale, float* dst, int64_t ldd);

  // --- LayerNorm ------------------------------------------------------------------------------------
  void (*layer_norm_stats)(const float* x, int64_t stride, int64_t rows, int64_t cols, float eps, float* mean,
                           float* rstd);
  void (*layer_norm_apply)(const float* x, int64_t stride, int64_t rows, int64_t cols, const float* mean,
                           const float* rstd, const float* gamma, const float* beta, float* y, int64_t y_stride);
  // dx (+)= rstd (g - mean(g) - xhat mean(g xhat)), g = dy gamma. dx may be dy.
  void (*layer_norm_backward_rows)(const float* dy, int64_t dy_stride, const float* x, int64_t x_stride, int64_t rows,
                                   int64_t cols, const float* mean, const float* rstd, const float* gamma, float* dx,
                                   int64_t dx_stride, bool accumulate);
  // dgamma[c] += sum_r dy xhat; dbeta[c] += sum_r dy, for `cols` columns, r ascending.
  void (*layer_norm_backward_params)(const float* dy, int64_t dy_stride, const float* x, int64_t x_stride, int64_t rows,
                                     int64_t cols, const float* mean, const float* rstd, float* dgamma, float* dbeta);

  // --- Elementwise; y may be x ----------------------------------------------------------------------
  void (*exp)(const float* x, int64_t n, float* y);
  void (*exp2)(const float* x, int64_t n, float* y);  // of attention; x <= 128
  void (*tanh)(const float* x, int64_t n, float* y);
  void (*activation)(Activation kind, const float* x, int64_t n, float* y);
  void (*activation_backward)(Activation kind, const float* x, const float* dy, int64_t n, float* dx);  // dx may be dy
  void (*add)(const float* x, int64_t n, float* y);                                                     // y += x
  void (*scale)(float a, int64_t n, float* y);                                                          // y *= a
  void (*column_sums_add)(const float* x, int64_t stride, int64_t rows, int64_t cols, float* sums);     // r ascending

  // --- Softmax, cross-entropy -----------------------------------------------------------------------
  void (*softmax_row)(const float* x, int64_t n, float* y);
  // log(sum(exp(x))); the row is left alone.
  float (*logsumexp_row)(const float* x, int64_t n);
  // x[j] = scale * exp(x[j] - lse), in place.
  void (*softmax_scale_row)(float* x, int64_t n, float lse, float scale);

  // --- Attention tiles; scores are key-major in the forward pass: st[key * ld + query] ---------------
  // Keys key0.. and queries query0.. are positions in the sequence; key > query is masked where causal.
  // Turns scores into exp(s - new_max) in place, updates max[query], sum[query] and gives
  // alpha[query] = exp(old_max - new_max). Arrays have room for queries rounded up to width.
  void (*attention_softmax_tile)(float* st, int64_t ld, int64_t keys, int64_t queries, int64_t key0, int64_t query0,
                                 bool causal, float* max, float* sum, float* alpha);
  // The same for the scores s[0 .. keys) of one query, all visible; same bits as a column of the tile.
  void (*attention_softmax_row)(float* s, int64_t keys, float* max, float* sum, float* alpha);
  void (*scale_rows)(float* x, int64_t stride, int64_t rows, int64_t cols, const float* factors);

  // --- Attention of whole heads ---------------------------------------------------------------------
  // Rows [query_begin, query_end) of O and of lse; a row's bits do not depend on the others. query_begin is a multiple
  // of attention_queries.
  void (*attention_forward)(const AttentionHead& head, int64_t query_begin, int64_t query_end, Mat o, float* lse,
                            int64_t lse_stride, const Upcoming& upcoming, float* scratch);
  void (*attention_backward)(const AttentionHead& head, const AttentionGradients& gradients, const Upcoming& upcoming,
                             float* scratch);
  // Floats of scratch that a head of this length and size takes.
  int64_t (*attention_forward_scratch)(int64_t length, int64_t head_size);
  int64_t (*attention_backward_scratch)(int64_t length, int64_t head_size);
  int64_t attention_queries;  // queries of a tile

  // --- Sampler; the same bits on every instruction set -----------------------------------------------
  float (*sample_max)(const float* x, int64_t n);  // NaN is passed over
  // w[i] = 2^((x[i] - top) * scale) where that is above `floor`, else 0, and for NaN; and the sums of strata.
  void (*sample_weights)(const float* x, int64_t n, float top, float scale, float floor, float* w, float* strata);
  // Sums of w, or of ones where w is null, over the elements whose keys come before `rank`.
  void (*sample_above)(const float* keys, const float* w, int64_t n, SampleRank rank, float* strata);

  // --- Optimizer ------------------------------------------------------------------------------------
  void (*adamw)(const AdamWParams& params, int64_t n, const float* grad, float* value, float* m, float* v);
  double (*sum_squares)(const float* x, int64_t n);
};

// One per namespace; defined in kernels/<isa>/kernels.cpp.
namespace kernels::generic {
extern const KernelTable kTable;
}
namespace kernels::avx2 {
extern const KernelTable kTable;
}
namespace kernels::avx512 {
extern const KernelTable kTable;
}
namespace kernels::avx512_bf16 {
extern const KernelTable kTable;
}
namespace kernels::neon {
extern const KernelTable kTable;
}

}  // namespace miaobi

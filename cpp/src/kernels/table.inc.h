// SPDX-License-Identifier: MIT
// Builds the KernelTable of one instruction set. kernels/<isa>/kernels.cpp includes the vector header and
// then this, with MIAOBI_ISA_NAMESPACE, MIAOBI_TILE_ROWS and MIAOBI_ISA_DESCRIPTION defined.
//
// Only plain-data headers may be included below this level: an inline function of the standard library
// compiled with wide instructions could be the copy that the linker keeps for everyone.
#pragma once

#include "kernels/attention.inc.h"
#include "kernels/gemm.inc.h"
#include "kernels/gemv.inc.h"
#include "kernels/kernel_table.h"
#include "kernels/math.inc.h"
#include "kernels/norm.inc.h"
#include "kernels/optimizer.inc.h"
#include "kernels/pack.inc.h"
#include "kernels/sampler.inc.h"
#include "kernels/softmax.inc.h"

#if defined(MIAOBI_HAS_PAIRS)
#include "kernels/gemm_pairs.inc.h"
#endif

#define MIAOBI_STRING_(x) #x
#define MIAOBI_STRING(x) MIAOBI_STRING_(x)

namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE {

const KernelTable kTable = {
    .name = MIAOBI_STRING(MIAOBI_ISA_NAMESPACE),
    .description = MIAOBI_ISA_DESCRIPTION,
    .width = kW,
    .mr = kMr,
    .nr = kNr,
    .gemm_block = gemm_block,
    .gemv = gemv,
    .epilogue = epilogue_block,
    .pack = pack,
#if defined(MIAOBI_HAS_PAIRS)
    .gemm_pairs_block = gemm_pairs_block,
    .pack_pairs = pack_pairs,
#else
    .gemm_pairs_block = nullptr,
    .pack_pairs = nullptr,
#endif
    .widen = widen,
    .narrow = narrow,
    .widen_panels = widen_panels,
    .narrow_panels = narrow_panels,
    .transpose = transpose_matrix,
    .layer_norm_stats = layer_norm_stats,
    .layer_norm_apply = layer_norm_apply,
    .layer_norm_backward_rows = layer_norm_backward_rows,
    .layer_norm_backward_params = layer_norm_backward_params,
    .exp = exp_array,
    .exp2 = exp2_array,
    .tanh = tanh_array,
    .activation = activation,
    .activation_backward = activation_backward,
    .add = add,
    .scale = scale,
    .column_sums_add = column_sums_add,
    .softmax_row = softmax_row,
    .logsumexp_row = logsumexp_row,
    .softmax_scale_row = softmax_scale_row,
    .attention_softmax_tile = attention_softmax_tile,
    .attention_softmax_row = attention_softmax_row,
    .scale_rows = scale_rows,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .attention_forward_scratch = attention_forward_scratch,
    .attention_backward_scratch = attention_backward_scratch,
    .attention_queries = kTileQueries,
    .sample_max = sample_max,
    .sample_weights = sample_weights,
    .sample_above = sample_above,
    .adamw = adamw,
    .sum_squares = sum_squares,
};

}  // namespace miaobi::kernels::MIAOBI_ISA_NAMESPACE

// SPDX-License-Identifier: MIT
// Dropout (Srivastava et al. 2014): which elements of a matrix a training step leaves out.
#pragma once

#include <cstdint>

#include "miaobi/dropout_mask.h"
#include "miaobi/mat.h"

namespace miaobi {

// Dropout of one training step, of all places of a model. Step and place choose the stream of the counter RNG, so a
// mask is a function of (seed, step, place, row, column): it is the same at any number of threads, a run that is
// resumed meets it again, and backward makes it anew instead of keeping it.
//
// Rows are those of the batch, which is why a sequence meets other masks at another place in it; `first_row` is the
// number of rows of the batch that came before, where it is computed in parts.
struct DropoutStep {
  float rate = 0.0f;  // in [0, 1); 0 drops nothing
  uint64_t seed = 0;
  int64_t step = 0;  // in [0, 2^44)
  int64_t first_row = 0;

  DropoutMask mask(int64_t place) const;  // place in [0, 2^18)
  void validate() const;                  // throws Error that names the field
};

// y = mask of x; y may be x. Throws Error where the shapes differ.
void dropout(const DropoutMask& mask, ConstMat x, Mat y);

}  // namespace miaobi

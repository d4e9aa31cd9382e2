// SPDX-License-Identifier: MIT
// Gathering and scattering of embedding rows.
#include "miaobi/embedding.h"

#include <cstring>

#include "kernels/dispatch.h"
#include "ops/split.h"

namespace miaobi {

void embedding_forward(const int32_t* ids, const int32_t* positions, ConstMat wte, ConstMat wpe, Mat x) {
  const KernelTable& table = kernels_in_use();
  parallel_ranges(x.rows, rows_per_task(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(x.row(i), wte.row(ids[i]), static_cast<size_t>(x.cols) * sizeof(float));
      table.add(wpe.row(positions[i]), x.cols, x.row(i));
    }
  });
}

void embedding_backward(const int32_t* ids, const int32_t* positions, ConstMat dx, Mat dwte_add, Mat dwpe_add) {
  const KernelTable& table = kernels_in_use();
  // Two rows may have the same id, so the split is over columns and each keeps the order of the rows.
  parallel_ranges(dx.cols, kColumnsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < dx.rows; ++i) {
      table.add(dx.row(i) + begin, end - begin, dwte_add.row(ids[i]) + begin);
      table.add(dx.row(i) + begin, end - begin, dwpe_add.row(positions[i]) + begin);
    }
  });
}

}  // namespace miaobi

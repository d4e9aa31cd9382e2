// SPDX-License-Identifier: MIT
// One training step of each model: loss, gradients, clipping and AdamW.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "bench.h"
#include "miaobi/adamw.h"
#include "miaobi/gemm.h"
#include "models.h"

namespace miaobi::bench {
namespace {

struct Training {
  explicit Training(const Model& m) : model(config_of(m, m.context), 1), optimizer(model.arena(), {}) {
    for (int64_t i = 0; i <= m.batch; ++i) offsets.push_back(i * m.context);
    for (int64_t i = 0; i < m.batch * m.context; ++i) {
      ids.push_back(static_cast<int32_t>(i * 7919 % m.vocabulary));
      targets.push_back(static_cast<int32_t>(i * 104729 % m.vocabulary));
    }
    losses.resize(ids.size());
  }

  double step() {
    model.arena().zero_grad();
    model.loss_backward(ids.data(), targets.data(), offsets.data(), static_cast<int64_t>(offsets.size()) - 1,
                        1.0f / static_cast<float>(ids.size()), losses.data());
    optimizer.step(1e-4f, 1.0f);
    double sum = 0;
    for (const float loss : losses) sum += static_cast<double>(loss);
    return sum / static_cast<double>(losses.size());
  }

  GPT model;
  AdamW optimizer;
  std::vector<int64_t> offsets;
  std::vector<int32_t> ids, targets;
  std::vector<float> losses;
};

}  // namespace

void register_benchmarks() {
  for (const char* precision : {"highest", "bf16"}) {
    for (const Model& m : kModels) {
      const double tokens = static_cast<double>(m.batch * m.context);
      // Forward two operations for each weight and backward four; attention's half squares likewise.
      const double attention = 2.0 * static_cast<double>(m.layers * m.width * m.context);
      add(std::string("train_step/") + precision + "/" + m.name,
          {.flops = 3 * tokens * (2 * weights_of(m) + attention), .bf16 = *precision == 'b', .items = tokens},
          [=]() -> std::function<void()> {
            set_matmul_precision(precision);
            auto training = std::make_shared<Training>(m);
            // A new model knows nothing, and one that repeats a batch learns it.
            const double first = training->step();
            expect_near("loss of a new model", first, std::log(static_cast<double>(m.vocabulary)), 0.3);
            for (int i = 0; i < 3; ++i) training->step();
            const double later = training->step();
            expect_near("loss after four steps on its batch", later, first / 2, first / 2 * 0.999);
            return [training] { training->step(); };
          });
    }
  }
}

}  // namespace miaobi::bench

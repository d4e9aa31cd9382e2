// SPDX-License-Identifier: MIT
// Matrix products: the three forms that a layer needs, few rows, and bf16.
#include <cmath>
#include <memory>
#include <string>

#include "bench.h"
#include "miaobi/gemm.h"
#include "shapes.h"

namespace miaobi::bench {
namespace {

struct Form {
  const char* name;  // the product of a layer that has this form
  bool transpose_a, transpose_b;
};
constexpr Form kForms[] = {{"Y=XW", false, false}, {"dW=XtdY", true, false}, {"dX=dYWt", false, true}};

struct Product {
  Product(int64_t m, int64_t k, int64_t n, const Form& form_)
      : form(form_),
        a(form_.transpose_a ? k : m, form_.transpose_a ? m : k, 1),
        b(form_.transpose_b ? n : k, form_.transpose_b ? k : n, 2),
        c(m, n, 3) {}

  void run() {
    gemm(c.rows, c.cols, form.transpose_a ? a.rows : a.cols, left_operand(a.mat(), form.transpose_a),
         right_operand(b.mat(), form.transpose_b), c.data(), c.cols);
  }

  // Some elements against sums in double, with the error bound of gemm.h; bf16 also rounds each operand.
  void check(bool bf16) const {
    const int64_t k = form.transpose_a ? a.rows : a.cols;
    const double unit = (static_cast<double>(k) + 2) * 0x1p-24 * 1.01 + (bf16 ? 0x1p-7 * 1.01 : 0);
    for (int64_t sample = 0; sample < 64; ++sample) {
      const int64_t i = sample * 7919 % c.rows, j = sample * 104729 % c.cols;
      double sum = 0, absolute = 0;
      for (int64_t p = 0; p < k; ++p) {
        const double product = static_cast<double>(form.transpose_a ? a.mat()(p, i) : a.mat()(i, p)) *
                               static_cast<double>(form.transpose_b ? b.mat()(j, p) : b.mat()(p, j));
        sum += product;
        absolute += std::abs(product);
      }
      expect_near("gemm", c.mat()(i, j), sum, unit * absolute);
    }
  }

  Form form;
  Matrix a, b, c;
};

std::string name_of(int64_t m, int64_t k, int64_t n) {
  return std::to_string(m) + "x" + std::to_string(k) + "x" + std::to_string(n);
}

void add_product(const std::string& name, int64_t m, int64_t k, int64_t n, const Form& form, bool bf16, Work work) {
  work.flops = 2.0 * static_cast<double>(m) * static_cast<double>(k) * static_cast<double>(n);
  work.bf16 = bf16;
  add(name, work, [=]() -> std::function<void()> {
    set_matmul_precision(bf16 ? "bf16" : "highest");
    auto product = std::make_shared<Product>(m, k, n, form);
    product->run();
    product->check(bf16);
    return [product] { product->run(); };
  });
}

}  // namespace

void register_benchmarks() {
  for (const bool bf16 : {false, true}) {
    for (const Gemm& g : kGemms) {
      for (const Form& form : kForms) {
        add_product(std::string(bf16 ? "gemm_bf16/" : "gemm/") + form.name + "/" + name_of(g.m, g.k, g.n), g.m, g.k,
                    g.n, form, bf16, {});
      }
    }
  }
  // With few rows the weights are all that is read.
  for (const Weight& w : kSkinnyWeights) {
    const int64_t bytes = w.k * w.n * static_cast<int64_t>(sizeof(float));
    for (const int64_t m : kSkinnyRows) {
      add_product("gemm_few_rows/" + name_of(m, w.k, w.n), m, w.k, w.n, kForms[0], false,
                  {.bytes = static_cast<double>(bytes), .working_set = bytes});
    }
  }
}

}  // namespace miaobi::bench

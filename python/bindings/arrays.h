// SPDX-License-Identifier: MIT
// Between NumPy arrays and the engine's views.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <string>
#include <vector>

#include "miaobi/check.h"
#include "miaobi/mat.h"
#include "miaobi/parameters.h"

// No conversion: an array of another type or layout is refused by pybind11's overload resolution.
using FloatArray = pybind11::array_t<float, pybind11::array::c_style>;
using IntArray = pybind11::array_t<int32_t, pybind11::array::c_style>;
using LongArray = pybind11::array_t<int64_t, pybind11::array::c_style>;

inline miaobi::ConstMat const_mat(const FloatArray& a, const char* name) {
  MIAOBI_CHECK(a.ndim() == 2, "expected ", name, " with two dimensions, got ", a.ndim());
  return {a.data(), a.shape(0), a.shape(1)};
}

inline miaobi::Mat mutable_mat(FloatArray& a) { return {a.mutable_data(), a.shape(0), a.shape(1)}; }

inline FloatArray new_mat(int64_t rows, int64_t cols) { return FloatArray({rows, cols}); }

// A view of the engine's memory that keeps `owner` alive.
inline FloatArray view_of(float* data, const std::vector<int64_t>& shape, pybind11::handle owner) {
  return FloatArray(std::vector<pybind11::ssize_t>(shape.begin(), shape.end()), data, owner);
}

// Offsets of a ragged batch over `tokens` flat tokens.
inline void check_offsets(const LongArray& offsets, int64_t tokens) {
  MIAOBI_CHECK(offsets.ndim() == 1 && offsets.size() >= 1,
               "expected offsets with one dimension and at least one entry");
  MIAOBI_CHECK(offsets.at(0) == 0, "expected offsets that start at 0, got ", offsets.at(0));
  for (pybind11::ssize_t s = 0; s + 1 < offsets.size(); ++s) {
    MIAOBI_CHECK(offsets.at(s) <= offsets.at(s + 1), "expected ascending offsets, got ", offsets.at(s), " and ",
                 offsets.at(s + 1));
  }
  MIAOBI_CHECK(offsets.at(offsets.size() - 1) == tokens, "expected offsets that end at the number of tokens, ", tokens,
               ", got ", offsets.at(offsets.size() - 1));
}

using Views = pybind11::typing::Dict<pybind11::str, FloatArray>;

inline Views parameter_views(const miaobi::ParameterArena& arena, bool gradients, pybind11::handle owner) {
  Views views;
  for (const auto& p : arena.parameters()) {
    views[pybind11::str(p->name)] = view_of(gradients ? p->grad : p->value, p->shape, owner);
  }
  return views;
}

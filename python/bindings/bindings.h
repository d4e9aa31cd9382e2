// SPDX-License-Identifier: MIT
// Each binding file adds its part of miaobi._core through one of these functions.
#pragma once

#include <pybind11/pybind11.h>

void register_errors(pybind11::module_& m);
void register_runtime(pybind11::module_& m);
void register_ops(pybind11::module_& m);
void register_layers(pybind11::module_& m);
void register_model(pybind11::module_& m);
void register_generation(pybind11::module_& m);
void register_io(pybind11::module_& m);
void register_text(pybind11::module_& m);

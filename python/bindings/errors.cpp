// SPDX-License-Identifier: MIT
// The core's exceptions as Python's: Error is ValueError, FormatError miaobi.errors.FormatError, SystemError OSError.
#include <exception>
#include <string>

#include "bindings.h"
#include "miaobi/check.h"

namespace py = pybind11;

namespace {

// A message may quote a path, and a path may be any bytes.
py::str message(const std::string& text) {
  PyObject* const decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace");
  if (decoded == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(decoded);
}

// As os.fspath would give it back.
py::str path_str(const std::string& path) {
  PyObject* const decoded = PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size()));
  if (decoded == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(decoded);
}

void set_error(const py::object& exception) { PyErr_SetObject(py::type::handle_of(exception).ptr(), exception.ptr()); }

void translate(std::exception_ptr pending) {
  using namespace py::literals;
  try {
    if (pending) std::rethrow_exception(pending);
  } catch (const miaobi::FormatError& error) {
    const py::object offset = error.offset() >= 0 ? py::object(py::int_(error.offset())) : py::object(py::none());
    set_error(py::module_::import("miaobi.errors")
                  .attr("FormatError")("path"_a = path_str(error.path()), "reason"_a = message(error.reason()),
                                       "offset"_a = offset));
  } catch (const miaobi::Error& error) {
    set_error(py::handle(PyExc_ValueError)(message(error.what())));
  } catch (const miaobi::SystemError& error) {
    // Called with an errno, OSError picks its subclass itself: FileNotFoundError, PermissionError, ...
    set_error(py::handle(PyExc_OSError)(error.code(), message(error.what())));
  }
}

}  // namespace

void register_errors(py::module_&) { py::register_local_exception_translator(translate); }

// SPDX-License-Identifier: MIT
// Tensor files: miaobi/safetensors.h.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <pybind11/typing.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "miaobi/check.h"
#include "miaobi/safetensors.h"

namespace py = pybind11;

namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using TextDict = py::typing::Dict<py::str, py::str>;
using Shape = py::typing::Tuple<py::int_, py::ellipsis>;

// A file that Python can close while another thread still reads: the reader holds its own reference.
class OpenFile {
 public:
  explicit OpenFile(const std::filesystem::path& path) : file_(std::make_shared<miaobi::SafetensorsFile>(path)) {}

  void close() { file_.reset(); }

  py::typing::List<py::str> names() const {
    const auto file = open_file();
    py::typing::List<py::str> result;
    for (const miaobi::StoredTensor& tensor : file->tensors()) result.append(py::str(tensor.name));
    return result;
  }

  py::typing::Tuple<py::str, Shape> info(const std::string& name) const {
    const auto file = open_file();
    const miaobi::StoredTensor& tensor = file->tensor(name);
    return py::make_tuple(py::str(tensor.dtype.data(), tensor.dtype.size()), py::tuple(py::cast(tensor.shape)));
  }

  TextDict metadata() const {
    const auto file = open_file();
    TextDict result;
    for (const auto& [key, value] : file->metadata()) result[py::str(key)] = py::str(value);
    return result;
  }

  FloatArray read(const std::string& name) const {
    const auto file = open_file();
    const miaobi::StoredTensor& tensor = file->tensor(name);
    FloatArray result(tensor.shape);
    float* const out = result.mutable_data();
    const py::gil_scoped_release unlocked;
    file->read_f32(name, out, tensor.count);
    return result;
  }

 private:
  std::shared_ptr<const miaobi::SafetensorsFile> open_file() const {
    MIAOBI_CHECK(file_ != nullptr, "[SafetensorsFile] the file is closed");
    return file_;
  }

  std::shared_ptr<const miaobi::SafetensorsFile> file_;
};

std::string text_of(py::handle object, const char* what) {
  if (!py::isinstance<py::str>(object)) {
    throw py::type_error(std::string("[write_safetensors] expected str as ") + what + ", got " +
                         std::string(py::str(py::type::handle_of(object))));
  }
  Py_ssize_t size = 0;
  const char* const data = PyUnicode_AsUTF8AndSize(object.ptr(), &size);
  if (data == nullptr) throw py::error_already_set();  // half of a surrogate pair: UnicodeEncodeError
  return {data, static_cast<size_t>(size)};
}

void write_safetensors(const std::filesystem::path& path, const py::typing::Dict<py::str, py::array>& tensors,
                       const TextDict& metadata) {
  std::vector<FloatArray> owners;  // the dict may change while the GIL is released
  std::vector<miaobi::TensorToStore> to_store;
  for (const auto& [key, value] : tensors) {
    std::string name = text_of(key, "tensor name");
    MIAOBI_CHECK(FloatArray::check_(value), "[write_safetensors] ", name,
                 ": expected a C-contiguous float32 array; use numpy.ascontiguousarray(x, dtype=numpy.float32)");
    const FloatArray& array = owners.emplace_back(py::reinterpret_borrow<FloatArray>(value));
    to_store.push_back({std::move(name), {array.shape(), array.shape() + array.ndim()}, array.data()});
  }
  miaobi::SafetensorsMetadata pairs;
  for (const auto& [key, value] : metadata) {
    pairs.emplace_back(text_of(key, "metadata key"), text_of(value, "metadata value"));
  }
  const py::gil_scoped_release unlocked;
  miaobi::write_safetensors(path, to_store, pairs);
}

}  // namespace

void register_io(py::module_& m) {
  py::class_<OpenFile>(m, "SafetensorsFile",
                       "A safetensors file, verified completely when opened (miaobi.FormatError if anything is wrong). "
                       "Usable in a with-statement. The file must not be cut shorter while it is open.")
      .def(py::init<const std::filesystem::path&>(), py::arg("path"), py::call_guard<py::gil_scoped_release>())
      .def("names", &OpenFile::names, "Names of the tensors, a list of str in the order of the file.")
      .def("info", &OpenFile::info, py::arg("name"),
           "(dtype, shape) of a tensor, dtype as the format spells it: 'F32', 'BF16', ...")
      .def("metadata", &OpenFile::metadata, "The file's own key-value pairs, a dict of str to str.")
      .def("read", &OpenFile::read, py::arg("name"),
           "A copy of the tensor as a float32 array of its shape; F16 and BF16 are converted exactly.")
      .def("close", &OpenFile::close, "Gives the mapping back; every other method then raises ValueError.")
      .def("__enter__", [](py::object self) { return self; })
      .def("__exit__", [](OpenFile& self, const py::args&) { self.close(); });

  m.def("write_safetensors", &write_safetensors, py::arg("path"), py::arg("tensors"), py::arg("metadata") = TextDict(),
        "Writes a dict of str to C-contiguous float32 arrays of any shape as F32 tensors in the dict's order, with "
        "metadata (dict of str to str). Atomic: after an error the path holds what it held before.");
}

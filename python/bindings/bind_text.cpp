// SPDX-License-Identifier: MIT
// Cutting text into words, and words into tokens: miaobi/segmenter.h, miaobi/encoder.h.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "miaobi/check.h"
#include "miaobi/encoder.h"
#include "miaobi/mapped_file.h"
#include "miaobi/segmenter.h"
#include "miaobi/threads.h"
#include "text_views.h"

namespace py = pybind11;
using namespace py::literals;
using miaobi::TextView;
using Words = py::typing::List<py::str>;

namespace {

struct SharedDictionary {
  std::shared_ptr<const miaobi::Dictionary> dictionary;
};

SharedDictionary open_dictionary(const std::filesystem::path& folder) {
  const auto map = [&](const char* name) { return miaobi::MappedFile(folder / name); };
  const auto view = [](const miaobi::MappedFile& file) {
    return std::string_view(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  };
  const miaobi::MappedFile dict = map("dict.txt"), start = map("finalseg/prob_start.py"),
                           trans = map("finalseg/prob_trans.py"), emit = map("finalseg/prob_emit.py");
  return {miaobi::read_dictionary({folder.string(), view(dict), view(start), view(trans), view(emit)})};
}

constexpr int64_t kShortText = 4096;

// A segmenter that several Python threads may change and use at once.
class SharedSegmenter {
 public:
  explicit SharedSegmenter(const SharedDictionary& base) : segmenter_(base.dictionary) {}

  Words cut(PyObject* text, bool hmm) const {
    const TextView view = view_of(text);
    if (view.size > kShortText) {
      std::vector<int64_t> ends;
      read(view.size, [&] { segmenter_.cut(view, hmm, ends); });
      return words_of(text, ends);
    }
    thread_local std::vector<int64_t> ends;  // short texts are many, and an allocation is a tenth of their time
    ends.clear();
    read(view.size, [&] { segmenter_.cut(view, hmm, ends); });
    return words_of(text, ends);
  }

  py::typing::List<Words> cut_batch(const py::typing::List<py::str>& texts, bool hmm) const {
    const TextBatch batch(texts);
    std::vector<std::vector<int64_t>> ends(batch.views.size());
    py::typing::List<Words> result(ends.size());
    compute_and_build(
        batch.views,
        [&](int64_t begin, int64_t end) {
          use([&](const miaobi::Segmenter& segmenter) {
            for (int64_t i = begin; i < end; ++i) segmenter.cut(batch.views[i], hmm, ends[i]);
          });
        },
        [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            put(result, i, words_of(batch.texts[i].ptr(), ends[i]).release().ptr());
            ends[i] = {};
          }
        });
    return result;
  }

  Words cut_for_search(const py::str& text, bool hmm) const {
    const TextView view = view_of(text);
    std::vector<miaobi::Span> words;
    read(view.size, [&] { segmenter_.cut_for_search(view, hmm, words); });
    Words result(words.size());
    with_units(view, [&](const auto* s) {
      for (size_t i = 0; i < words.size(); ++i) {
        put(result, i, SharedWords::part_of(s, text.ptr(), words[i].begin, words[i].end));
      }
    });
    return result;
  }

  Words cut_all(const py::str& text) const {
    const TextView view = view_of(text);
    miaobi::WordList words;
    read(view.size, [&] { words = segmenter_.cut_all(view); });
    Words result(words.ends.size());
    int64_t begin = 0;
    for (size_t i = 0; i < words.ends.size(); ++i) {
      put(result, i, PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, words.text.data() + begin, words.ends[i] - begin));
      begin = words.ends[i];
    }
    return result;
  }

  int64_t frequency(const py::str& word) const {
    const TextView view = view_of(word);
    int64_t result = 0;
    read(view.size, [&] { result = segmenter_.frequency(view); });
    return result;
  }

  void add_word(const py::str& word, int64_t frequency) {
    write([&, view = view_of(word)] { segmenter_.add_word(view, frequency); });
  }

  void keep_whole(const py::typing::List<py::str>& words) {
    const TextBatch batch(words);
    write([&] {
      for (const TextView word : batch.views) segmenter_.keep_whole(word);
    });
  }

  int64_t suggest_frequency(const py::str& word) const {
    const TextView view = view_of(word);
    int64_t result = 0;
    read(view.size, [&] { result = segmenter_.suggest_frequency(view); });
    return result;
  }

  int64_t suggest_split(const py::typing::List<py::str>& parts) const {
    const TextBatch batch(parts);
    int64_t result = 0;
    read(batch.characters(), [&] { result = segmenter_.suggest_frequency(batch.views); });
    return result;
  }

  // body(segmenter), while nobody changes it. Nothing in it may wait for the GIL: who has that may wait for the lock.
  template <class Body>
  void use(Body&& body) const {
    const std::shared_lock<std::shared_mutex> lock(mutex_);
    body(segmenter_);
  }

 private:
  template <class Body>
  void read(int64_t characters, Body&& body) const {
    without_gil(characters, [&] { use([&](const miaobi::Segmenter&) { body(); }); });
  }
  template <class Body>
  void write(Body&& body) {
    const py::gil_scoped_release unlocked;
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    body();
  }

  miaobi::Segmenter segmenter_;
  mutable std::shared_mutex mutex_;
};

// cut(text, hmm) of a segmenter as a function for itself: pybind11 takes longer to find out what was called than a
// short text takes to be cut.
PyObject* cut_at_once(PyObject* capsule, PyObject* const* arguments, Py_ssize_t count) {
  const auto* const segmenter =
      static_cast<const std::shared_ptr<const SharedSegmenter>*>(PyCapsule_GetPointer(capsule, nullptr));
  if (segmenter == nullptr) return nullptr;
  if (count != 2 || !PyUnicode_Check(arguments[0])) {
    PyErr_Format(PyExc_TypeError, "[segment] expected str, got %s; decode bytes first",
                 count > 0 ? Py_TYPE(arguments[0])->tp_name : "nothing");
    return nullptr;
  }
  const int hmm = PyObject_IsTrue(arguments[1]);
  if (hmm < 0) return nullptr;
  try {
    return (*segmenter)->cut(arguments[0], hmm != 0).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

py::typing::Callable<Words(py::str, bool)> cutter(const std::shared_ptr<const SharedSegmenter>& segmenter) {
  static PyMethodDef definition{"cut", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&cut_at_once)),
                                METH_FASTCALL, "cut(text, hmm) -> the words of text"};
  auto* const held = new std::shared_ptr<const SharedSegmenter>(segmenter);
  const py::capsule capsule(held,
                            [](void* data) { delete static_cast<std::shared_ptr<const SharedSegmenter>*>(data); });
  PyObject* const function = PyCFunction_New(&definition, capsule.ptr());
  if (function == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::typing::Callable<Words(py::str, bool)>>(function);
}

using Ids = py::typing::List<py::int_>;

class SharedEncoder {
 public:
  SharedEncoder(std::shared_ptr<const SharedSegmenter> segmenter, bool hmm, const py::typing::List<py::str>& words,
                int32_t first_byte, int32_t first_word)
      : segmenter_(std::move(segmenter)), hmm_(hmm), encoder_(TextBatch(words).views, first_byte, first_word) {
    // An id is one int object, however many lists it is in.
    const auto size = static_cast<size_t>(first_word) + words.size();
    for (size_t i = 0; i < size; ++i) ints_.emplace_back(py::int_(i));
  }

  Ids encode(const py::str& text) const {
    const TextView view = view_of(text);
    std::vector<int32_t> ids;
    without_gil(view.size, [&] {
      ids.reserve(static_cast<size_t>(view.size));
      add_ids(view, ids, nullptr);
    });
    return list_of(ids.data(), ids.size());
  }

  py::typing::List<Ids> encode_batch(const py::typing::List<py::str>& texts) const {
    const TextBatch batch(texts);
    std::vector<std::vector<int32_t>> ids(batch.views.size());
    py::typing::List<Ids> result(ids.size());
    compute_and_build(
        batch.views, [&](int64_t begin, int64_t end) { encode_range(batch, begin, end, ids); },
        [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            put(result, i, list_of(ids[i].data(), ids[i].size()).release().ptr());
            ids[i] = {};
          }
        });
    return result;
  }

  // The ids of all texts, one after the other, and where those of each begin, with their end behind.
  py::typing::Tuple<py::array_t<int32_t>, py::array_t<int64_t>> encode_arrays(
      const py::typing::List<py::str>& texts) const {
    const TextBatch batch(texts);
    const size_t count = batch.views.size();
    py::array_t<int64_t> starts(static_cast<py::ssize_t>(count + 1));
    int64_t* const start = starts.mutable_data();
    start[0] = 0;
    std::vector<std::vector<int32_t>> ids(count);
    compute_and_build(
        batch.views, [&](int64_t begin, int64_t end) { encode_range(batch, begin, end, ids); },
        [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) start[i + 1] = start[i] + static_cast<int64_t>(ids[i].size());
        });
    py::array_t<int32_t> all(start[count]);
    int32_t* const to = all.mutable_data();
    without_gil(start[count], [&] {
      miaobi::parallel_ranges(static_cast<int64_t>(count), 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) std::copy(ids[i].begin(), ids[i].end(), to + start[i]);
      });
    });
    return py::make_tuple(all, starts);
  }

  py::typing::Tuple<Ids, py::typing::List<py::typing::Tuple<py::int_, py::int_>>> encode_with_offsets(
      const py::str& text) const {
    const TextView view = view_of(text);
    std::vector<int32_t> ids;
    std::vector<miaobi::Span> offsets;
    without_gil(view.size, [&] { add_ids(view, ids, &offsets); });
    py::typing::List<py::typing::Tuple<py::int_, py::int_>> spans(offsets.size());
    for (size_t i = 0; i < offsets.size(); ++i) spans[i] = py::make_tuple(offsets[i].begin, offsets[i].end);
    return py::make_tuple(list_of(ids.data(), ids.size()), spans);
  }

 private:
  void encode_range(const TextBatch& batch, int64_t begin, int64_t end, std::vector<std::vector<int32_t>>& ids) const {
    segmenter_->use([&](const miaobi::Segmenter& segmenter) {
      for (int64_t i = begin; i < end; ++i) encoder_.encode(segmenter, batch.views[i], hmm_, ids[i], nullptr);
    });
  }

  void add_ids(TextView text, std::vector<int32_t>& ids, std::vector<miaobi::Span>* offsets) const {
    segmenter_->use([&](const miaobi::Segmenter& segmenter) { encoder_.encode(segmenter, text, hmm_, ids, offsets); });
  }

  Ids list_of(const int32_t* ids, size_t count) const {
    Ids result(count);
    for (size_t i = 0; i < count; ++i) put(result, i, ints_[static_cast<size_t>(ids[i])].inc_ref().ptr());
    return result;
  }

  std::shared_ptr<const SharedSegmenter> segmenter_;
  bool hmm_;
  miaobi::Encoder encoder_;
  std::vector<py::object> ints_;
};

// Counts for a vocabulary; to be used by one thread.
class Counter {
 public:
  Counter(std::shared_ptr<const SharedSegmenter> segmenter, bool hmm, int64_t max_word)
      : segmenter_(std::move(segmenter)), hmm_(hmm), counter_(max_word) {}

  void add_characters(const py::str& text) { counter_.add_characters(view_of(text)); }

  void add_words(const py::typing::List<py::str>& texts, const std::vector<int64_t>& times) {
    const TextBatch batch(texts);
    MIAOBI_CHECK(times.size() == batch.views.size(), "[Counter] expected a number for each text");
    without_gil(batch.characters(), [&] {
      segmenter_->use(
          [&](const miaobi::Segmenter& segmenter) { counter_.add_words(segmenter, batch.views, times, hmm_); });
    });
  }

  py::typing::Dict<py::str, py::int_> words() const {
    py::typing::Dict<py::str, py::int_> result;
    for (const auto& [word, count] : counter_.words()) result[str_of(word)] = count;
    return result;
  }

  py::typing::Dict<py::str, py::int_> characters() const {
    py::typing::Dict<py::str, py::int_> result;
    for (const auto& [c, count] : counter_.characters()) result[str_of({c})] = count;
    return result;
  }

 private:
  static py::str str_of(const std::u32string& text) {
    PyObject* const object =
        PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, text.data(), static_cast<Py_ssize_t>(text.size()));
    if (object == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::str>(object);
  }

  std::shared_ptr<const SharedSegmenter> segmenter_;
  bool hmm_;
  miaobi::WordCounter counter_;
};

}  // namespace

void register_text(py::module_& m) {
  py::class_<SharedDictionary>(m, "Dictionary", "jieba's dictionary and HMM tables, immutable; segmenters share it.")
      .def(py::init(&open_dictionary), "folder"_a, py::call_guard<py::gil_scoped_release>(),
           "Reads dict.txt and finalseg/prob_*.py in the folder of the package jieba. OSError, FormatError.");
  py::class_<SharedSegmenter, std::shared_ptr<SharedSegmenter>>(
      m, "Segmenter", "Cuts text as jieba does; safe to share between threads.")
      .def(py::init<const SharedDictionary&>(), "dictionary"_a)
      .def("cutter", &cutter, "cut(text, hmm), as jieba.lcut(text, HMM=hmm); it keeps the segmenter alive.")
      .def("cut_batch", &SharedSegmenter::cut_batch, "texts"_a, "hmm"_a, "The words of each text, on all threads.")
      .def("cut_for_search", &SharedSegmenter::cut_for_search, "text"_a, "hmm"_a,
           "As jieba.lcut_for_search(text, HMM=hmm).")
      .def("cut_all", &SharedSegmenter::cut_all, "text"_a, "As jieba.lcut(text, cut_all=True).")
      .def("frequency", &SharedSegmenter::frequency, "word"_a,
           "Frequency of a word; 0 for a mere beginning of words or a deleted word, -1 if it is not there.")
      .def("add_word", &SharedSegmenter::add_word, "word"_a, "frequency"_a, "As jieba.add_word(word, frequency).")
      .def("keep_whole", &SharedSegmenter::keep_whole, "words"_a, "Words that are never cut from now on.")
      .def("suggest_frequency", &SharedSegmenter::suggest_frequency, "word"_a, "As jieba.suggest_freq(word).")
      .def("suggest_split", &SharedSegmenter::suggest_split, "parts"_a, "As jieba.suggest_freq(tuple(parts)).");
  py::class_<SharedEncoder>(m, "Encoder", "Text to token ids in one pass; safe to share between threads.")
      .def(py::init<std::shared_ptr<const SharedSegmenter>, bool, const py::typing::List<py::str>&, int32_t, int32_t>(),
           "segmenter"_a, "hmm"_a, "words"_a, "first_byte"_a, "first_word"_a,
           "words[i] has the id first_word + i, byte b the id first_byte + b.")
      .def("encode", &SharedEncoder::encode, "text"_a, "The ids; ValueError for half of a surrogate pair.")
      .def("encode_batch", &SharedEncoder::encode_batch, "texts"_a, "The ids of each text, on all threads.")
      .def("encode_arrays", &SharedEncoder::encode_arrays, "texts"_a,
           "The ids of all texts one after the other, int32, and where each text's begin, int64, the end behind them.")
      .def("encode_with_offsets", &SharedEncoder::encode_with_offsets, "text"_a,
           "The ids, and for each the characters [begin, end) that it stands for.");
  py::class_<Counter>(m, "Counter", "Counts characters, and the words of two or more characters.")
      .def(py::init<std::shared_ptr<const SharedSegmenter>, bool, int64_t>(), "segmenter"_a, "hmm"_a, "max_word"_a,
           "Words of more than max_word characters are not counted.")
      .def("add_characters", &Counter::add_characters, "text"_a, "Adds every character.")
      .def("add_words", &Counter::add_words, "texts"_a, "times"_a, "Cuts on all threads; text i counts times[i] times.")
      .def("words", &Counter::words, "Each word with its count.")
      .def("characters", &Counter::characters, "Each character with its count.");
}

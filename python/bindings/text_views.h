// SPDX-License-Identifier: MIT
// Python's str as the engine's TextView, and parts of it as new str.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <cstring>
#include <string>
#include <vector>

#include "miaobi/segmenter.h"

// The code points of `text`, in place: valid as long as the str lives, which is immutable.
inline miaobi::TextView view_of(const pybind11::handle& text) {
  PyObject* const object = text.ptr();
  return {PyUnicode_DATA(object), PyUnicode_GET_LENGTH(object), static_cast<int>(PyUnicode_KIND(object))};
}

// Texts of a list, held, so that they can be read without the GIL whatever happens to the list.
struct TextBatch {
  explicit TextBatch(const pybind11::list& list) {
    for (const pybind11::handle text : list) {
      if (!PyUnicode_Check(text.ptr())) {
        throw pybind11::type_error("[text] expected a list of str, got " +
                                   std::string(pybind11::str(pybind11::type::handle_of(text))) + " in it");
      }
      texts.push_back(pybind11::reinterpret_borrow<pybind11::str>(text));
      views.push_back(view_of(text));
    }
  }

  int64_t characters() const {
    int64_t sum = 0;
    for (const miaobi::TextView& view : views) sum += view.size;
    return sum;
  }

  std::vector<pybind11::str> texts;
  std::vector<miaobi::TextView> views;
};

// Item i of a list that was made with this size.
inline void put(const pybind11::list& list, size_t i, PyObject* object) {
  if (object == nullptr) throw pybind11::error_already_set();
  PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), object);
}

// Frequent short words as str objects that are made once and shared: a text repeats them, and making and freeing one
// costs more than finding it in the dictionary. Few enough (1,024, about 0.1 MB) to stay in the L2 cache; a word keeps
// its place as long as it comes more often than the others that would have it. Used with the GIL held.
class SharedWords {
 public:
  // A new reference to text[begin, end).
  static PyObject* part_of(const miaobi::TextView& view, PyObject* text, int64_t begin, int64_t end) {
    static Entry* const table = new Entry[size_t{1} << kBits]();
    if (end - begin > kMaxLength) return PyUnicode_Substring(text, begin, end);
    // 0 is left out because keys are padded with it.
    uint64_t key = 0;
    char32_t bits = 0;
    for (int64_t i = begin; i < end; ++i) {
      const char32_t c = view[i];
      if (c - 1 >= 0xFFFF) return PyUnicode_Substring(text, begin, end);
      key = key << 16 | c;
      bits |= c;
    }
    Entry& entry = table[(key * 0x9E3779B97F4A7C15u) >> (64 - kBits)];
    if (entry.key == key && entry.word != nullptr) {
      entry.credit += entry.credit < kMaxCredit;
      Py_INCREF(entry.word);
      return entry.word;
    }
    PyObject* word = nullptr;
    if (bits > 0xFF && view.width == 2) {
      // What PyUnicode_Substring does, without looking for the largest character again.
      word = PyUnicode_New(end - begin, 0xFFFF);
      if (word == nullptr) return nullptr;
      std::memcpy(PyUnicode_2BYTE_DATA(word), static_cast<const char16_t*>(view.data) + begin, 2 * (end - begin));
    } else {
      word = PyUnicode_Substring(text, begin, end);
      if (word == nullptr) return nullptr;
    }
    if (entry.credit > 0) {
      --entry.credit;
    } else {
      Py_XDECREF(entry.word);
      Py_INCREF(word);
      entry = {key, word, 1};
    }
    return word;
  }

 private:
  struct Entry {
    uint64_t key;
    PyObject* word;
    int credit;
  };
  static constexpr int kBits = 10;
  static constexpr int kMaxCredit = 16;
  static constexpr int64_t kMaxLength = 4;
};

// Calls body without the GIL if the texts are long enough for that to cost less than it gives others.
template <class Body>
void without_gil(int64_t characters, Body&& body) {
  constexpr int64_t kMinCharacters = 256;  // ten microseconds of work; giving the GIL back takes up to one
  if (characters < kMinCharacters) return body();
  const pybind11::gil_scoped_release unlocked;
  body();
}

inline pybind11::typing::List<pybind11::str> words_of(const pybind11::handle& text, const std::vector<int64_t>& ends) {
  pybind11::typing::List<pybind11::str> words(ends.size());
  const miaobi::TextView view = view_of(text);
  int64_t begin = 0;
  for (size_t i = 0; i < ends.size(); ++i) {
    put(words, i, SharedWords::part_of(view, text.ptr(), begin, ends[i]));
    begin = ends[i];
  }
  return words;
}

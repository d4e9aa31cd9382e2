// SPDX-License-Identifier: MIT
// Python's str as the engine's TextView, and parts of it as new str.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "miaobi/segmenter.h"
#include "miaobi/threads.h"

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
        throw pybind11::type_error(std::string("[text] expected str, got ") + Py_TYPE(text.ptr())->tp_name +
                                   " in the list of texts; decode bytes first");
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

// Single characters, and frequent words of up to four, as str objects that are made once and shared: a text repeats
// them, and making and freeing one costs more than finding it here. A character has a place of its own; a word keeps
// its place as long as it comes more often than the others that would have it, and there are few enough (1,024, about
// 0.1 MB) to stay in the L2 cache. Used with the GIL held.
class SharedWords {
 public:
  // A new reference to text[begin, end), whose code units are s.
  template <class Unit>
  static PyObject* part_of(const Unit* s, PyObject* text, int64_t begin, int64_t end) {
    static PyObject** const characters = new PyObject* [size_t{1} << 16] {};  // memory only where it is touched
    static Entry* const table = new Entry[size_t{1} << kBits]();
    const int64_t length = end - begin;
    char32_t all = s[begin];
    if (length == 1 && all <= 0xFFFF) {
      PyObject*& character = characters[all];
      if (character == nullptr) character = PyUnicode_Substring(text, begin, end);
      Py_XINCREF(character);
      return character;
    }
    if (length > kMaxLength) return PyUnicode_Substring(text, begin, end);
    uint64_t key = 0;
    for (int64_t i = begin; i < end; ++i) {
      all |= s[i];
      key = key << 16 | s[i];
    }
    // Keys are padded with 0, so no word begins with it.
    if (all > 0xFFFF || s[begin] == 0) return PyUnicode_Substring(text, begin, end);
    Entry& entry = table[(key * 0x9E3779B97F4A7C15u) >> (64 - kBits)];
    if (entry.key == key) {
      entry.credit += entry.credit < kMaxCredit;
      Py_INCREF(entry.word);
      return entry.word;
    }
    PyObject* word = nullptr;
    if (sizeof(Unit) == 2 && all > 0xFF) {
      // What PyUnicode_Substring does, without looking for the largest character again.
      word = PyUnicode_New(length, 0xFFFF);
      if (word == nullptr) return nullptr;
      Py_UCS2* const to = PyUnicode_2BYTE_DATA(word);
      for (int64_t i = 0; i < length; ++i) to[i] = static_cast<Py_UCS2>(s[begin + i]);
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
    uint64_t key;  // 0 where there is no word
    PyObject* word;
    int credit;
  };
  static constexpr int kBits = 10;
  static constexpr int kMaxCredit = 16;
  static constexpr int64_t kMaxLength = 4;
};

// Calls body with a pointer to the code units.
template <class Body>
void with_units(const miaobi::TextView& view, Body&& body) {
  if (view.width == 1) return body(static_cast<const uint8_t*>(view.data));
  if (view.width == 2) return body(static_cast<const char16_t*>(view.data));
  body(static_cast<const char32_t*>(view.data));
}

// Calls body without the GIL if the texts are long enough for that to cost less than it gives others.
template <class Body>
void without_gil(int64_t characters, Body&& body) {
  constexpr int64_t kMinCharacters = 256;  // ten microseconds of work; giving the GIL back takes up to one
  if (characters < kMinCharacters) return body();
  const pybind11::gil_scoped_release unlocked;
  body();
}

// A new list of the words of `text`, which end at `ends`.
inline pybind11::typing::List<pybind11::str> words_of(PyObject* text, const std::vector<int64_t>& ends) {
  pybind11::typing::List<pybind11::str> words(ends.size());
  with_units(view_of(text), [&](const auto* s) {
    int64_t begin = 0;
    for (size_t i = 0; i < ends.size(); ++i) {
      put(words, i, SharedWords::part_of(s, text, begin, ends[i]));
      begin = ends[i];
    }
  });
  return words;
}

// Calls compute(begin, end) for parts of the texts on all threads, without the GIL, and build(begin, end) for each part
// that is computed, with the GIL, in order and on the calling thread, which builds what it can in between. So what is
// built under the GIL takes no time of its own unless it is more than the other threads' work.
template <class Compute, class Build>
void compute_and_build(const std::vector<miaobi::TextView>& texts, Compute&& compute, Build&& build) {
  constexpr int64_t kPartCharacters = 8192;  // half a millisecond of work, many times what it costs to take the GIL
  std::vector<int64_t> ends{0};
  int64_t characters = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    characters += texts[i].size;
    if (characters >= kPartCharacters || i + 1 == texts.size()) {
      ends.push_back(static_cast<int64_t>(i + 1));
      characters = 0;
    }
  }
  const auto parts = static_cast<int64_t>(ends.size()) - 1;
  const std::unique_ptr<std::atomic<bool>[]> done(new std::atomic<bool>[static_cast<size_t>(parts)]());
  int64_t built = 0;
  const auto caller = std::this_thread::get_id();
  const pybind11::gil_scoped_release unlocked;
  const auto build_ready = [&] {
    if (built == parts || !done[built].load(std::memory_order_acquire)) return;
    const pybind11::gil_scoped_acquire locked;
    for (; built < parts && done[built].load(std::memory_order_acquire); ++built) build(ends[built], ends[built + 1]);
  };
  miaobi::parallel_for(parts, [&](int64_t part) {
    compute(ends[part], ends[part + 1]);
    done[part].store(true, std::memory_order_release);
    if (std::this_thread::get_id() == caller) build_ready();
  });
  build_ready();
}

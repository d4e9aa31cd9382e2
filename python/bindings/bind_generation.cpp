// SPDX-License-Identifier: MIT
// The KV cache, cached forward passes and the sampler.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <memory>
#include <mutex>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "miaobi/kv_cache.h"
#include "miaobi/sampler.h"
#include "model_handle.h"

namespace py = pybind11;
using namespace py::literals;
using namespace miaobi;

namespace {

struct CacheHandle {
  CacheHandle(const ModelHandle& m, int64_t capacity, const std::string& dtype)
      : cache(m.model.config().n_layer, m.model.config().n_head, m.model.config().n_embd / m.model.config().n_head,
              capacity, weight_type(dtype)) {}

  // f(cache), not while a step of another thread is in it.
  template <class F>
  auto locked(F&& f) {
    const std::lock_guard<std::mutex> lock(mutex);
    return f(cache);
  }

  KVCache cache;
  Workspace workspace;
  std::mutex mutex;
};

FloatArray forward_cached(ModelHandle& h, CacheHandle& c, const std::vector<int64_t>& sequences,
                          const IntArray& ids, const LongArray& offsets) {
  MIAOBI_CHECK(ids.ndim() == 1, "expected flat ids, got ", ids.ndim(), " dimensions");
  check_offsets(offsets, ids.size());
  MIAOBI_CHECK(offsets.size() == static_cast<py::ssize_t>(sequences.size()) + 1, "expected ", sequences.size() + 1,
               " offsets for ", sequences.size(), " sequences, got ", offsets.size());
  FloatArray logits = new_mat(static_cast<int64_t>(sequences.size()), h.model.config().vocab_size);
  const Mat out = mutable_mat(logits);
  const py::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(c.mutex);
  const std::shared_lock<std::shared_mutex> packing(h.packing);
  h.model.forward_cached(c.cache, sequences.data(), ids.data(), offsets.data(), static_cast<int64_t>(sequences.size()),
                         out, c.workspace);
  return logits;
}

int32_t sample(Sampler& sampler, const FloatArray& logits, const IntArray& history, const IntArray& banned) {
  MIAOBI_CHECK(logits.ndim() == 1 && logits.size() > 0, "expected logits (V,), got ", logits.ndim(), " dimensions");
  const py::gil_scoped_release release;
  return sampler.sample(logits.data(), logits.size(), history.data(), history.size(), banned.data(), banned.size());
}

}  // namespace

void register_generation(py::module_& m) {
  py::class_<CacheHandle>(m, "KVCache", "A pool of token blocks for the keys and values of a model's sequences.")
      .def(py::init<const ModelHandle&, int64_t, const std::string&>(), "model"_a, "capacity"_a, "dtype"_a = "float32",
           "Room for `capacity` tokens over all sequences, rounded up to blocks of 32, as \"float32\" or \"bf16\".")
      .def(
          "add_sequence", [](CacheHandle& c) { return c.locked([](KVCache& k) { return k.add_sequence(); }); },
          "An empty sequence's number.")
      .def(
          "free_sequence", [](CacheHandle& c, int64_t s) { c.locked([s](KVCache& k) { k.free_sequence(s); }); },
          "sequence"_a, "Gives its blocks back; the number may be given out again.")
      .def(
          "fork", [](CacheHandle& c, int64_t s) { return c.locked([s](KVCache& k) { return k.fork(s); }); },
          "sequence"_a, "A new sequence with the same tokens; blocks are shared until one of the two writes.")
      .def(
          "length", [](CacheHandle& c, int64_t s) { return c.locked([s](const KVCache& k) { return k.length(s); }); },
          "sequence"_a, "Tokens in a sequence.")
      .def(
          "truncate", [](CacheHandle& c, int64_t s, int64_t n) { c.locked([s, n](KVCache& k) { k.truncate(s, n); }); },
          "sequence"_a, "length"_a, "Drops tokens from the end.")
      .def(
          "clear", [](CacheHandle& c) { c.locked([](KVCache& k) { k.clear(); }); }, "Frees every sequence.")
      .def(
          "info",
          [](CacheHandle& c) -> py::typing::Dict<py::str, int64_t> {
            const int64_t used = c.locked([](const KVCache& k) { return k.used(); });
            return py::dict("capacity"_a = c.cache.capacity(), "used"_a = used, "bytes"_a = c.cache.bytes());
          },
          "capacity and used in tokens, bytes of the pool.");
  m.def("forward_cached", forward_cached, "model"_a, "cache"_a, "sequences"_a, "ids"_a.noconvert(),
        "offsets"_a.noconvert(),
        "Appends flat int32 ids (N,), cut by int64 offsets (S+1,), to S cached sequences; logits (S, V) after the\n"
        "last id of each.");

  py::class_<Sampler>(m, "Sampler", "From logits to the next token; the n-th draw is a function of seed and n.")
      .def(py::init([](bool do_sample, float temperature, int64_t top_k, float top_p, float min_p,
                       float repetition_penalty, int64_t no_repeat_ngram_size, uint64_t seed) {
             return std::make_unique<Sampler>(
                 SamplingOptions{do_sample, temperature, top_k, top_p, min_p, repetition_penalty, no_repeat_ngram_size},
                 seed);
           }),
           "do_sample"_a = true, "temperature"_a = 1.0f, "top_k"_a = 0, "top_p"_a = 1.0f, "min_p"_a = 0.0f,
           "repetition_penalty"_a = 1.0f, "no_repeat_ngram_size"_a = 0, "seed"_a = 0)
      .def("sample", sample, "logits"_a.noconvert(), "history"_a.noconvert(),
           "banned"_a.noconvert() = IntArray(std::vector<py::ssize_t>{0}),
           "The next token for float32 logits (V,), given all int32 tokens so far; banned ids are never chosen.");
}

// SPDX-License-Identifier: MIT
// The KV cache, cached forward passes and the sampler.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <memory>
#include <mutex>
#include <span>
#include <utility>
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
  Buffer<float> logits;          // of sample_cached
  std::vector<int64_t> offsets;  // 0, 1, 2, ...
  std::mutex mutex;
};

FloatArray forward_cached(ModelHandle& h, CacheHandle& c, const std::vector<int64_t>& sequences, const IntArray& ids,
                          const LongArray& offsets) {
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

std::span<const float> logits_of(const FloatArray& logits) {
  MIAOBI_CHECK(logits.ndim() == 1 && logits.size() > 0, "expected logits (V,), got ", logits.ndim(), " dimensions");
  return {logits.data(), static_cast<size_t>(logits.size())};
}

std::span<const int32_t> ids_of(const IntArray& ids) { return {ids.data(), static_cast<size_t>(ids.size())}; }

std::vector<SampleRow> rows_of(const std::vector<Sampler*>& samplers, const std::vector<IntArray>& banned) {
  MIAOBI_CHECK(banned.size() == samplers.size(), "expected banned ids for each of ", samplers.size(), " samplers, got ",
               banned.size());
  std::vector<SampleRow> rows;
  rows.reserve(samplers.size());
  for (size_t i = 0; i < samplers.size(); ++i) {
    MIAOBI_CHECK(samplers[i] != nullptr, "expected a sampler, got None");
    rows.push_back({samplers[i], {}, ids_of(banned[i])});
  }
  return rows;
}

std::vector<int32_t> tokens_of(const std::vector<SampleRow>& rows) {
  std::vector<int32_t> tokens;
  tokens.reserve(rows.size());
  for (const SampleRow& row : rows) tokens.push_back(row.token);
  return tokens;
}

std::vector<int32_t> sample_all(const std::vector<Sampler*>& samplers, const std::vector<FloatArray>& logits,
                                const std::vector<IntArray>& banned) {
  MIAOBI_CHECK(logits.size() == samplers.size(), "expected logits for each of ", samplers.size(), " samplers, got ",
               logits.size());
  std::vector<SampleRow> rows = rows_of(samplers, banned);
  for (size_t i = 0; i < rows.size(); ++i) rows[i].logits = logits_of(logits[i]);
  {
    const py::gil_scoped_release release;
    sample_rows(rows);
  }
  return tokens_of(rows);
}

std::vector<int32_t> sample_cached(ModelHandle& h, CacheHandle& c, const std::vector<int64_t>& sequences,
                                   const std::vector<int32_t>& ids, const std::vector<Sampler*>& samplers,
                                   const std::vector<IntArray>& banned) {
  MIAOBI_CHECK(!sequences.empty() && ids.size() == sequences.size() && samplers.size() == sequences.size(),
               "expected an id and a sampler for each of ", sequences.size(), " sequences, got ", ids.size(), " and ",
               samplers.size());
  std::vector<SampleRow> rows = rows_of(samplers, banned);
  {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(c.mutex);
    const auto count = static_cast<int64_t>(ids.size()), vocabulary = h.model.config().vocab_size;
    if (c.logits.size() < count * vocabulary) c.logits = Buffer<float>(count * vocabulary);
    for (auto next = static_cast<int64_t>(c.offsets.size()); next <= count; ++next) c.offsets.push_back(next);
    const Mat logits(c.logits.data(), count, vocabulary);
    {
      const std::shared_lock<std::shared_mutex> packing(h.packing);
      h.model.forward_cached(c.cache, sequences.data(), ids.data(), c.offsets.data(), count, logits, c.workspace);
    }
    for (int64_t i = 0; i < count; ++i) {
      rows[static_cast<size_t>(i)].logits = {logits.row(i), static_cast<size_t>(vocabulary)};
    }
    sample_rows(rows);
  }
  return tokens_of(rows);
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

  // The GIL is kept: a token takes some microseconds, and to get the GIL back may take milliseconds.
  py::class_<Sampler>(m, "Sampler", "Chooses the tokens of one text; the n-th draw is a function of seed and n.")
      .def(
          py::init([](bool do_sample, float temperature, int64_t top_k, float top_p, float min_p, float typical_p,
                      float repetition_penalty, float presence_penalty, float frequency_penalty, int64_t penalty_window,
                      int64_t no_repeat_ngram_size, int64_t history, Sampler::Bias bias, uint64_t seed) {
            return std::make_unique<Sampler>(
                SamplingOptions{do_sample, temperature, top_k, top_p, min_p, typical_p, repetition_penalty,
                                presence_penalty, frequency_penalty, penalty_window, no_repeat_ngram_size, history},
                seed, std::move(bias));
          }),
          "do_sample"_a = true, "temperature"_a = 1.0f, "top_k"_a = 0, "top_p"_a = 1.0f, "min_p"_a = 0.0f,
          "typical_p"_a = 1.0f, "repetition_penalty"_a = 1.0f, "presence_penalty"_a = 0.0f,
          "frequency_penalty"_a = 0.0f, "penalty_window"_a = 0, "no_repeat_ngram_size"_a = 0, "history"_a = 1024,
          "bias"_a = Sampler::Bias{}, "seed"_a = 0,
          "bias: (id, value) pairs that are added to the logits; history: tokens that are remembered.")
      .def(
          "accept", [](Sampler& s, const IntArray& ids, bool written) { s.accept(ids_of(ids), written); },
          "ids"_a.noconvert(), "written"_a = true, "Appends int32 ids to the text, as written or of the prompt.")
      .def(
          "sample",
          [](Sampler& s, const FloatArray& logits, const IntArray& banned) {
            return s.sample(logits_of(logits), ids_of(banned));
          },
          "logits"_a.noconvert(), "banned"_a.noconvert() = IntArray(std::vector<py::ssize_t>{0}),
          "The next token for float32 logits (V,), accepted as written; banned int32 ids are never chosen.")
      .def(
          "log_probabilities",
          [](Sampler& s, const FloatArray& logits, const IntArray& banned) {
            FloatArray out(logits.size());
            s.log_probabilities(logits_of(logits), ids_of(banned), out.mutable_data());
            return out;
          },
          "logits"_a.noconvert(), "banned"_a.noconvert() = IntArray(std::vector<py::ssize_t>{0}),
          "log(softmax) (V,) after penalties and bans; no token is accepted.")
      .def(
          "fork", [](const Sampler& s) { return std::make_unique<Sampler>(s); }, "An independent copy.")
      .def_property_readonly("looping", &Sampler::looping,
                             "Whether the end of what was written says the same at least three times.");
  m.def("sample_rows", sample_all, "samplers"_a, "logits"_a, "banned"_a,
        "Sampler.sample of several texts, each with float32 logits (V,) and banned int32 ids, on all threads. No\n"
        "sampler may be there twice.");
  m.def("sample_cached", sample_cached, "model"_a, "cache"_a, "sequences"_a, "ids"_a, "samplers"_a, "banned"_a,
        "Appends one id to each of S cached sequences and gives what their samplers choose next, as sample_rows does.");
}

// SPDX-License-Identifier: MIT
// GPT and its optimizer.
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <mutex>

#include "arrays.h"
#include "bindings.h"
#include "miaobi/adamw.h"
#include "miaobi/gpt.h"
#include "model_handle.h"

namespace py = pybind11;
using namespace py::literals;
using namespace miaobi;

namespace {

Activation activation_named(const std::string& name) {
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Activation::kGelu;
  MIAOBI_CHECK(name == "relu", "expected activation_function \"gelu_new\" or \"relu\", got \"", name, "\"");
  return Activation::kRelu;
}

struct Losses {
  double sum = 0;
  int64_t count = 0;
};

// In ascending order and double precision.
Losses total(const float* losses, const int32_t* targets, int64_t n) {
  Losses t;
  for (int64_t i = 0; i < n; ++i) {
    t.sum += static_cast<double>(losses[i]);
    t.count += targets[i] != kIgnoreIndex;
  }
  return t;
}

int64_t count_scored(const IntArray& targets) {
  int64_t n = 0;
  for (py::ssize_t i = 0; i < targets.size(); ++i) n += targets.data()[i] != kIgnoreIndex;
  return n;
}

void check_ids(const IntArray& ids, const LongArray& offsets) {
  MIAOBI_CHECK(ids.ndim() == 1, "expected flat ids, got ", ids.ndim(), " dimensions");
  check_offsets(offsets, ids.size());
}

void check_batch(const IntArray& ids, const IntArray& targets, const LongArray& offsets) {
  check_ids(ids, offsets);
  MIAOBI_CHECK(targets.ndim() == 1 && targets.size() == ids.size(), "expected one target for each of ", ids.size(),
               " ids, got ", targets.size());
}

FloatArray forward(ModelHandle& h, const IntArray& ids, const LongArray& offsets) {
  check_ids(ids, offsets);
  FloatArray logits = new_mat(ids.size(), h.model.config().vocab_size);
  const Mat out = mutable_mat(logits);
  const py::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(h.mutex);
  h.model.forward(ids.data(), offsets.data(), offsets.size() - 1, out);
  return logits;
}

py::typing::Tuple<FloatArray, IntArray> score_tokens(ModelHandle& h, const IntArray& ids, const IntArray& targets,
                                                     const LongArray& offsets) {
  check_batch(ids, targets, offsets);
  FloatArray losses(ids.size());
  IntArray predicted(ids.size());
  float* out = losses.mutable_data();
  int32_t* best = predicted.mutable_data();
  {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(h.mutex);
    h.scored = 0;
    h.model.token_losses(ids.data(), targets.data(), offsets.data(), offsets.size() - 1, out, best);
  }
  return py::make_tuple(losses, predicted);
}

FloatArray attention_weights(ModelHandle& h, const IntArray& ids) {
  MIAOBI_CHECK(ids.ndim() == 1, "expected flat ids, got ", ids.ndim(), " dimensions");
  const auto& config = h.model.config();
  FloatArray weights(std::vector<py::ssize_t>{config.n_layer, config.n_head, ids.size(), ids.size()});
  float* out = weights.mutable_data();
  const py::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(h.mutex);
  h.model.attention_weights(ids.data(), ids.size(), out);
  return weights;
}

FloatArray token_losses(ModelHandle& h, const IntArray& ids, const IntArray& targets, const LongArray& offsets) {
  check_batch(ids, targets, offsets);
  FloatArray losses(ids.size());
  float* out = losses.mutable_data();
  const int64_t scored = count_scored(targets);
  const py::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(h.mutex);
  h.scored = scored;
  h.model.token_losses(ids.data(), targets.data(), offsets.data(), offsets.size() - 1, out);
  return losses;
}

void backward(ModelHandle& h) {
  const py::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(h.mutex);
  h.unpack();
  h.model.backward(h.scored > 0 ? 1.0f / static_cast<float>(h.scored) : 0.0f);
}

py::typing::Tuple<double, int64_t> loss_backward(ModelHandle& h, const IntArray& ids, const IntArray& targets,
                                                 const LongArray& offsets, std::optional<int64_t> normalizer,
                                                 float label_smoothing, float z_loss,
                                                 const std::optional<std::string>& precision, float dropout,
                                                 uint64_t dropout_seed, int64_t dropout_step, int64_t first_row) {
  check_batch(ids, targets, offsets);
  MIAOBI_CHECK(label_smoothing >= 0 && label_smoothing < 1, "expected label_smoothing in [0, 1), got ",
               label_smoothing);
  MIAOBI_CHECK(z_loss >= 0, "expected z_loss >= 0, got ", z_loss);
  const int64_t n = normalizer.value_or(count_scored(targets));
  MIAOBI_CHECK(!normalizer || n > 0, "expected a positive normalizer, got ", n);
  Losses t;
  const std::string name = !precision ? get_matmul_precision() : *precision == "float32" ? "highest" : *precision;
  {
    const MatmulPrecisionScope scope(name);
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(h.mutex);
    h.unpack();
    float* losses = h.losses.reserve(ids.size());
    h.model.loss_backward(ids.data(), targets.data(), offsets.data(), offsets.size() - 1,
                          n > 0 ? 1.0f / static_cast<float>(n) : 0.0f, losses, {label_smoothing, z_loss},
                          {dropout, dropout_seed, dropout_step, first_row});
    t = total(losses, targets.data(), ids.size());
  }
  return py::make_tuple(t.sum, t.count);
}

// Keeps its model alive.
class AdamWHandle {
 public:
  AdamWHandle(std::shared_ptr<ModelHandle> model, float lr, std::pair<float, float> betas, float eps,
              float weight_decay)
      : model_(std::move(model)),
        optimizer(model_->model.arena(), {lr, betas.first, betas.second, eps, weight_decay}) {}

  void unpack() { model_->unpack(); }

 private:
  std::shared_ptr<ModelHandle> model_;

 public:
  AdamW optimizer;
};

}  // namespace

void register_model(py::module_& m) {
  m.attr("IGNORE_INDEX") = kIgnoreIndex;
  py::class_<ModelHandle, std::shared_ptr<ModelHandle>>(m, "GPT", "A GPT-2 decoder on flat ids with offsets.")
      .def(py::init([](int64_t vocab_size, int64_t n_positions, int64_t n_embd, int64_t n_layer, int64_t n_head,
                       int64_t n_inner, const std::string& activation_function, float layer_norm_epsilon,
                       bool tie_word_embeddings, uint64_t seed) {
             const GPTConfig config{vocab_size,
                                    n_positions,
                                    n_embd,
                                    n_layer,
                                    n_head,
                                    n_inner,
                                    activation_named(activation_function),
                                    layer_norm_epsilon,
                                    tie_word_embeddings};
             return std::make_shared<ModelHandle>(config, seed);
           }),
           py::kw_only(), "vocab_size"_a, "n_positions"_a, "n_embd"_a, "n_layer"_a, "n_head"_a, "n_inner"_a,
           "activation_function"_a, "layer_norm_epsilon"_a, "tie_word_embeddings"_a, "seed"_a)
      .def("forward", forward, "ids"_a.noconvert(), "offsets"_a.noconvert(),
           "Logits (N, V) of int32 ids (N,) in sequences at int64 offsets (S+1,).")
      .def("token_losses", token_losses, "ids"_a.noconvert(), "targets"_a.noconvert(), "offsets"_a.noconvert(),
           "Losses in nats (N,), 0 where the target is -100.")
      .def("score_tokens", score_tokens, "ids"_a.noconvert(), "targets"_a.noconvert(), "offsets"_a.noconvert(),
           "token_losses and the likeliest token at each target (N,), -100 where the target is -100.")
      .def("attention_weights", attention_weights, "ids"_a.noconvert(),
           "Weights (L, H, T, T) of every head for one sequence of ids (T,).")
      .def("backward", backward, "Gradients of the mean of the last token_losses accumulate.")
      .def("loss_backward", loss_backward, "ids"_a.noconvert(), "targets"_a.noconvert(), "offsets"_a.noconvert(),
           "normalizer"_a = py::none(), "label_smoothing"_a = 0.0f, "z_loss"_a = 0.0f, "precision"_a = py::none(),
           "dropout"_a = 0.0f, "dropout_seed"_a = 0, "dropout_step"_a = 0, "first_row"_a = 0,
           "Forward and backward in one pass: gradients of sum / normalizer accumulate; (sum, count).")
      .def(
          "pack",
          [](ModelHandle& h, const std::string& dtype) {
            const WeightType type = weight_type(dtype);
            const py::gil_scoped_release release;
            const std::unique_lock<std::shared_mutex> lock(h.packing);
            h.model.pack(type);
          },
          "dtype"_a, "Copies the matrices, as \"float32\" or \"bf16\", into the form that decoding reads fastest.")
      .def("unpack", &ModelHandle::unpack, py::call_guard<py::gil_scoped_release>(), "Drops that copy.")
      .def_property_readonly(
          "packed_as",
          [](const ModelHandle& h) -> std::optional<std::string> {
            if (!h.model.is_packed()) return std::nullopt;
            return h.model.packed_as() == WeightType::kBf16 ? "bf16" : "float32";
          },
          "The dtype of that copy, if there is one.")
      .def(
          "zero_grad", [](ModelHandle& h) { h.model.arena().zero_grad(); }, "Clears the gradients.")
      .def_property_readonly(
          "num_parameters", [](const ModelHandle& h) { return h.model.arena().count(); }, "Number of parameters.")
      .def_property_readonly(
          "arena",
          [](py::object self) {
            auto& arena = self.cast<ModelHandle&>().model.arena();
            return view_of(arena.values(), {arena.size()}, self);
          },
          "All parameters as one flat view, gaps for alignment included.")
      .def_property_readonly(
          "gradient_arena",
          [](py::object self) {
            auto& arena = self.cast<ModelHandle&>().model.arena();
            return view_of(arena.grads(), {arena.size()}, self);
          },
          "All gradients as one flat view of the same layout.")
      .def(
          "parameters",
          [](py::object self) { return parameter_views(self.cast<ModelHandle&>().model.arena(), false, self); },
          "Name -> view.")
      .def(
          "gradients",
          [](py::object self) { return parameter_views(self.cast<ModelHandle&>().model.arena(), true, self); },
          "Name -> view of the gradient.");

  py::class_<AdamWHandle>(m, "AdamW", "AdamW over the arena of a GPT.")
      .def(py::init<std::shared_ptr<ModelHandle>, float, std::pair<float, float>, float, float>(), "model"_a, "lr"_a,
           "betas"_a, "eps"_a, "weight_decay"_a)
      .def(
          "step",
          [](AdamWHandle& h, std::optional<float> lr, std::optional<float> max_grad_norm) {
            MIAOBI_CHECK(!max_grad_norm || *max_grad_norm > 0, "[adamw] expected max_grad_norm > 0, got ",
                         *max_grad_norm);
            const py::gil_scoped_release release;
            h.unpack();
            return h.optimizer.step(lr.value_or(h.optimizer.options().lr), max_grad_norm.value_or(0.0f));
          },
          "lr"_a = py::none(), "max_grad_norm"_a = py::none(),
          "One update; gives the gradient's norm before clipping. Nothing changes where that is not finite.")
      .def(
          "freeze", [](AdamWHandle& h, const std::vector<std::string>& names) { h.optimizer.freeze(names); }, "names"_a,
          "No later step changes these parameters.")
      .def_property(
          "step_count", [](AdamWHandle& h) { return h.optimizer.step_count(); },
          [](AdamWHandle& h, int64_t n) { h.optimizer.set_step_count(n); }, "Updates made so far.")
      .def_property_readonly(
          "m",
          [](py::object self) {
            auto& optimizer = self.cast<AdamWHandle&>().optimizer;
            return view_of(optimizer.m(), {optimizer.size()}, self);
          },
          "First moments, in the arena's layout.")
      .def_property_readonly(
          "v",
          [](py::object self) {
            auto& optimizer = self.cast<AdamWHandle&>().optimizer;
            return view_of(optimizer.v(), {optimizer.size()}, self);
          },
          "Second moments, in the arena's layout.");
}

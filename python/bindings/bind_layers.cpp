// SPDX-License-Identifier: MIT
// Layers with NumPy in and out.
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <optional>

#include "arrays.h"
#include "bindings.h"
#include "miaobi/layers.h"
#include "miaobi/rng.h"

namespace py = pybind11;
using namespace py::literals;
using namespace miaobi;

namespace {

// A layer with an arena and a workspace of its own, and a lock, so that two Python threads cannot be in them at
// once. x is (N, in) or (B, T, in): B sequences of T tokens.
class LayerHandle {
 public:
  template <class Make>
  LayerHandle(uint64_t seed, Make&& make) {
    layer_ = make(arena_);
    arena_.allocate();
    layer_->initialize(seed, 0);
  }
  virtual ~LayerHandle() = default;

  FloatArray forward(const FloatArray& x) {
    const Shape shape = shape_of(x, layer_->in_dim(), "x");
    FloatArray y = like(x, layer_->out_dim());
    const Mat out(y.mutable_data(), shape.tokens(), layer_->out_dim());
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    workspace_.reset();
    // The caller may change x before backward.
    const Mat own = workspace_.mat(shape.tokens(), layer_->in_dim());
    std::copy(x.data(), x.data() + x.size(), own.data);
    offsets_.resize(static_cast<size_t>(shape.sequences + 1));
    for (int64_t s = 0; s <= shape.sequences; ++s) offsets_[static_cast<size_t>(s)] = s * shape.length;
    shape_ = shape;
    layer_->forward(own, {offsets_.data(), shape.sequences, shape.length}, out, workspace_);
    return y;
  }

  FloatArray backward(const FloatArray& dy, std::optional<float> lr) {
    const Shape shape = shape_of(dy, layer_->out_dim(), "dy");
    FloatArray dx = like(dy, layer_->in_dim());
    const Mat out(dx.mutable_data(), shape.tokens(), layer_->in_dim());
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    MIAOBI_CHECK(shape_.has_value(), "[", layer_->type(), "] backward() expects a forward() before it");
    MIAOBI_CHECK(shape.sequences == shape_->sequences && shape.length == shape_->length, "[", layer_->type(),
                 "] expected dy of the shape that forward() gave");
    layer_->backward(ConstMat(dy.data(), shape.tokens(), layer_->out_dim()), out, workspace_);
    if (lr.has_value()) {
      descend(*lr);
      arena_.zero_grad();
    }
    return dx;
  }

  void step(float lr) {
    const std::lock_guard<std::mutex> lock(mutex_);
    descend(lr);
  }

  void set_training(bool on) { training_ = on; }
  bool training() const { return training_; }
  ParameterArena& arena() { return arena_; }
  const char* type() const { return layer_->type(); }

 protected:
  struct Shape {
    int64_t sequences, length;
    int64_t tokens() const { return sequences * length; }
  };

  Shape shape_of(const FloatArray& a, int64_t columns, const char* name) const {
    MIAOBI_CHECK((a.ndim() == 2 || a.ndim() == 3) && a.shape(a.ndim() - 1) == columns, "[", layer_->type(),
                 "] expected ", name, " (N, ", columns, ") or (B, T, ", columns, "), got ", describe(a));
    return a.ndim() == 3 ? Shape{a.shape(0), a.shape(1)} : Shape{1, a.shape(0)};
  }
  static std::string describe(const FloatArray& a) {
    std::string text = "(";
    for (py::ssize_t i = 0; i < a.ndim(); ++i) {
      if (i > 0) text += ", ";
      text += std::to_string(a.shape(i));
    }
    return text + ")";
  }
  static FloatArray like(const FloatArray& a, int64_t columns) {
    std::vector<py::ssize_t> shape(a.shape(), a.shape() + a.ndim());
    shape.back() = columns;
    return FloatArray(shape);
  }

  void descend(float lr) {
    float* values = arena_.values();
    const float* grads = arena_.grads();
    for (int64_t i = 0; i < arena_.size(); ++i) values[i] -= lr * grads[i];
  }

  mutable std::mutex mutex_;
  ParameterArena arena_;
  std::unique_ptr<Layer> layer_;
  Workspace workspace_;
  std::vector<int64_t> offsets_;
  std::optional<Shape> shape_;
  bool training_ = true;
};

class AttentionHandle final : public LayerHandle {
 public:
  AttentionHandle(int64_t dim, int64_t heads, uint64_t seed)
      : LayerHandle(seed, [&](ParameterArena& arena) {
          return std::make_unique<SelfAttention>(arena, dim, heads, 1e-5f, SelfAttention::Names{});
        }) {}

  void enable_kv_cache(std::optional<int64_t> capacity, std::optional<int64_t> window, const std::string& dtype) {
    const WeightType type = weight_type(dtype);
    MIAOBI_CHECK(!capacity || *capacity > 0, "[kv_cache] expected a positive capacity, got ", *capacity);
    MIAOBI_CHECK(!window || *window > 0, "[kv_cache] expected a positive window, got ", *window);
    const int64_t tokens = capacity.value_or(window.value_or(kDefaultCapacity)), rows = window.value_or(tokens);
    MIAOBI_CHECK(rows <= tokens, "[kv_cache] expected a window of at most the capacity, ", tokens, ", got ", rows);
    const std::lock_guard<std::mutex> lock(mutex_);
    window_ = rows;
    cache_.emplace(1, attention().heads(), attention().head_size(), tokens, type);
    history_.clear();
    sequence_ = cache_->add_sequence();
  }
  void disable_kv_cache() {
    const std::lock_guard<std::mutex> lock(mutex_);
    cache_.reset();
    history_.clear();
  }
  void clear_kv_cache() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (cache_) cache_->truncate(sequence_, 0);
    history_.clear();
  }
  bool kv_cache_enabled() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return cache_.has_value();
  }
  int64_t kv_cache_length() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return cache_ ? cache_->length(sequence_) : history_rows();
  }

  py::typing::Dict<py::str, int64_t> cache_info() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return cache_ ? py::dict("capacity"_a = cache_->capacity(), "used"_a = cache_->used(), "bytes"_a = cache_->bytes())
                  : py::dict("capacity"_a = 0, "used"_a = 0, "bytes"_a = 0);
  }

  // New rows x (n, C) after those of earlier calls -> their outputs (n, C).
  FloatArray forward_with_kv_cache(const FloatArray& x) {
    const ConstMat in = const_mat(x, "x");
    const int64_t dim = layer_->in_dim();
    MIAOBI_CHECK(in.cols == dim && in.rows > 0, "[SelfAttention] expected x (n, ", dim, ") with n > 0, got ",
                 describe(x));
    FloatArray y = new_mat(in.rows, dim);
    const Mat out = mutable_mat(y);
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    Workspace workspace;
    if (cache_) {
      append(in, out, workspace);
    } else {
      // Full recomputation: the same rows through a cache of their own.
      history_.insert(history_.end(), in.data, in.data + in.rows * dim);
      const ConstMat all(history_.data(), history_rows(), dim);
      const Mat whole = workspace.mat(all.rows, dim);
      KVCache cache(1, attention().heads(), attention().head_size(), all.rows);
      run(cache, cache.add_sequence(), all, whole, workspace);
      std::copy(whole.row(all.rows - in.rows), whole.row(all.rows - in.rows) + in.rows * dim, out.data);
    }
    return y;
  }

 private:
  static constexpr int64_t kDefaultCapacity = 2048;

  const SelfAttention& attention() const { return static_cast<const SelfAttention&>(*layer_); }
  int64_t history_rows() const { return static_cast<int64_t>(history_.size()) / layer_->in_dim(); }

  void run(KVCache& cache, int64_t sequence, ConstMat x, Mat y, Workspace& workspace) {
    const int64_t offsets[2] = {0, x.rows}, start = cache.length(sequence);
    const RaggedBatch batch{offsets, 1, x.rows};
    cache.extend(&sequence, batch);
    attention().forward_cached(x, cache, {&sequence, &start, batch}, 0, y, workspace);
  }

  // Without positions the rows in the window are all the state there is: what falls out of it is forgotten
  // by running the window's rows again, once every window's length at most.
  void append(ConstMat x, Mat y, Workspace& workspace) {
    const int64_t dim = layer_->in_dim();
    for (int64_t r = 0; r < x.rows;) {
      int64_t length = cache_->length(sequence_);
      if (length == window_) {
        const int64_t keep = window_ / 2;
        history_.erase(history_.begin(), history_.end() - keep * dim);
        cache_->truncate(sequence_, 0);
        if (keep > 0)
          run(*cache_, sequence_, ConstMat(history_.data(), keep, dim), workspace.mat(keep, dim), workspace);
        length = keep;
      }
      const int64_t rows = std::min(x.rows - r, window_ - length);
      history_.insert(history_.end(), x.row(r), x.row(r) + rows * dim);
      run(*cache_, sequence_, x.row_block(r, rows), y.row_block(r, rows), workspace);
      r += rows;
    }
  }

  std::optional<KVCache> cache_;
  int64_t sequence_ = 0, window_ = 0;
  std::vector<float> history_;  // inputs of the rows that count
};

Activation activation_named(const std::string& name) {
  if (name == "gelu" || name == "gelu_new") return Activation::kGelu;
  MIAOBI_CHECK(name == "relu", "expected activation \"gelu\", \"gelu_new\" or \"relu\", got \"", name, "\"");
  return Activation::kRelu;
}

void check_dims(const char* layer, std::initializer_list<int64_t> dims) {
  for (const int64_t d : dims) MIAOBI_CHECK(d > 0, "[", layer, "] expected positive dimensions, got ", d);
}

void check_eps(const char* layer, float eps) { MIAOBI_CHECK(eps > 0, "[", layer, "] expected eps > 0, got ", eps); }

// Makes the handle of a layer whose constructor takes the arena and `args`.
template <class T, class... Args>
std::unique_ptr<LayerHandle> make(uint64_t seed, Args... args) {
  return std::make_unique<LayerHandle>(seed,
                                       [&](ParameterArena& arena) { return std::make_unique<T>(arena, args...); });
}

}  // namespace

void register_layers(py::module_& m) {
  py::class_<LayerHandle>(m, "Layer",
                          "A layer: float32 (N, in) or (B, T, in) arrays in, the same with `out` columns out.")
      .def("forward", &LayerHandle::forward, "x"_a.noconvert(), "y of x; keeps what backward needs.")
      .def("backward", &LayerHandle::backward, "dy"_a.noconvert(), "lr"_a = py::none(),
           "dx of dy for the last forward. Gradients accumulate; with lr, one step of plain gradient descent\n"
           "follows and the gradients are cleared. dx is formed with the parameters before the step.")
      .def("step", &LayerHandle::step, "lr"_a, "parameters -= lr * gradients")
      .def(
          "zero_grad", [](LayerHandle& l) { l.arena().zero_grad(); }, "Clears the gradients.")
      .def(
          "train", [](LayerHandle& l) { l.set_training(true); }, "Training mode.")
      .def(
          "eval", [](LayerHandle& l) { l.set_training(false); }, "Evaluation mode.")
      .def_property_readonly("training", &LayerHandle::training, "Whether the layer is in training mode.")
      .def_property_readonly("layer_type", &LayerHandle::type, "The layer's class.")
      .def_property_readonly(
          "num_parameters", [](LayerHandle& l) { return l.arena().count(); }, "Number of parameters.")
      .def(
          "parameters", [](py::object self) { return parameter_views(self.cast<LayerHandle&>().arena(), false, self); },
          "Name -> view; writing changes the layer.")
      .def(
          "gradients", [](py::object self) { return parameter_views(self.cast<LayerHandle&>().arena(), true, self); },
          "Name -> view of the gradient.");

  m.def(
      "linear",
      [](int64_t in, int64_t out, uint64_t seed) {
        check_dims("Linear", {in, out});
        return make<Linear>(seed, in, out);
      },
      "in_dim"_a, "out_dim"_a, "seed"_a = 0, "Y = X W + b.");
  m.def(
      "layer_norm_layer",
      [](int64_t dim, float eps, uint64_t seed) {
        check_dims("LayerNorm", {dim});
        check_eps("LayerNorm", eps);
        return make<LayerNorm>(seed, dim, eps);
      },
      "dim"_a, "eps"_a = 1e-5f, "seed"_a = 0, "LayerNorm of the rows.");
  m.def(
      "fused_layer_norm_linear",
      [](int64_t in, int64_t out, float eps, uint64_t seed) {
        check_dims("FusedLayerNormLinear", {in, out});
        check_eps("FusedLayerNormLinear", eps);
        return make<FusedLayerNormLinear>(seed, in, out, eps, FusedLayerNormLinear::Names{});
      },
      "in_dim"_a, "out_dim"_a, "eps"_a = 1e-5f, "seed"_a = 0, "Y = LayerNorm(X) W + b.");
  m.def(
      "fused_gelu_linear",
      [](int64_t in, int64_t out, uint64_t seed) {
        check_dims("FusedGELULinear", {in, out});
        return make<FusedActivationLinear>(seed, Activation::kGelu, in, out, FusedActivationLinear::Names{});
      },
      "in_dim"_a, "out_dim"_a, "seed"_a = 0, "Y = GELU(X) W + b.");
  m.def(
      "feed_forward",
      [](int64_t dim, int64_t hidden, const std::string& activation, uint64_t seed) {
        check_dims("FeedForward", {dim, hidden});
        return make<FeedForward>(seed, dim, hidden, activation_named(activation), 1e-5f, FeedForward::Names{});
      },
      "dim"_a, "hidden_dim"_a, "activation"_a = "gelu", "seed"_a = 0, "Y = activation(X W1 + b1) W2 + b2.");
  m.def(
      "transformer_block",
      [](int64_t dim, int64_t hidden, int64_t heads, uint64_t seed) {
        check_dims("TransformerBlock", {dim, hidden, heads});
        return make<TransformerBlock>(seed, dim, hidden, heads, Activation::kGelu, 1e-5f, std::string());
      },
      "dim"_a, "hidden_dim"_a, "num_heads"_a = 8, "seed"_a = 0, "Pre-LN block of GPT-2.");
  py::class_<AttentionHandle, LayerHandle>(m, "SelfAttention", "Causal multi-head self-attention.")
      .def(py::init<int64_t, int64_t, uint64_t>(), "embedding_dim"_a, "num_heads"_a = 8, "seed"_a = 0)
      .def("enable_kv_cache", &AttentionHandle::enable_kv_cache, "capacity"_a = py::none(), "window"_a = py::none(),
           "dtype"_a = "float32",
           "Keeps keys and values of up to `capacity` tokens (default: the window, or 2048); `window` bounds how\n"
           "many past rows a row attends to: when it is full, its newer half is run again.")
      .def("disable_kv_cache", &AttentionHandle::disable_kv_cache, "Back to full recomputation, from an empty past.")
      .def("clear_kv_cache", &AttentionHandle::clear_kv_cache, "Forgets all past rows.")
      .def("cache_info", &AttentionHandle::cache_info, "capacity and used in rows, bytes of the cache; 0 when off.")
      .def("forward_with_kv_cache", &AttentionHandle::forward_with_kv_cache, "x"_a.noconvert(),
           "Outputs (n, C) of new rows x (n, C), one or many, after those of earlier calls; without the cache\n"
           "all rows are computed again, with equal results.")
      .def_property_readonly("kv_cache_enabled", &AttentionHandle::kv_cache_enabled, "Whether the cache is on.")
      .def_property_readonly("kv_cache_length", &AttentionHandle::kv_cache_length, "Past rows that count.");
}

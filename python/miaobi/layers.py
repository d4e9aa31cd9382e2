# SPDX-License-Identifier: MIT
"""Layers with NumPy arrays in and out.

All share one interface. x is (N, in) or (B, T, in); the output has the same leading dimensions.

- ``forward(x)`` gives y and keeps what ``backward`` needs;
- ``backward(dy)`` gives dx and accumulates gradients; ``backward(dy, lr)`` also takes one step of plain gradient
  descent and clears the gradients (dx is formed with the parameters before the step);
- ``parameters()`` and ``gradients()`` are dicts of views: writing to them changes the layer;
- ``step(lr)``, ``zero_grad()``, ``train()``, ``eval()``, ``layer_type``, ``num_parameters``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miaobi import _core
from miaobi._arrays import as_float32

__all__ = [
    "FeedForward",
    "FusedGELULinear",
    "FusedLayerNormLinear",
    "Layer",
    "LayerNorm",
    "Linear",
    "SelfAttention",
    "TransformerBlock",
]

Array = npt.NDArray[np.float32]


class Layer:
    """The common interface; made through one of the subclasses."""

    def __init__(self, core: _core.Layer) -> None:
        self._core = core

    def forward(self, x: npt.ArrayLike) -> Array:
        """y of x."""
        return self._core.forward(as_float32(x, "x"))

    __call__ = forward

    def backward(self, dy: npt.ArrayLike, lr: float | None = None) -> Array:
        """dx of dy, for the last forward. Gradients accumulate; with lr a step follows and they are cleared."""
        return self._core.backward(as_float32(dy, "dy"), lr)

    def parameters(self) -> dict[str, Array]:
        """Name -> view of the parameter."""
        return self._core.parameters()

    def gradients(self) -> dict[str, Array]:
        """Name -> view of its gradient."""
        return self._core.gradients()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self._core.zero_grad()

    def step(self, lr: float) -> None:
        """parameters -= lr * gradients."""
        self._core.step(lr)

    def train(self) -> None:
        """Training mode."""
        self._core.train()

    def eval(self) -> None:
        """Evaluation mode."""
        self._core.eval()

    @property
    def training(self) -> bool:
        """Whether the layer is in training mode."""
        return self._core.training

    @property
    def layer_type(self) -> str:
        """The name of the layer's class."""
        return self._core.layer_type

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return self._core.num_parameters

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {view.shape}" for name, view in self.parameters().items())
        return f"{self.layer_type}({shapes})"


class Linear(Layer):
    """Y = X W + b. "weight" (in, out), "bias" (out,)."""

    def __init__(self, in_dim: int, out_dim: int, *, seed: int = 0) -> None:
        super().__init__(_core.linear(in_dim, out_dim, seed))


class LayerNorm(Layer):
    """Rows with mean 0 and variance 1, times gamma plus beta. "gamma", "beta" (dim,)."""

    def __init__(self, dim: int, *, eps: float = 1e-5, seed: int = 0) -> None:
        super().__init__(_core.layer_norm_layer(dim, eps, seed))


class FusedLayerNormLinear(Layer):
    """Y = LayerNorm(X) W + b in one pass. "gamma", "beta" (in,), "weight" (in, out), "bias" (out,)."""

    def __init__(self, in_dim: int, out_dim: int, *, eps: float = 1e-5, seed: int = 0) -> None:
        super().__init__(_core.fused_layer_norm_linear(in_dim, out_dim, eps, seed))


class FusedGELULinear(Layer):
    """Y = GELU(X) W + b in one pass; GELU in its tanh form. "weight" (in, out), "bias" (out,)."""

    def __init__(self, in_dim: int, out_dim: int, *, seed: int = 0) -> None:
        super().__init__(_core.fused_gelu_linear(in_dim, out_dim, seed))


class FeedForward(Layer):
    """Y = activation(X W1 + b1) W2 + b2, activation "gelu" (tanh form) or "relu". "w1", "b1", "w2", "b2"."""

    def __init__(self, dim: int, hidden_dim: int, activation: str = "gelu", *, seed: int = 0) -> None:
        super().__init__(_core.feed_forward(dim, hidden_dim, activation, seed))


class TransformerBlock(Layer):
    """Pre-LN block of GPT-2: H = X + SelfAttention(LN(X)), Y = H + FeedForward(LN(H)). Names as in GPT-2."""

    def __init__(self, dim: int, hidden_dim: int, num_heads: int = 8, *, seed: int = 0) -> None:
        super().__init__(_core.transformer_block(dim, hidden_dim, num_heads, seed))


class SelfAttention(Layer):
    """Causal multi-head self-attention. "w_qkv" (C, 3C), "b_qkv" (3C,), "w_o" (C, C), "b_o" (C,)."""

    _core: _core.SelfAttention

    def __init__(self, embedding_dim: int, num_heads: int = 8, *, seed: int = 0) -> None:
        super().__init__(_core.SelfAttention(embedding_dim, num_heads, seed))

    def enable_kv_cache(
        self, capacity: int | None = None, window: int | None = None, *, dtype: str = "float32"
    ) -> None:
        """Keep keys and values of past rows: `capacity` of them (default: the window, or 2048).

        A row attends to at most `window` past rows. When the window is full its newer half is run again, which
        costs one extra row for each row in the long run. With `dtype` "bf16" the cache is half as large, and rounded.
        """
        self._core.enable_kv_cache(capacity, window, dtype)

    def disable_kv_cache(self) -> None:
        """Compute all rows again at every call, from an empty past."""
        self._core.disable_kv_cache()

    def clear_kv_cache(self) -> None:
        """Forget all past rows."""
        self._core.clear_kv_cache()

    def cache_info(self) -> dict[str, int]:
        """Capacity and use of the cache in rows, both in whole blocks of 32, and its bytes; zeros when it is off."""
        return dict(self._core.cache_info())

    def forward_with_kv_cache(self, x: npt.ArrayLike) -> Array:
        """Outputs (n, C) of new rows x (n, C), n >= 1, after those of earlier calls.

        The same rows give equal results however they are cut into calls and, as long as the window holds them all,
        whether the cache is on or off.
        """
        return self._core.forward_with_kv_cache(as_float32(x, "x"))

    @property
    def kv_cache_enabled(self) -> bool:
        """Whether the cache is on."""
        return self._core.kv_cache_enabled

    @property
    def kv_cache_length(self) -> int:
        """Past rows that count."""
        return self._core.kv_cache_length

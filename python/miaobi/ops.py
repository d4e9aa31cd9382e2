# SPDX-License-Identifier: MIT
"""Stateless ops on NumPy arrays, computed in float32 by the engine."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from miaobi import _core
from miaobi._arrays import as_float32, as_ids

__all__ = ["attention", "cross_entropy", "gelu", "layer_norm", "matmul", "softmax"]

Array = npt.NDArray[np.float32]


def _rows(x: Array, name: str) -> Array:
    """x as a matrix of its rows."""
    if x.ndim == 0:
        raise ValueError(f"expected {name} with at least one dimension, got a number")
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def matmul(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    out: Array | None = None,
) -> Array:
    """op(a) op(b): (M, K) x (K, N) -> (M, N). A transposed operand is stored (K, M) or (N, K).

    The result goes into `out`, C-contiguous float32 (M, N) apart from a and b, where it is given.
    """
    try:
        # The core takes nothing but arrays of the right type and layout, so these need no look from here, which would
        # take as long as a small product.
        return _core.matmul(a, b, transpose_a, transpose_b, out)  # type: ignore[arg-type]
    except TypeError:
        pass
    if out is not None and not (isinstance(out, np.ndarray) and out.dtype == np.float32 and out.flags.c_contiguous):
        raise ValueError("expected out to be a C-contiguous array of float32")
    return _core.matmul(as_float32(a, "a"), as_float32(b, "b"), transpose_a, transpose_b, out)


def layer_norm(x: npt.ArrayLike, gamma: npt.ArrayLike, beta: npt.ArrayLike, eps: float = 1e-5) -> Array:
    """(x - mean) / sqrt(var + eps) * gamma + beta over the last axis; var is the biased variance."""
    array = as_float32(x, "x")
    return _core.layer_norm(_rows(array, "x"), as_float32(gamma, "gamma"), as_float32(beta, "beta"), eps).reshape(
        array.shape
    )


def gelu(x: npt.ArrayLike) -> Array:
    """GELU, tanh form, element by element."""
    return _core.gelu(as_float32(x, "x"))


def softmax(x: npt.ArrayLike) -> Array:
    """Softmax over the last axis."""
    array = as_float32(x, "x")
    return _core.softmax(_rows(array, "x")).reshape(array.shape)


def cross_entropy(logits: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Mean negative log-likelihood in nats of logits (..., V) at targets (...); targets of -100 do not count.

    ValueError for a target outside [0, V), and where no target counts.
    """
    array, ids = as_float32(logits, "logits"), as_ids(targets, "targets")
    rows = _rows(array, "logits")
    if array.shape[:-1] != ids.shape:
        raise ValueError(f"expected targets of shape {array.shape[:-1]}, got {ids.shape}")
    losses = _core.token_cross_entropy(rows, ids.reshape(-1))
    count = int(np.count_nonzero(ids != _core.IGNORE_INDEX))
    if count == 0:
        raise ValueError("expected at least one target that counts, got none")
    return float(losses.sum(dtype=np.float64)) / count


def attention(q: npt.ArrayLike, k: npt.ArrayLike, v: npt.ArrayLike, causal: bool = True) -> Array:
    """softmax(q k^T / sqrt(D)) v for q, k, v of shape (B, H, T, D), as PyTorch's scaled_dot_product_attention."""
    arrays = [as_float32(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v"))]
    shape = arrays[0].shape
    if len(shape) != 4 or any(x.shape != shape for x in arrays):
        raise ValueError(f"expected q, k and v of one shape (B, H, T, D), got {[x.shape for x in arrays]}")
    batch, heads, length, size = shape
    if 0 in shape:
        return np.zeros(shape, dtype=np.float32)
    # The engine's layout is (tokens, heads * D); B * H sequences of one head have it as they lie.
    flat = [x.reshape(batch * heads * length, size) for x in arrays]
    offsets = np.arange(batch * heads + 1, dtype=np.int64) * length
    out, _ = _core.attention(flat[0], flat[1], flat[2], offsets, 1, causal)
    return out.reshape(shape)

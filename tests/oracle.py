# SPDX-License-Identifier: MIT
"""What the engine should compute, from the formulas, in NumPy and double precision.

Every function takes real or complex arrays: the imaginary part carries the derivative (see `gradient`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import miaobi

Array = npt.NDArray[Any]
Parameters = Mapping[str, Array]


# --- Ops


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def relu(x: Array) -> Array:
    return np.where(x.real > 0, x, 0)


ACTIVATIONS = {"gelu": gelu, "gelu_new": gelu, "relu": relu}


def layer_norm(x: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * gamma + beta


def softmax(x: Array) -> Array:
    e = np.exp(x - x.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def token_losses(logits: Array, targets: npt.NDArray[np.integer]) -> Array:
    """-log softmax(logits)[target], 0 where the target is -100."""
    shifted = logits - logits.real.max(-1, keepdims=True)
    chosen = np.take_along_axis(shifted, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return np.where(targets == -100, 0, np.log(np.exp(shifted).sum(-1)) - chosen)


def attention(q: Array, k: Array, v: Array, causal: bool = True) -> Array:
    """(..., T, D)"""
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    if causal:
        scores = scores + np.triu(np.full(scores.shape[-2:], -np.inf), 1)
    return softmax(scores) @ v


# --- Layers: x (..., T, C) and the parameters under the engine's names


def linear(x: Array, p: Parameters) -> Array:
    return x @ p["weight"] + p["bias"]


def self_attention(x: Array, p: Parameters, heads: int) -> Array:
    def split(part: Array) -> Array:  # (..., T, C) -> (..., H, T, D)
        return np.swapaxes(part.reshape(*part.shape[:-1], heads, -1), -2, -3)

    qkv = np.split(x @ p["w_qkv"] + p["b_qkv"], 3, axis=-1)
    joined = np.swapaxes(attention(*map(split, qkv)), -2, -3).reshape(x.shape)
    return joined @ p["w_o"] + p["b_o"]


def feed_forward(x: Array, p: Parameters, activation: str = "gelu") -> Array:
    return ACTIVATIONS[activation](x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def dropout_factors(rows: int, cols: int, dropout: miaobi.Dropout, place: int) -> Array:
    """What the mask multiplies by: 16 bits of Philox 4x32-10 (Salmon et al. 2011), as dropout_mask.h numbers them."""
    threshold = min(max(round(dropout.rate * 65536), 1), 65535)
    stream = 1 << 63 | dropout.step << 18 | place
    low, blocks = np.uint64(0xFFFFFFFF), -(-cols // 8)
    words = [
        np.tile(np.arange(blocks, dtype=np.uint64), (rows, 1)),
        np.tile(dropout.first_row + np.arange(rows, dtype=np.uint64)[:, None], (1, blocks)),
        np.full((rows, blocks), stream % 2**32, np.uint64),
        np.full((rows, blocks), stream >> 32, np.uint64),
    ]
    keys = [dropout.seed % 2**32, dropout.seed >> 32]
    for _ in range(10):
        a, b = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        words = [(b >> 32) ^ words[1] ^ np.uint64(keys[0]), b & low, (a >> 32) ^ words[3] ^ np.uint64(keys[1]), a & low]
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    numbers = np.stack([half for word in words for half in (word & np.uint64(0xFFFF), word >> np.uint64(16))], -1)
    return np.where(numbers.reshape(rows, -1)[:, :cols] < threshold, 0, 65536 / (65536 - threshold))


def no_dropout(x: Array, place: int) -> Array:
    return x


def block(
    x: Array,
    p: Parameters,
    heads: int,
    activation: str = "gelu",
    eps: float = 1e-5,
    at: str = "",
    drop: Callable[[Array, int], Array] = no_dropout,
) -> Array:
    """Pre-LN block under GPT-2's names, which start with `at`; `drop` is asked for places 1 and 2."""

    def part(**names: str) -> dict[str, Array]:
        return {short: p[f"{at}{name}.{'bias' if short[0] == 'b' else 'weight'}"] for short, name in names.items()}

    def norm(x: Array, name: str) -> Array:
        return layer_norm(x, p[f"{at}{name}.weight"], p[f"{at}{name}.bias"], eps)

    attn = part(w_qkv="attn.c_attn", b_qkv="attn.c_attn", w_o="attn.c_proj", b_o="attn.c_proj")
    mlp = part(w1="mlp.c_fc", b1="mlp.c_fc", w2="mlp.c_proj", b2="mlp.c_proj")
    x = x + drop(self_attention(norm(x, "ln_1"), attn, heads), 1)
    return x + drop(feed_forward(norm(x, "ln_2"), mlp, activation), 2)


def gpt(ids: Any, p: Parameters, config: Any, dropout: miaobi.Dropout | None = None) -> Array:
    """Logits (..., T, V) of ids (..., T) for a GPTConfig."""
    ids = np.asarray(ids)

    def drop(x: Array, place: int) -> Array:
        return x if dropout is None else x * dropout_factors(ids.size, x.shape[-1], dropout, place).reshape(x.shape)

    x = drop(p["transformer.wte.weight"][ids] + p["transformer.wpe.weight"][: ids.shape[-1]], 0)
    for layer in range(config.n_layer):
        x = block(
            x,
            p,
            config.n_head,
            config.activation_function,
            config.layer_norm_epsilon,
            f"transformer.h.{layer}.",
            lambda y, place, layer=layer: drop(y, 2 * layer + place),
        )
    x = layer_norm(x, p["transformer.ln_f.weight"], p["transformer.ln_f.bias"], config.layer_norm_epsilon)
    return x @ p.get("lm_head.weight", p["transformer.wte.weight"]).T


# --- Derivatives and comparison


def double(parameters: Parameters) -> dict[str, Array]:
    return {name: np.array(value, np.float64) for name, value in parameters.items()}


def gradient(f: Callable[[Array], Array], x: Array) -> Array:
    """df/dx of a scalar f by complex steps, f(x + ih) = f(x) + ih f'(x): no difference, so no cancellation."""
    x = np.array(x, np.complex128)
    slopes = np.empty(x.shape)
    step = 1e-40
    for i in np.ndindex(x.shape):
        x.imag[i] = step
        slopes[i] = f(x).imag / step
        x.imag[i] = 0
    return slopes


def random_parameters(layer: Any, seed: int, scale: float = 0.3) -> None:
    """Fills a layer's or model's parameters, biases and norms too: 0 and 1 would hide their mistakes."""
    rng = np.random.default_rng(seed)
    for name, view in layer.parameters().items():
        around = 1.0 if view.ndim == 1 and name.endswith(("gamma", "weight")) else 0.0
        view[...] = around + scale * rng.standard_normal(view.shape)


def assert_close(got: npt.ArrayLike, want: npt.ArrayLike, roundings: float) -> None:
    """Each element within `roundings` float32 roundings of the largest one of `want`; NaN fails."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    if want.size == 0:
        return
    errors = np.abs(got - want.astype(np.float64)) / (2.0**-24 * max(float(np.abs(want).max()), 2.0**-100))
    assert errors.max() <= roundings, f"{errors.max():.1f} roundings, {roundings} allowed"


def assert_same_bits(got: npt.ArrayLike, want: npt.ArrayLike) -> None:
    """Equal shape, type and bytes; equal NaN would do, -0.0 for 0.0 would not.

    Another backend than ours promises no bits: there floats are equal that differ by roundings alone.
    """
    got, want = np.ascontiguousarray(got), np.ascontiguousarray(want)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    if miaobi.get_backend() != "builtin" and got.dtype == np.float32 and got.size:
        assert_close(got, want, 1000)
        return
    if got.tobytes() != want.tobytes():
        different = np.argwhere(got != want)
        raise AssertionError(f"{len(different)} of {got.size} elements differ, the first at {different[:1].tolist()}")

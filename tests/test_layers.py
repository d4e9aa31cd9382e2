# SPDX-License-Identifier: MIT
"""The layers: forward and every gradient against the formulas in double precision, views, steps, and the KV cache."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle
import pytest

import miaobi
from miaobi import _core, ops

Array = np.ndarray


@dataclass(frozen=True)
class Case:
    """A layer, its formula y = f(x, parameters), and the shape of an input."""

    make: Callable[[], Any]
    formula: Callable[[Array, oracle.Parameters], Array]
    shape: tuple[int, ...]


def _layer_norm_linear(x: Array, p: oracle.Parameters) -> Array:
    return oracle.linear(oracle.layer_norm(x, p["gamma"], p["beta"]), p)


CASES = {
    "Linear": Case(lambda: miaobi.Linear(33, 17), oracle.linear, (5, 33)),
    "Linear-1": Case(lambda: miaobi.Linear(1, 1), oracle.linear, (1, 1)),
    "LayerNorm": Case(
        lambda: miaobi.LayerNorm(19), lambda x, p: oracle.layer_norm(x, p["gamma"], p["beta"]), (2, 4, 19)
    ),
    "FusedLayerNormLinear": Case(lambda: miaobi.FusedLayerNormLinear(18, 21), _layer_norm_linear, (2, 5, 18)),
    "FusedGELULinear": Case(
        lambda: miaobi.FusedGELULinear(17, 9), lambda x, p: oracle.linear(oracle.gelu(x), p), (7, 17)
    ),
    "FeedForward": Case(lambda: miaobi.FeedForward(10, 23), oracle.feed_forward, (6, 10)),
    "FeedForward-relu": Case(
        lambda: miaobi.FeedForward(10, 23, "relu"), lambda x, p: oracle.feed_forward(x, p, "relu"), (2, 3, 10)
    ),
    "SelfAttention": Case(lambda: miaobi.SelfAttention(12, 3), lambda x, p: oracle.self_attention(x, p, 3), (2, 7, 12)),
    "TransformerBlock": Case(lambda: miaobi.TransformerBlock(8, 11, 2), lambda x, p: oracle.block(x, p, 2), (2, 6, 8)),
}
each_layer = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def made(case: Case) -> tuple[Any, Array, Array]:
    """A layer with every parameter random, an input, and a gradient of the output."""
    layer = case.make()
    oracle.random_parameters(layer, seed=7)
    rng = np.random.default_rng(11)
    x = rng.standard_normal(case.shape).astype(np.float32)
    return layer, x, rng.standard_normal(layer.forward(x).shape).astype(np.float32)


def expected_gradients(case: Case, layer: Any, x: Array, dy: Array) -> tuple[Array, dict[str, Array]]:
    """dx and the gradient of every parameter of sum(dy * y)."""
    p = oracle.double(layer.parameters())

    def of(name: str) -> Array:
        return oracle.gradient(lambda value: (dy * case.formula(x, {**p, name: value})).sum(), p[name])

    dx = oracle.gradient(lambda value: (dy * case.formula(value, p)).sum(), x)
    return dx, {name: of(name) for name in p}


@each_layer
def test_forward(case: Case) -> None:
    layer, x, _ = made(case)
    got = layer.forward(x)
    oracle.assert_close(got, case.formula(x.astype(np.float64), oracle.double(layer.parameters())), 40)
    oracle.assert_same_bits(layer(x.astype(np.float64)), got)  # the same numbers in another type


@each_layer
def test_backward(case: Case) -> None:
    layer, x, dy = made(case)
    start = {}
    for seed, (name, view) in enumerate(layer.gradients().items()):
        start[name] = view[...] = np.random.default_rng(seed).standard_normal(view.shape).astype(np.float32)
    given = x.copy()
    layer.forward(given)
    given[...] = np.nan  # the layer keeps what it needs: its caller's array is free again
    dx = layer.backward(dy)
    want_dx, want = expected_gradients(case, layer, x, dy)
    oracle.assert_close(dx, want_dx, 60)
    got = layer.gradients()
    assert got.keys() == want.keys() == layer.parameters().keys()
    for name in want:  # added to what was there
        oracle.assert_close(got[name], start[name].astype(np.float64) + want[name], 60)

    layer.zero_grad()
    assert not any(view.any() for view in layer.gradients().values())
    oracle.assert_same_bits(layer.backward(dy), dx)
    for name in want:
        oracle.assert_close(layer.gradients()[name], want[name], 60)


@each_layer
def test_backward_with_a_rate_is_one_step(case: Case) -> None:
    layer, x, dy = made(case)
    before = {name: view.copy() for name, view in layer.parameters().items()}
    want_dx = layer.backward(dy)
    gradients = {name: view.copy() for name, view in layer.gradients().items()}

    layer.zero_grad()
    oracle.assert_same_bits(layer.backward(dy, 0.25), want_dx)
    for name, view in layer.parameters().items():
        oracle.assert_same_bits(view, before[name] - np.float32(0.25) * gradients[name])
    assert not any(view.any() for view in layer.gradients().values())

    after = {name: view.copy() for name, view in layer.parameters().items()}
    layer.forward(x)
    layer.backward(dy)
    layer.step(0.5)
    for name, view in layer.parameters().items():
        oracle.assert_same_bits(view, after[name] - np.float32(0.5) * layer.gradients()[name])


@each_layer
def test_description(case: Case) -> None:
    layer = case.make()
    assert layer.layer_type == type(layer).__name__
    assert layer.num_parameters == sum(view.size for view in layer.parameters().values())
    for name, view in layer.parameters().items():
        assert f"{name} {view.shape}" in repr(layer)
        assert layer.gradients()[name].shape == view.shape
    assert layer.training
    layer.eval()
    assert not layer.training
    layer.train()
    assert layer.training


def test_names_and_shapes() -> None:
    def shapes(layer: Any) -> dict[str, tuple[int, ...]]:
        return {name: view.shape for name, view in layer.parameters().items()}

    norm, product = {"gamma": (6,), "beta": (6,)}, {"weight": (6, 4), "bias": (4,)}
    assert shapes(miaobi.Linear(6, 4)) == product
    assert shapes(miaobi.LayerNorm(6)) == norm
    assert shapes(miaobi.FusedLayerNormLinear(6, 4)) == {**norm, **product}
    assert shapes(miaobi.FusedGELULinear(6, 4)) == product
    assert shapes(miaobi.SelfAttention(8)) == {"w_qkv": (8, 24), "b_qkv": (24,), "w_o": (8, 8), "b_o": (8,)}
    assert shapes(miaobi.FeedForward(6, 4)) == {"w1": (6, 4), "b1": (4,), "w2": (4, 6), "b2": (6,)}


def test_seed_decides_the_start() -> None:
    first, same, other = (miaobi.Linear(40, 50, seed=seed).parameters()["weight"] for seed in (3, 3, 4))
    oracle.assert_same_bits(first, same)
    assert np.any(first != other)
    assert first.std() == pytest.approx(0.02, rel=0.1)


@each_layer
def test_rows_do_not_depend_on_their_batch(case: Case) -> None:
    layer, x, dy = made(case)
    layer.backward(dy)
    y, dx = layer.forward(x), layer.backward(dy)
    for i in range(len(x)) if x.ndim == 3 else []:
        oracle.assert_same_bits(layer.forward(x[i]), y[i])
        oracle.assert_same_bits(layer.backward(dy[i]), dx[i])


@each_layer
def test_no_rows(case: Case) -> None:
    layer, x, dy = made(case)
    layer.backward(dy)
    before = {name: view.copy() for name, view in layer.gradients().items()}
    for shape in ((0, x.shape[-1]), (0, 3, x.shape[-1]), (3, 0, x.shape[-1])):
        y = layer.forward(np.zeros(shape))
        assert y.shape == (*shape[:-1], dy.shape[-1])
        assert layer.backward(y).shape == shape
    for name, view in layer.gradients().items():
        oracle.assert_same_bits(view, before[name])


# --- views


@each_layer
def test_parameters_are_views(case: Case) -> None:
    layer, x, _ = made(case)
    p = oracle.double(layer.parameters())
    for name in p:
        layer.parameters()[name][...] *= -2
        assert np.shares_memory(layer.parameters()[name], layer.parameters()[name])
    oracle.assert_close(layer.forward(x), case.formula(x.astype(np.float64), {k: -2 * v for k, v in p.items()}), 40)


def test_views_keep_their_layer_alive() -> None:
    gc.collect()
    without = _core.allocated_bytes()
    layer = miaobi.Linear(300, 200)
    weight, gradient = layer.parameters()["weight"], layer.gradients()["weight"]
    both = _core.allocated_bytes() - without
    assert both >= 2 * 4 * 300 * 200
    del layer
    gc.collect()
    assert _core.allocated_bytes() - without == both
    weight[...], gradient[...] = 1, 2
    assert weight.sum() == 300 * 200
    del weight
    gc.collect()
    assert _core.allocated_bytes() - without == both
    del gradient
    gc.collect()
    assert _core.allocated_bytes() == without


# --- fused and unfused


def copy(target: Any, **values: Array) -> None:
    for name, value in values.items():
        target.parameters()[name][...] = value


@pytest.mark.parametrize(("rows", "dim", "out"), [(1, 1, 1), (3, 31, 33), (40, 64, 32), (65, 33, 97)])
def test_fused_layer_norm_linear_is_both(rows: int, dim: int, out: int) -> None:
    fused, norm, product = miaobi.FusedLayerNormLinear(dim, out), miaobi.LayerNorm(dim), miaobi.Linear(dim, out)
    oracle.random_parameters(fused, seed=1)
    p = fused.parameters()
    copy(norm, gamma=p["gamma"], beta=p["beta"])
    copy(product, weight=p["weight"], bias=p["bias"])
    rng = np.random.default_rng(2)
    x, dy = (rng.standard_normal((rows, n)).astype(np.float32) for n in (dim, out))
    oracle.assert_close(fused.forward(x), product.forward(norm.forward(x)), 20)
    dx = norm.backward(product.backward(dy))
    # With one column the gradient of the norm is 0, up to what is left of the parts it is made of.
    oracle.assert_close(fused.backward(dy) + 1, dx + 1, 60)
    for name, gradient in {**norm.gradients(), **product.gradients()}.items():
        oracle.assert_close(fused.gradients()[name], gradient, 60)


@pytest.mark.parametrize(("rows", "dim", "out"), [(1, 1, 1), (3, 31, 33), (40, 64, 32), (65, 33, 97)])
def test_fused_gelu_linear_is_both(rows: int, dim: int, out: int) -> None:
    fused, product = miaobi.FusedGELULinear(dim, out), miaobi.Linear(dim, out)
    oracle.random_parameters(fused, seed=1)
    copy(product, **fused.parameters())
    rng = np.random.default_rng(2)
    x, dy = (rng.standard_normal((rows, n)).astype(np.float32) for n in (dim, out))
    oracle.assert_close(fused.forward(x), product.forward(ops.gelu(x)), 20)
    slope = oracle.gelu(x.astype(np.complex128) + 1e-40j).imag / 1e-40
    oracle.assert_close(fused.backward(dy), product.backward(dy) * slope, 40)
    for name, gradient in product.gradients().items():
        oracle.assert_close(fused.gradients()[name], gradient, 40)


def test_block_is_its_parts() -> None:
    dim, hidden, heads = 24, 40, 4
    block = miaobi.TransformerBlock(dim, hidden, heads)
    oracle.random_parameters(block, seed=1, scale=0.2)
    norm_1, attention, norm_2 = miaobi.LayerNorm(dim), miaobi.SelfAttention(dim, heads), miaobi.LayerNorm(dim)
    mlp = miaobi.FeedForward(dim, hidden)
    names = {
        "ln_1": (norm_1, "gamma", "beta"),
        "attn.c_attn": (attention, "w_qkv", "b_qkv"),
        "attn.c_proj": (attention, "w_o", "b_o"),
        "ln_2": (norm_2, "gamma", "beta"),
        "mlp.c_fc": (mlp, "w1", "b1"),
        "mlp.c_proj": (mlp, "w2", "b2"),
    }
    for name, (part, weight, bias) in names.items():
        copy(part, **{weight: block.parameters()[f"{name}.weight"], bias: block.parameters()[f"{name}.bias"]})
    rng = np.random.default_rng(2)
    x, dy = (rng.standard_normal((2, 33, dim)).astype(np.float32) for _ in range(2))

    middle = x + attention.forward(norm_1.forward(x))
    oracle.assert_close(block.forward(x), middle + mlp.forward(norm_2.forward(middle)), 40)
    d_middle = dy + norm_2.backward(mlp.backward(dy))
    oracle.assert_close(block.backward(dy), d_middle + norm_1.backward(attention.backward(d_middle)), 80)
    gradients = block.gradients()
    assert len(gradients) == 2 * len(names)
    for name, (part, weight, bias) in names.items():
        oracle.assert_close(gradients[f"{name}.weight"], part.gradients()[weight], 80)
        oracle.assert_close(gradients[f"{name}.bias"], part.gradients()[bias], 80)


# --- the KV cache of SelfAttention

LENGTH = 75  # more than two of the cache's blocks of 32 rows
CUTS = {
    "one by one": [1] * LENGTH,
    "at once": [LENGTH],
    "prefill, then decode": [40] + [1] * (LENGTH - 40),
    "around a block": [31, 1, 1, 31, 11],
    "uneven": [2, 7, 1, 30, 5, 17, 13],
}


def attention_layer(dim: int = 24, heads: int = 3) -> miaobi.SelfAttention:
    layer = miaobi.SelfAttention(dim, heads)
    oracle.random_parameters(layer, seed=5)
    return layer


def rows(count: int = LENGTH, dim: int = 24) -> Array:
    return np.random.default_rng(9).standard_normal((count, dim)).astype(np.float32)


def in_pieces(layer: miaobi.SelfAttention, x: Array, cuts: list[int]) -> Array:
    assert sum(cuts) == len(x)
    pieces = np.split(x, np.cumsum(cuts)[:-1])
    return np.concatenate([layer.forward_with_kv_cache(piece) for piece in pieces])


def test_cache_equals_full_forward_for_every_prefix() -> None:
    layer, x = attention_layer(), rows()
    layer.enable_kv_cache()
    for n in range(1, LENGTH + 1):
        cached = layer.forward_with_kv_cache(x[n - 1 : n])
        oracle.assert_close(cached[0], layer.forward(x[:n])[-1], 40)
        assert layer.kv_cache_length == n


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("enabled", [True, False])
def test_cache_gives_the_same_bits_in_any_pieces_on_or_off(cuts: list[int], enabled: bool) -> None:
    x = rows()
    reference = attention_layer()
    reference.enable_kv_cache()
    want = reference.forward_with_kv_cache(x)
    layer = attention_layer()
    if enabled:
        layer.enable_kv_cache(capacity=LENGTH)
    assert layer.kv_cache_enabled == enabled
    oracle.assert_same_bits(in_pieces(layer, x, cuts), want)
    assert layer.kv_cache_length == LENGTH


def test_cache_accounts_for_its_memory() -> None:
    layer, x = attention_layer(), rows()
    layer.forward_with_kv_cache(x)
    assert layer.cache_info() == {"capacity": 0, "used": 0, "bytes": 0}
    size = 64 * 2 * x.shape[1]  # elements: 64 rows of K and V
    for dtype, element in (("float32", 4), ("bf16", 2)):
        layer.enable_kv_cache(capacity=64, dtype=dtype)
        assert layer.cache_info() == {"capacity": 64, "used": 0, "bytes": element * size}
        layer.forward_with_kv_cache(x[:1])
        assert layer.cache_info() == {"capacity": 64, "used": 32, "bytes": element * size}


def test_bf16_cache_rounds_keys_and_values() -> None:
    layer, x = attention_layer(), rows()
    layer.enable_kv_cache(dtype="bf16")
    rounded, exact = in_pieces(layer, x, CUTS["one by one"]), layer.forward(x)
    assert np.any(rounded != exact)
    # Weights of a softmax sum to 1, so a value's relative error of 2^-9 stays one; that of the scores adds as much.
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=2**-7 * np.abs(exact).max())
    with pytest.raises(ValueError, match="float32"):
        layer.enable_kv_cache(dtype="fp8")


def test_cache_is_cleared() -> None:
    layer, x = attention_layer(), rows()
    for change in (layer.enable_kv_cache, layer.disable_kv_cache):
        change()
        first = layer.forward_with_kv_cache(x)
        assert np.any(layer.forward_with_kv_cache(x) != first)
        layer.clear_kv_cache()
        assert layer.kv_cache_length == 0
        oracle.assert_same_bits(layer.forward_with_kv_cache(x), first)


def test_cache_and_training_do_not_meet() -> None:
    layer, x = attention_layer(), rows()
    layer.enable_kv_cache()
    dx = []
    for cached in (False, True):
        layer.forward(x)
        if cached:
            layer.forward_with_kv_cache(x[:5])
        dx.append(layer.backward(x))
    oracle.assert_same_bits(dx[0], dx[1])


@pytest.mark.parametrize("window", [1, 2, 7, 32, 40])
def test_cache_window(window: int) -> None:
    """Each row is attention over the rows that count, at most `window`; how the rows arrive does not matter."""
    layer, x = attention_layer(), rows(3 * 75)
    layer.enable_kv_cache(window=window)
    got, counted = [], []
    for t in range(len(x)):
        got.append(layer.forward_with_kv_cache(x[t : t + 1])[0])
        counted.append(layer.kv_cache_length)
        if t % 5 == 0:
            oracle.assert_close(got[t], layer.forward(x[t + 1 - counted[t] : t + 1])[-1], 40)
    assert max(counted) == window
    assert min(counted[window:]) > window // 2  # not forgotten more than half
    for cuts in ([len(x)], CUTS["uneven"] * 3):
        layer.clear_kv_cache()
        oracle.assert_same_bits(in_pieces(layer, x, cuts), np.stack(got))


def test_cache_holds_its_memory() -> None:
    layer, x = attention_layer(), rows(1)
    layer.enable_kv_cache(capacity=64)
    layer.forward_with_kv_cache(x)
    gc.collect()
    before = _core.allocated_bytes()
    for _ in range(300):
        layer.forward_with_kv_cache(x)
    assert layer.kv_cache_length <= 64  # the capacity is the window where none is given
    assert _core.allocated_bytes() == before
    layer.disable_kv_cache()
    assert _core.allocated_bytes() < before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "positive capacity, got 0"),
        ({"window": -1}, "positive window, got -1"),
        ({"capacity": 8, "window": 9}, "window of at most the capacity, 8, got 9"),
    ],
)
def test_cache_arguments(arguments: dict[str, int], message: str) -> None:
    layer, x = attention_layer(), rows()
    layer.enable_kv_cache(window=40)
    layer.forward_with_kv_cache(x[:10])
    with pytest.raises(ValueError, match=message):
        layer.enable_kv_cache(**arguments)
    assert layer.kv_cache_length == 10  # as it was
    for wrong in (np.zeros((1, 23)), np.zeros((0, 24)), np.zeros(24), np.zeros((1, 1, 24))):
        with pytest.raises(ValueError, match="expected x"):
            layer.forward_with_kv_cache(wrong)
    assert layer.kv_cache_length == 10


# --- wrong input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: miaobi.Linear(0, 3), r"\[Linear\] expected positive dimensions, got 0"),
        (lambda: miaobi.LayerNorm(-1), r"\[LayerNorm\] expected positive dimensions, got -1"),
        (lambda: miaobi.LayerNorm(3, eps=0.0), r"\[LayerNorm\] expected eps > 0, got 0"),
        (lambda: miaobi.FusedLayerNormLinear(3, 3, eps=-1.0), r"\[FusedLayerNormLinear\] expected eps > 0, got -1"),
        (lambda: miaobi.SelfAttention(10, 3), "a width that 3 heads share evenly, got 10"),
        (lambda: miaobi.SelfAttention(8, 0), "a width that 0 heads share evenly, got 8"),
        (lambda: miaobi.TransformerBlock(8, 8, 3), "a width that 3 heads share evenly, got 8"),
        (lambda: miaobi.FeedForward(4, 4, "silu"), 'expected activation "gelu", "gelu_new" or "relu", got "silu"'),
        (lambda: miaobi.Linear(3, 2).forward(np.zeros((2, 4))), r"x \(N, 3\) or \(B, T, 3\), got \(2, 4\)"),
        (lambda: miaobi.Linear(3, 2).forward(np.zeros(3)), r"x \(N, 3\) or \(B, T, 3\), got \(3\)"),
        (lambda: miaobi.Linear(3, 2).forward([["a"] * 3]), "expected x to hold real numbers"),
        (lambda: miaobi.Linear(3, 2).backward(np.zeros((1, 2))), "expects a forward"),
    ],
)
def test_wrong_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_backward_wants_the_shape_of_forward() -> None:
    layer = miaobi.Linear(3, 2)
    layer.forward(np.zeros((2, 3, 3)))
    for shape in ((2, 3, 3), (6, 2), (3, 2, 2), (2, 2, 2)):
        with pytest.raises(ValueError, match="dy"):
            layer.backward(np.zeros(shape))
    assert layer.backward(np.ones((2, 3, 2))).shape == (2, 3, 3)

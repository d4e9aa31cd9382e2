# SPDX-License-Identifier: MIT
"""Faults that training code of this kind has had, one test each: none of them may come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest

import miaobi
from miaobi.model import GPT, AdamW, GPTConfig

IGNORED = -100
LAYERS: dict[str, Callable[[], Any]] = {
    "Linear": lambda: miaobi.Linear(12, 20),
    "LayerNorm": lambda: miaobi.LayerNorm(12),
    "FusedLayerNormLinear": lambda: miaobi.FusedLayerNormLinear(12, 20),
    "FusedGELULinear": lambda: miaobi.FusedGELULinear(12, 20),
    "SelfAttention": lambda: miaobi.SelfAttention(12, 3),
    "FeedForward": lambda: miaobi.FeedForward(12, 20),
    "TransformerBlock": lambda: miaobi.TransformerBlock(12, 20, 3),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_gpt(seed: int = 0, **changes: Any) -> GPT:
    shape: dict[str, Any] = {"vocab_size": 50, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
    model = GPT(GPTConfig(**{**shape, **changes}), seed=seed)
    oracle.random_parameters(model, seed=1, scale=0.1)
    return model


def gradients(model: Any) -> dict[str, np.ndarray]:
    return {name: view.copy() for name, view in model.gradients().items()}


@pytest.mark.parametrize("fused", [False, True], ids=["LayerNorm", "FusedLayerNormLinear"])
def test_layer_norm_gradient_has_its_mean_and_variance_terms(fused: bool) -> None:
    """y does not change when x is shifted or scaled, so dx has no part along 1 or along xhat."""
    dim = 40
    layer: Any = miaobi.FusedLayerNormLinear(dim, dim) if fused else miaobi.LayerNorm(dim)
    oracle.random_parameters(layer, seed=1)
    x, dy = 10 * random(6, dim), random(6, dim, seed=1)
    layer.forward(x)
    dx = layer.backward(dy)
    size = np.abs(dx).sum(-1)
    xhat = oracle.layer_norm(x.astype(np.float64), np.ones(dim), np.zeros(dim))
    assert np.all(np.abs(dx.sum(-1)) < 1e-5 * size)
    assert np.all(np.abs((dx * xhat).sum(-1)) < 1e-5 * size)


@pytest.mark.parametrize("fused", [False, True], ids=["LayerNorm", "FusedLayerNormLinear"])
def test_dgamma_is_of_the_normalised_value_not_of_the_scaled_one(fused: bool) -> None:
    """dgamma = sum dy xhat does not know gamma and beta: not a bit of it changes with them."""
    layer: Any = miaobi.FusedLayerNormLinear(40, 40) if fused else miaobi.LayerNorm(40)
    x, dy = random(6, 40), random(6, 40, seed=1)
    found = []
    for gamma, beta in ((1, 0), (4, 0), (-3, 5)):
        layer.parameters()["gamma"][...] = gamma
        layer.parameters()["beta"][...] = beta
        layer.forward(x)
        layer.zero_grad()
        layer.backward(dy)
        found.append(layer.gradients()["gamma"].copy())
    oracle.assert_same_bits(found[1], found[0])
    oracle.assert_same_bits(found[2], found[0])
    assert found[0].any()


@each_layer
def test_input_gradient_uses_the_weights_before_the_update(make: Callable[[], Any]) -> None:
    x = random(2, 5, 12)
    dx = []
    for rate in (None, 0.0, 100.0):
        layer = make()
        oracle.random_parameters(layer, seed=1)
        before = [view.copy() for view in layer.parameters().values()]
        y = layer.forward(x)
        dx.append(layer.backward(random(*y.shape, seed=2), rate))
        changed = [np.any(view != old) for view, old in zip(layer.parameters().values(), before, strict=True)]
        assert all(changed) if rate == 100.0 else not any(changed)
    oracle.assert_same_bits(dx[1], dx[0])
    oracle.assert_same_bits(dx[2], dx[0])


@pytest.mark.parametrize(
    ("name", "bias"),
    [
        ("Linear", "bias"),
        ("LayerNorm", "beta"),
        ("FusedLayerNormLinear", "bias"),
        ("FusedGELULinear", "bias"),
        ("SelfAttention", "b_o"),
        ("FeedForward", "b2"),
        ("TransformerBlock", "mlp.c_proj.bias"),
    ],
)
def test_bias_gradient_is_the_sum_over_all_tokens(name: str, bias: str) -> None:
    """Not the mean over T, nor the last token's."""
    batch, length = 3, 37
    layer = LAYERS[name]()
    y = layer.forward(random(batch, length, 12))
    dy = np.random.default_rng(1).integers(-8, 9, y.shape)
    layer.backward(dy)
    np.testing.assert_array_equal(layer.gradients()[bias], dy.sum((0, 1)))  # whole numbers: exact


def test_clipping_looks_at_all_parameters() -> None:
    """The norm is that of every gradient together, whichever parameter it comes from."""
    model = small_gpt(n_embd=192, vocab_size=400, tie_word_embeddings=False)  # more than one chunk of the norm
    optimizer = AdamW(model, lr=0.1, weight_decay=0.0)
    for view in model.gradients().values():
        view[...] = 0
        view.flat[-1] = 3.0  # alone, and in the last element
        assert optimizer.step(lr=0.0) == pytest.approx(3.0, rel=1e-6)
        view.flat[-1] = 0
    for view in model.gradients().values():
        view[...] = random(*view.shape)
    every = np.concatenate([view.ravel() for view in model.gradients().values()]).astype(np.float64)
    norm = float(np.sqrt((every**2).sum()))
    optimizer.m[...] = 0
    assert optimizer.step(max_grad_norm=0.5) == pytest.approx(norm, rel=1e-6)
    # All gradients were scaled by one factor, and their norm is now the limit.
    clipped = optimizer.m.astype(np.float64) / (1 - 0.9)
    assert np.sqrt((clipped**2).sum()) == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(clipped[clipped != 0], every * 0.5 / norm, rtol=1e-5)


def test_gradient_accumulation_uses_every_sequence() -> None:
    """Not the last one's activations for all of them."""
    model = small_gpt()
    rng = np.random.default_rng(2)
    ids, targets = rng.integers(0, 50, (2, 3, 1, 9))
    alone = []
    for x, y in zip(ids, targets, strict=True):
        model.zero_grad()
        model.loss_backward(x, y, normalizer=27)
        alone.append(gradients(model))
    want = {name: sum(g[name].astype(np.float64) for g in alone) for name in alone[0]}

    model.zero_grad()
    for x, y in zip(ids, targets, strict=True):
        model.loss_backward(x, y, normalizer=27)
    one_by_one = gradients(model)
    model.zero_grad()
    model.loss_backward(ids[:, 0], targets[:, 0])
    together = gradients(model)
    for name in want:
        oracle.assert_close(one_by_one[name], want[name], 40)
        oracle.assert_close(together[name], want[name], 40)


@each_layer
def test_layer_gradient_accumulation_uses_every_forward(make: Callable[[], Any]) -> None:
    layer = make()
    oracle.random_parameters(layer, seed=1)
    want: dict[str, Any] = dict.fromkeys(layer.gradients(), 0.0)
    for accumulate in (False, True):
        layer.zero_grad()
        for seed in range(3):
            y = layer.forward(random(4, 12, seed=seed))
            layer.backward(random(*y.shape, seed=10 + seed))
            if not accumulate:
                want = {name: want[name] + view.astype(np.float64) for name, view in layer.gradients().items()}
                layer.zero_grad()
    for name, view in layer.gradients().items():
        oracle.assert_close(view, want[name], 40)


def philox(seed: int, counter: int) -> list[int]:
    """Philox 4x32-10 (Salmon et al. 2011), stream 0."""
    x, key = [counter, 0, 0, 0], [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [q >> 32 ^ x[1] ^ key[0], q & 0xFFFFFFFF, p >> 32 ^ x[3] ^ key[1], p & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


def test_random_normals_are_finite() -> None:
    """The logarithm of a uniform number that is 0: this seed's third word is 0, and makes the third normal."""
    seed = 627779616
    assert philox(seed, 0)[2] == 0
    weight = miaobi.Linear(4, 1, seed=seed).parameters()["weight"]
    assert np.isfinite(weight).all()
    u = 2.0**-24  # where the open interval starts
    angle = 2 * np.pi * ((philox(seed, 0)[3] >> 9) + 0.5) * 2.0**-23
    assert weight[2, 0] == pytest.approx(0.02 * np.sqrt(-2 * np.log(u)) * np.cos(angle), rel=1e-5)


def test_ignored_targets_have_neither_loss_nor_gradient() -> None:
    """A padding token that is scored teaches the model to pad."""
    model = small_gpt(tie_word_embeddings=False)
    ids = np.arange(16)[None]
    targets = (ids + 20) % 50
    scored = targets.copy()
    scored[:, 6:] = IGNORED
    losses = model.token_losses(ids, scored)
    assert losses[0, :6].all()
    assert not losses[0, 6:].any()
    assert model.loss(ids, scored) == pytest.approx(losses[0, :6].mean(), rel=1e-6)

    model.zero_grad()
    assert model.loss_backward(ids, scored)[1] == 6
    whole = gradients(model)
    embedding, positions = whole["transformer.wte.weight"], whole["transformer.wpe.weight"]
    assert embedding[:6].any(axis=1).all()
    assert not embedding[6:16].any()  # tokens that come after the last scored one
    assert positions[:6].any(axis=1).all()
    assert not positions[6:].any()

    # The same as the sequence that ends there, head and all.
    model.zero_grad()
    model.loss_backward(ids[:, :6], targets[:, :6])
    for name, gradient in gradients(model).items():
        oracle.assert_close(whole[name], gradient, 20)

    model.zero_grad()
    assert model.loss_backward(ids, np.full_like(ids, IGNORED)) == (0.0, 0)
    assert not any(gradient.any() for gradient in gradients(model).values())

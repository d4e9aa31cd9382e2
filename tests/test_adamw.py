# SPDX-License-Identifier: MIT
"""AdamW: every number of its steps, what decays, clipping, gradients that are not finite, and its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest

from miaobi.model import GPT, AdamW, GPTConfig

CONFIG = GPTConfig(70, 16, 40, 2, 4, tie_word_embeddings=False)


def made(seed: int = 0) -> GPT:
    model = GPT(CONFIG)
    oracle.random_parameters(model, seed)
    return model


def fill_gradients(model: GPT, seed: int, scale: float = 1.0) -> None:
    rng = np.random.default_rng(seed)
    for view in model.gradients().values():
        view[...] = scale * rng.standard_normal(view.shape)


def norm_of(model: GPT) -> float:
    return float(np.sqrt(sum((view.astype(np.float64) ** 2).sum() for view in model.gradients().values())))


@pytest.mark.parametrize("max_grad_norm", [None, 0.7, 1e9])
def test_steps(max_grad_norm: float | None) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, in double precision."""
    model = made()
    lr, (beta1, beta2), eps, decay = 0.01, (0.8, 0.95), 1e-6, 0.2
    optimizer = AdamW(model, lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    want = oracle.double(model.parameters())
    m, v = ({name: np.zeros(value.shape) for name, value in want.items()} for _ in range(2))
    for t in range(1, 6):
        fill_gradients(model, seed=t, scale=10.0 ** (t - 3))
        rate = lr if t != 3 else 0.05
        norm = optimizer.step(max_grad_norm=max_grad_norm) if t != 3 else optimizer.step(0.05, max_grad_norm)
        assert norm == pytest.approx(norm_of(model), rel=1e-6)
        assert optimizer.step_count == t
        factor = min(1.0, max_grad_norm / norm) if max_grad_norm else 1.0
        for name, gradient in model.gradients().items():
            g = factor * gradient.astype(np.float64)
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g**2
            update = m[name] / (1 - beta1**t) / (np.sqrt(v[name] / (1 - beta2**t)) + eps)
            want[name] -= rate * (update + (decay * want[name] if gradient.ndim == 2 else 0))
            oracle.assert_close(model.parameters()[name], want[name], 60)


def test_decay_is_for_matrices_only() -> None:
    model = made()
    before = {name: view.copy() for name, view in model.parameters().items()}
    optimizer = AdamW(model, lr=0.1, weight_decay=0.5)
    assert optimizer.step() == 0.0  # no gradient: decay alone
    for name, view in model.parameters().items():
        if view.ndim == 2:
            oracle.assert_close(view, before[name] * (1 - 0.1 * 0.5), 2)
        else:
            oracle.assert_same_bits(view, before[name])
    assert not optimizer.m.any()
    assert not optimizer.v.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])  # the square of 3e38 is not a float32
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_gradient_that_is_not_finite_changes_nothing(value: float, max_grad_norm: float | None) -> None:
    model = made()
    optimizer = AdamW(model, lr=0.1)
    fill_gradients(model, seed=1)
    optimizer.step()

    def state() -> list[bytes]:
        return [x.tobytes() for x in (model.arena, model.gradient_arena, optimizer.m, optimizer.v)]

    model.gradients()["transformer.h.1.ln_2.bias"][-1] = value
    before = state()
    assert not np.isfinite(optimizer.step(max_grad_norm=max_grad_norm))
    assert state() == before
    assert optimizer.step_count == 1
    model.gradients()["transformer.h.1.ln_2.bias"][-1] = 0
    assert np.isfinite(optimizer.step())
    assert optimizer.step_count == 2


def test_moments_and_count_restore_a_run() -> None:
    """What a checkpoint keeps is all there is."""
    model, resumed = made(), made()
    optimizer = AdamW(model, lr=0.01)
    for t in range(3):
        fill_gradients(model, seed=t)
        optimizer.step(max_grad_norm=1.0)
    restored = AdamW(resumed, lr=0.01)
    resumed.arena[...] = model.arena
    restored.m[...], restored.v[...], restored.step_count = optimizer.m, optimizer.v, optimizer.step_count
    for each, stepper in ((model, optimizer), (resumed, restored)):
        fill_gradients(each, seed=9)
        stepper.step(max_grad_norm=1.0)
    oracle.assert_same_bits(resumed.arena, model.arena)
    assert optimizer.m.shape == optimizer.v.shape == model.arena.shape


def test_training_learns() -> None:
    """Eleven tokens by heart: the loss of a model that remembers its own past goes to nearly nothing."""
    model = GPT(GPTConfig(11, 11, 16, 1, 2), seed=1)
    optimizer = AdamW(model, lr=0.02, weight_decay=0.0)
    ids = np.random.default_rng(0).permutation(11)[None]
    first = model.loss(ids[:, :-1], ids[:, 1:])
    for _ in range(150):
        model.zero_grad()
        model.loss_backward(ids[:, :-1], ids[:, 1:])
        optimizer.step(max_grad_norm=1.0)
    assert first > 2
    assert model.loss(ids[:, :-1], ids[:, 1:]) < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr >= 0, got -1"),
        ({"lr": np.nan}, "lr >= 0"),
        ({"betas": (1.0, 0.9)}, r"betas in \[0, 1\), got 1 and 0.9"),
        ({"betas": (0.9, -0.1)}, "betas"),
        ({"eps": 0.0}, "eps > 0"),
        ({"weight_decay": -0.1}, "weight_decay >= 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamW(made(), **{"lr": 0.1, **arguments})


def test_wrong_steps() -> None:
    model = made()
    before = model.arena.copy()
    optimizer = AdamW(model, lr=0.1)
    for arguments in ({"lr": -0.1}, {"lr": np.nan}, {"max_grad_norm": 0.0}, {"max_grad_norm": -1.0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            optimizer.step(**arguments)
    with pytest.raises(ValueError, match="step count of at least 0, got -1"):
        optimizer.step_count = -1
    assert optimizer.step_count == 0
    oracle.assert_same_bits(model.arena, before)

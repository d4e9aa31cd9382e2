# SPDX-License-Identifier: MIT
"""Dropout: where it is, that backward meets the mask of forward, and that nothing but a training step drops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from train_helpers import TEXTS, VALIDATION, config, make_model, make_tokenizer, weights

import miaobi
from miaobi import GPT, Dropout, GPTConfig
from miaobi.trainer import Trainer

DROPOUT = Dropout(rate=0.3, seed=2**40 + 7, step=12345)
SHAPE = {"vocab_size": 11, "n_positions": 9, "n_embd": 12, "n_layer": 2, "n_head": 2}


def gpt(**changes: Any) -> GPT:
    model = GPT(GPTConfig(**{**SHAPE, **changes}))
    oracle.random_parameters(model, seed=3, scale=0.4)
    return model


def tokens(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, SHAPE["vocab_size"], shape)


def gradients_of(model: GPT, *batch: Any, **options: Any) -> tuple[float, np.ndarray]:
    model.zero_grad()
    loss, _ = model.loss_backward(*batch, **options)
    return loss, model.gradient_arena.copy()


def test_loss_and_every_gradient_with_the_mask_that_the_rule_gives() -> None:
    model = gpt()
    ids, targets = tokens(2, 7), tokens(2, 7, seed=1)
    p = oracle.double(model.parameters())
    losses = oracle.token_losses(oracle.gpt(ids, p, model.config, DROPOUT), targets)
    total, _ = gradients_of(model, ids, targets, dropout=DROPOUT)
    assert total == pytest.approx(losses.sum(), rel=1e-6)
    for name, gradient in model.gradients().items():

        def loss(value: np.ndarray, name: str = name) -> Any:
            return oracle.token_losses(oracle.gpt(ids, {**p, name: value}, model.config, DROPOUT), targets).sum() / 14

        oracle.assert_close(gradient, oracle.gradient(loss, p[name]), 100)


def test_the_oracles_mask_keeps_the_share_that_it_should() -> None:
    for rate in (0.1, 0.5, 0.9):
        factors = oracle.dropout_factors(300, 100, Dropout(rate=rate, seed=1, step=2), 0)
        assert (factors > 0).mean() == pytest.approx(1 - rate, abs=4 * (rate * (1 - rate) / 30000) ** 0.5)
        assert factors.max() == pytest.approx(1 / (1 - rate), rel=1e-3)


def test_threads_change_nothing_and_another_step_does() -> None:
    model = gpt(n_embd=64, n_positions=40, n_head=4)
    batch = (tokens(12, 40), tokens(12, 40, seed=1))
    results = []
    for threads in (1, 2, 3):
        miaobi.set_num_threads(threads)
        results.append(gradients_of(model, *batch, dropout=DROPOUT))
    for loss, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        oracle.assert_same_bits(gradient, results[0][1])
    other, _ = gradients_of(model, *batch, dropout=Dropout(rate=0.3, seed=DROPOUT.seed, step=DROPOUT.step + 1))
    assert other != pytest.approx(results[0][0], rel=1e-3)


@pytest.mark.usefixtures("builtin_backend")
def test_parts_of_a_batch_are_the_batch() -> None:
    model = gpt()
    ids, targets = tokens(4, 9), tokens(4, 9, seed=1)
    whole = gradients_of(model, ids, targets, dropout=DROPOUT)
    model.zero_grad()
    total = 0.0
    for row in range(4):
        part = Dropout(rate=0.3, seed=DROPOUT.seed, step=DROPOUT.step, first_row=9 * row)
        total += model.loss_backward(ids[row : row + 1], targets[row : row + 1], normalizer=36, dropout=part)[0]
    assert total == pytest.approx(whole[0], rel=1e-6)
    oracle.assert_close(model.gradient_arena, whole[1], 100)


def test_nothing_else_drops() -> None:
    plain, dropping = gpt(), gpt(dropout=0.5)
    ids, targets = tokens(2, 7), tokens(2, 7, seed=1)
    gradients_of(dropping, ids, targets, dropout=DROPOUT)  # leaves nothing behind
    oracle.assert_same_bits(dropping.forward(ids), plain.forward(ids))
    oracle.assert_same_bits(dropping.token_losses(ids, targets), plain.token_losses(ids, targets))
    oracle.assert_same_bits(dropping.forward_last(ids[0], [0, 7]), plain.forward_last(ids[0], [0, 7]))
    oracle.assert_same_bits(gradients_of(dropping, ids, targets)[1], gradients_of(plain, ids, targets)[1])
    dropping.zero_grad()
    dropping.loss(ids, targets)
    dropping.backward()
    oracle.assert_close(dropping.gradient_arena, gradients_of(plain, ids, targets)[1], 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1.0}, "dropout in"),
        ({"rate": -0.1}, "dropout in"),
        ({"step": -1}, "a step"),
        ({"first_row": -1}, "row"),
    ],
    ids=str,
)
def test_wrong_options(changes: dict[str, Any], message: str) -> None:
    model = gpt()
    with pytest.raises(ValueError, match=message):
        model.loss_backward(
            tokens(2, 7), tokens(2, 7), dropout=Dropout(**{"rate": 0.1, "seed": 0, "step": 0, **changes})
        )


def test_config_json_has_it_as_hugging_face_does(tmp_path: Path) -> None:
    gpt(dropout=0.2).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    assert (content["resid_pdrop"], content["embd_pdrop"], content["attn_pdrop"]) == (0.2, 0.2, 0.0)
    assert GPT.from_pretrained(tmp_path).config == gpt(dropout=0.2).config
    path.write_text(json.dumps({**content, "resid_pdrop": 1.5}))
    with pytest.raises(miaobi.FormatError, match="expected dropout"):
        GPT.from_pretrained(tmp_path)


def test_a_trainer_takes_the_rate_of_its_config_or_else_of_the_model(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()

    def train(model_rate: float, rate: float | None, **changes: Any) -> Trainer:
        model = make_model(tokenizer, dropout=model_rate)
        trainer = Trainer(model, tokenizer, config(dropout=rate, **changes), out_dir=tmp_path / f"{model_rate} {rate}")
        trainer.fit(TEXTS, VALIDATION)
        return trainer

    of_model, given, off = train(0.2, None), train(0.0, 0.2), train(0.2, 0.0)
    assert weights(of_model) == weights(given) != weights(off)
    assert weights(off) == weights(train(0.0, None))
    assert (given.model.config.dropout, off.model.config.dropout) == (0.2, 0.0)
    assert GPT.from_pretrained(tmp_path / "0.0 0.2").config.dropout == 0.2
    # A run may go on with another rate.
    more = Trainer(make_model(tokenizer), tokenizer, config(steps=12, dropout=0.1), out_dir=tmp_path / "0.0 0.2")
    assert more.resume(tmp_path / "0.0 0.2").fit(TEXTS, VALIDATION).step == 12

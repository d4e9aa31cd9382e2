# SPDX-License-Identifier: MIT
"""Runs that get worse, jump or diverge: stopping early, steps that are not applied, going back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train_helpers import TEXTS, VALIDATION, config, files_of, log_of, make_model, make_tokenizer, model_in

from miaobi.checkpoint import load_state
from miaobi.model import GPT
from miaobi.tokenizer import JiebaTokenizer
from miaobi.train_events import EvaluationEvent, RollbackEvent, SkipEvent, SpikeEvent, StepEvent, TrainEvent
from miaobi.trainer import Trainer


@pytest.fixture(scope="module")
def tokenizer() -> JiebaTokenizer:
    return make_tokenizer()


# --- when it gets worse ---


@pytest.mark.parametrize("with_folder", [True, False])
def test_it_stops_early_and_goes_back_to_the_best(tokenizer: JiebaTokenizer, tmp_path: Path, with_folder: bool) -> None:
    out = tmp_path / "out" if with_folder else None
    events: list[TrainEvent] = []
    best: list[bytes] = []
    settings = config(steps=60, eval_every=2, learning_rate=0.05, early_stopping=3, keep="last")
    trainer = Trainer(make_model(tokenizer), tokenizer, settings, out_dir=out)

    def listener(event: TrainEvent) -> None:
        events.append(event)
        if isinstance(event, EvaluationEvent) and event.is_best:
            best.append(trainer.model.arena.tobytes())

    trainer.listener = listener
    validation = ["啼鸟照青苔，几枝入海流。", "山尽明月响。"]
    end = trainer.fit(TEXTS, validation)
    evaluations = [event for event in events if isinstance(event, EvaluationEvent)]
    assert end.reason == "early"
    assert end.step < 60
    assert end.best_step == end.step - 6
    assert [event.is_best for event in evaluations[-4:]] == [True, False, False, False]
    assert trainer.model.arena.tobytes() == best[-1]
    if out is not None:
        assert model_in(out) == best[-1]
        again = Trainer(make_model(tokenizer), tokenizer, settings, out_dir=out).resume(out)
        with pytest.raises(ValueError, match="stopped early, after 3 validations"):
            again.fit(TEXTS, validation)
    with pytest.raises(ValueError, match="to validate with"):
        Trainer(make_model(tokenizer), tokenizer, settings).fit(TEXTS)


def test_a_jump_of_the_loss_is_told(tokenizer: JiebaTokenizer) -> None:
    events: list[TrainEvent] = []
    trainer = Trainer(make_model(tokenizer), tokenizer, config(steps=40))

    def listener(event: TrainEvent) -> None:
        events.append(event)
        if isinstance(event, StepEvent) and event.step == 30:
            trainer.model.parameters()["transformer.ln_f.weight"][...] *= -20.0

    trainer.listener = listener
    trainer.fit(TEXTS)
    spikes = [event for event in events if isinstance(event, SpikeEvent)]
    assert spikes[0].step == 31
    assert spikes[0].loss > spikes[0].expected + 1
    assert min(event.step for event in spikes) > 20


def test_without_a_folder_nothing_is_written(
    tokenizer: JiebaTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Trainer(make_model(tokenizer), tokenizer, config()).fit(TEXTS, VALIDATION)
    assert files_of(tmp_path) == []


# --- failures ---


@pytest.fixture
def broken_loss(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes the losses of some calls NaN."""

    def break_calls(model: GPT, calls: set[int]) -> None:
        inner = model.loss_backward
        count = iter(range(1, 1000))

        def loss_backward(*args: Any, **options: Any) -> tuple[float, int]:
            result = inner(*args, **options)
            if next(count) in calls:
                for gradient in model.gradients().values():
                    gradient[...] = np.nan
                return math.nan, result[1]
            return result

        monkeypatch.setattr(model, "loss_backward", loss_backward)

    return break_calls


def test_a_step_that_is_not_finite_is_not_applied(
    tokenizer: JiebaTokenizer, tmp_path: Path, broken_loss: Callable[..., None]
) -> None:
    model = make_model(tokenizer)
    seen: list[tuple[type, int, bytes]] = []

    def listener(event: TrainEvent) -> None:
        if isinstance(event, StepEvent | SkipEvent):
            seen.append((type(event), event.step, model.arena.tobytes()))

    broken_loss(model, {3, 4, 7})
    trainer = Trainer(model, tokenizer, config(), out_dir=tmp_path, listener=listener)
    end = trainer.fit(TEXTS, VALIDATION)
    assert [step for _, step, _ in seen] == list(range(1, 11))
    assert [step for kind, step, _ in seen if kind is SkipEvent] == [3, 4, 7]
    for (_, _, before), (kind, step, after) in pairwise(seen):
        assert (before == after) == (kind is SkipEvent), step
    assert np.isfinite(model.arena).all()
    assert trainer.optimizer.step_count == 7
    assert end.step == 10
    skips = [entry for entry in log_of(tmp_path) if entry["event"] == "skip"]
    assert [(entry["loss"], entry["in_a_row"]) for entry in skips] == [("nan", 1), ("nan", 2), ("nan", 1)]


def test_a_gradient_that_is_not_finite_counts_as_well(tokenizer: JiebaTokenizer) -> None:
    model = make_model(tokenizer)
    model.parameters()["transformer.h.0.mlp.c_proj.bias"][...] = 1e38  # the loss may survive it, the step must not
    before = model.arena.tobytes()
    with pytest.raises(FloatingPointError, match="5 steps in a row, the last of them step 5; lower the learning rate"):
        Trainer(model, tokenizer, config(learning_rate=1e-30, weight_decay=0.0)).fit(TEXTS)
    assert model.arena.tobytes() == before


def test_a_diverged_run_keeps_its_last_checkpoint(
    tokenizer: JiebaTokenizer, tmp_path: Path, broken_loss: Callable[..., None]
) -> None:
    model = make_model(tokenizer)
    broken_loss(model, set(range(6, 1000)))
    with pytest.raises(FloatingPointError, match=r"lower the learning rate from 0\.00125"):
        Trainer(model, tokenizer, config(), out_dir=tmp_path).fit(TEXTS, VALIDATION)
    assert load_state(tmp_path / "checkpoints/last").step == 5
    assert [entry["to_step"] for entry in log_of(tmp_path) if entry["event"] == "rollback"] == [5, 5, 5]


def test_it_goes_back_to_the_last_good_state(
    tokenizer: JiebaTokenizer, tmp_path: Path, broken_loss: Callable[..., None]
) -> None:
    model = make_model(tokenizer)
    broken_loss(model, {6, 7, 8, 9, 10})
    events: list[TrainEvent] = []
    trainer = Trainer(model, tokenizer, config(), out_dir=tmp_path, listener=events.append)
    assert trainer.fit(TEXTS, VALIDATION).step == 10
    (back,) = [event for event in events if isinstance(event, RollbackEvent)]
    assert (back.step, back.to_step, back.rate_scale) == (10, 5, 0.5)
    assert "5 steps in a row" in back.reason
    rates = [event.learning_rate for event in events if isinstance(event, StepEvent)]
    assert rates[5:] == [0.5 * trainer.config.learning_rate_at(step / 10) for step in range(6, 11)]
    assert load_state(tmp_path / "checkpoints/last").rollbacks == 1


def test_spoilt_weights_are_never_saved(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    trainer = Trainer(make_model(tokenizer), tokenizer, config(), out_dir=tmp_path)
    backs: list[RollbackEvent] = []
    poisoned = {3, 10}

    def listener(event: TrainEvent) -> None:
        if isinstance(event, StepEvent) and event.step in poisoned:
            poisoned.remove(event.step)
            trainer.model.parameters()["transformer.wpe.weight"][0, 0] = np.nan
        if isinstance(event, RollbackEvent):
            backs.append(event)

    trainer.listener = listener
    assert trainer.fit(TEXTS, VALIDATION).step == 10
    assert [(event.step, event.to_step) for event in backs] == [(4, 0), (10, 5)]
    assert np.isfinite(trainer.model.arena).all()
    assert np.isfinite(GPT.from_pretrained(tmp_path).arena).all()

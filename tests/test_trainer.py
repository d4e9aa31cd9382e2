# SPDX-License-Identifier: MIT
"""The training loop: what it learns, what it tells, its length and its settings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
from train_helpers import (
    TEXTS,
    VALIDATION,
    config,
    log_of,
    make_model,
    make_tokenizer,
    run_until,
)

from miaobi import run_clock
from miaobi.batches import TokenData
from miaobi.llm import LLM
from miaobi.model import GPT, GPTConfig
from miaobi.tokenizer import JiebaTokenizer
from miaobi.train_config import TrainConfig
from miaobi.train_events import (
    CheckpointEvent,
    EndEvent,
    EvaluationEvent,
    SampleEvent,
    StartEvent,
    StepEvent,
    TrainEvent,
)
from miaobi.trainer import Trainer


@pytest.fixture(scope="module")
def tokenizer() -> JiebaTokenizer:
    return make_tokenizer()


# --- learning ---


def test_it_learns_texts_and_where_they_end(tokenizer: JiebaTokenizer) -> None:
    model = make_model(tokenizer, n_positions=64, n_embd=32)
    end = Trainer(model, tokenizer, config(steps=120)).fit(TEXTS[:4])
    assert (end.reason, end.step) == ("done", 120)
    with LLM(model, tokenizer) as llm:
        for text in TEXTS[:4]:
            # 30 tokens would be twice the text: it ends because the end token was learnt, not because it must.
            assert llm.generate(text[:2], do_sample=False, max_new_tokens=30) == text[2:]


def test_every_event_comes_in_order_and_into_the_log(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    events: list[TrainEvent] = []
    trainer = Trainer(
        make_model(tokenizer),
        tokenizer,
        config(steps=4, sample_prompts=["明月", "用户：霜\n助手："], sample_tokens=5),
        out_dir=tmp_path,
        listener=events.append,
    )
    end = trainer.fit(TEXTS, VALIDATION)
    evaluation = [EvaluationEvent, SampleEvent, SampleEvent, CheckpointEvent]
    half = [StepEvent, StepEvent, *evaluation]
    assert [type(event) for event in events] == [StartEvent, *half, *half, EndEvent]
    assert events[-1] == end
    log = log_of(tmp_path)
    assert [entry["event"] for entry in log] == [type(event).__name__.removesuffix("Event").lower() for event in events]
    start, step, result, sample = log[0], log[1], log[3], log[4]
    data = TokenData.from_texts(TEXTS, tokenizer)
    assert (start["parameters"], start["train_tokens"]) == (trainer.model.num_parameters, data.predictions)
    assert start["config"]["seed"] == 5
    assert start["total_steps"] == 4
    assert start["tokenizer_hash"] == tokenizer.hash
    assert set(step) == {"event", *StepEvent.__dataclass_fields__}
    assert 0 < step["loss"] < 2 * math.log(tokenizer.vocab_size)
    assert step["learning_rate"] == trainer.config.learning_rate_at(0.25)
    assert result["train_loss"] == pytest.approx((log[1]["loss"] + log[2]["loss"]) / 2, rel=0.05)
    assert sample["prompt"] == "明月"
    assert end.tokens == [entry for entry in log if entry["event"] == "step"][-1]["tokens"]


def test_the_validation_loss_is_over_all_tokens_and_bits_over_all_characters(tokenizer: JiebaTokenizer) -> None:
    model = make_model(tokenizer)
    events: list[TrainEvent] = []
    Trainer(model, tokenizer, config(steps=1), listener=events.append).fit(TEXTS, TEXTS)
    (result,) = [event for event in events if isinstance(event, EvaluationEvent)]
    nats = tokens = 0.0
    with LLM(model, tokenizer) as llm:
        for text in TEXTS:
            score = llm.score(text)
            nats, tokens = nats + score.nats, tokens + score.tokens
    assert result.loss == pytest.approx(nats / tokens, rel=1e-6)
    assert result.bits_per_character == pytest.approx(nats / math.log(2) / sum(map(len, TEXTS)), rel=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 50])
def test_gradient_accumulation_equals_the_big_batch(tokenizer: JiebaTokenizer, parts: int) -> None:
    big = Trainer(make_model(tokenizer), tokenizer, config(steps=6))
    big.fit(TEXTS)
    small = Trainer(make_model(tokenizer), tokenizer, config(steps=6, gradient_accumulation=parts))
    small.fit(TEXTS)
    # Adam divides by the root of v: where a gradient is rounding noise alone, the sign of a step is noise, too. So
    # the moments are compared, and of the weights the bulk.
    scale = np.abs(big.optimizer.m).max()
    np.testing.assert_allclose(small.optimizer.m, big.optimizer.m, rtol=1e-3, atol=1e-4 * scale)
    assert np.quantile(np.abs(small.model.arena - big.model.arena), 0.99) < 1e-5
    one = make_model(tokenizer)
    first = make_model(tokenizer)
    batch = big._batches(TokenData.from_texts(TEXTS, tokenizer)).batch(0, 0)
    one.loss_backward(batch.ids, batch.targets, batch.offsets)
    for part in batch.split(parts):
        first.loss_backward(part.ids, part.targets, part.offsets, normalizer=batch.scored)
    for name, gradient in one.gradients().items():
        np.testing.assert_allclose(first.gradients()[name], gradient, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_number_of_steps(tokenizer: JiebaTokenizer) -> None:
    data = TokenData.from_texts(TEXTS, tokenizer)
    per_epoch = -(-data.predictions // 48)
    assert per_epoch > 1
    for epochs, steps in ((1, per_epoch), (3, 3 * per_epoch), (0.001, 1)):
        trainer = Trainer(make_model(tokenizer), tokenizer, config(epochs=epochs))
        assert trainer.total_steps(data) == steps
        end = trainer.fit(data)
        assert end.step == steps
        assert end.epoch == pytest.approx(steps / per_epoch)
    assert Trainer(make_model(tokenizer), tokenizer, config(minutes=1)).total_steps(data) is None


def test_a_run_by_the_clock_follows_the_clock(
    tokenizer: JiebaTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]

    def monotonic() -> float:
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr(run_clock, "time", SimpleNamespace(monotonic=monotonic))
    whole = Trainer(make_model(tokenizer), tokenizer, config(minutes=1), out_dir=tmp_path / "a")
    end = whole.fit(TEXTS)
    assert 60 <= end.elapsed < 65
    rates = [entry["learning_rate"] for entry in log_of(tmp_path / "a") if entry["event"] == "step"]
    assert max(rates) > 0.95e-2
    assert rates[-1] < 0.12e-2
    assert sorted(rates[:3]) == rates[:3]
    assert sorted(rates[10:], reverse=True) == rates[10:]
    stopped = run_until(10, make_model(tokenizer), tokenizer, config(minutes=1), out_dir=tmp_path / "b")
    spent = stopped.state.elapsed
    now[0] += 1e6  # what happens between the two does not count
    resumed = Trainer(make_model(tokenizer), tokenizer, config(minutes=1), out_dir=tmp_path / "b")
    end = resumed.resume(tmp_path / "b/checkpoints/last").fit(TEXTS, VALIDATION)
    assert 5 < spent < 30
    assert 60 <= end.elapsed < 66


def test_bf16_learns_as_float32_does_on_three_seeds() -> None:
    tokenizer = make_tokenizer()

    def losses(seed: int, precision: Literal["float32", "bf16"]) -> list[float]:
        found: list[float] = []

        def listener(event: TrainEvent) -> None:
            if isinstance(event, StepEvent):
                found.append(event.loss)

        model = GPT(replace(make_model(tokenizer).config, n_embd=32), seed=seed)
        settings = config(steps=60, evaluations=1, seed=seed, precision=precision)
        Trainer(model, tokenizer, settings, listener=listener).fit(TEXTS)
        return found

    exact, rounded = (np.array([losses(seed, name) for seed in (0, 1, 2)]) for name in ("float32", "bf16"))
    assert (exact != rounded).mean() > 0.9  # it was on
    ends, differences = exact[:, -10:].mean(1), (rounded - exact)[:, -10:].mean(1)
    assert ends.max() < 0.7 * exact[:, 0].min()
    assert np.abs(differences).max() < np.ptp(ends)  # less than what another seed changes
    assert np.abs(rounded - exact).max() < 0.1


# --- settings ---


def test_the_learning_rate_rises_and_falls() -> None:
    settings = TrainConfig(steps=1, learning_rate=1.0, warmup=0.1, min_learning_rate_ratio=0.2)
    for progress, rate in ((0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.55, 0.6), (1.0, 0.2), (1.5, 0.2)):
        assert settings.learning_rate_at(progress) == pytest.approx(rate), progress
    assert TrainConfig(steps=1, learning_rate=1.0, warmup=0.0).learning_rate_at(0.0) == 1.0
    assert TrainConfig(steps=1, learning_rate=1.0, warmup=1.0).learning_rate_at(0.5) == 0.5


def test_without_a_length_it_is_some_minutes() -> None:
    assert TrainConfig().minutes == 5.0
    assert TrainConfig(epochs=2).minutes is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("steps", True),
        ("epochs", 0),
        ("minutes", -1),
        ("minutes", math.inf),
        ("batch_size", 0),
        ("gradient_accumulation", 0),
        ("learning_rate", 0),
        ("learning_rate", math.nan),
        ("learning_rate", "1e-3"),
        ("min_learning_rate_ratio", 1.1),
        ("warmup", -0.1),
        ("weight_decay", -1),
        ("betas", (0.9,)),
        ("betas", (0.9, 1.0)),
        ("epsilon", 0),
        ("max_grad_norm", 0),
        ("evaluations", 0),
        ("eval_every", 0),
        ("eval_tokens", 0),
        ("sample_prompts", "one"),
        ("sample_prompts", [1]),
        ("sample_tokens", 0),
        ("save_minutes", 0),
        ("save_every", 0),
        ("early_stopping", 0),
        ("keep_checkpoints", -1),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("z_loss", -1),
        ("dropout", 1.0),
        ("freeze", "wte"),
        ("mix_ratio", 0),
        ("mix_ratio", 1.0),
        ("keep", "all"),
        ("seed", -1),
    ],
)
def test_settings_are_checked(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


def test_one_length_only() -> None:
    with pytest.raises(ValueError, match="one of steps, epochs and minutes"):
        TrainConfig(steps=1, minutes=1)


def test_the_vocabularies_must_agree(tokenizer: JiebaTokenizer) -> None:
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size + 1, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match=f"vocab_size={tokenizer.vocab_size}"):
        Trainer(model, tokenizer, config())


def test_there_must_be_documents(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="at least one document"):
        Trainer(make_model(tokenizer), tokenizer, config(), out_dir=out).fit([])
    assert not out.exists()

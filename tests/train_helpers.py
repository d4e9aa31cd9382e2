# SPDX-License-Identifier: MIT
"""Small texts, models and runs that the tests of training share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from miaobi.model import GPT, GPTConfig
from miaobi.tokenizer import JiebaTokenizer
from miaobi.train_config import TrainConfig
from miaobi.train_events import StepEvent, TrainEvent
from miaobi.trainer import Trainer

TEXTS = [
    "床前明月光，疑是地上霜。",
    "白日依山尽，黄河入海流。",
    "春眠不觉晓，处处闻啼鸟。",
    "红豆生南国，春来发几枝。",
    "空山不见人，但闻人语响。返景入深林，复照青苔上。空山不见人，但闻人语响。",  # longer than the context
    "霜",
]
VALIDATION = ["明月入深林。", "春来不见人。"]
TIMES = ("elapsed", "tokens_per_second")


def make_tokenizer() -> JiebaTokenizer:
    return JiebaTokenizer.train(TEXTS, 400, shrink=True)


def make_model(tokenizer: JiebaTokenizer, **changes: Any) -> GPT:
    config = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 32, **changes}
    return GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **config), seed=1)


def config(**changes: Any) -> TrainConfig:
    length = {} if {"epochs", "minutes"} & set(changes) else {"steps": 10}
    return TrainConfig(**{**length, "batch_size": 3, "learning_rate": 1e-2, "evaluations": 2, "seed": 5, **changes})


def weights(trainer: Trainer) -> tuple[bytes, bytes, bytes]:
    return trainer.model.arena.tobytes(), trainer.optimizer.m.tobytes(), trainer.optimizer.v.tobytes()


def model_in(folder: Path) -> bytes:
    return GPT.from_pretrained(folder).arena.tobytes()


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "train_log.jsonl").read_text("utf-8").splitlines()]


def figures_of(out: Path) -> list[dict[str, Any]]:
    """Steps and evaluations of the log, without what the clock says."""
    entries = [entry for entry in log_of(out) if entry["event"] in ("step", "evaluation")]
    return [{key: value for key, value in entry.items() if key not in TIMES} for entry in entries]


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class StopAt:
    """A listener that stops its trainer after some step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.trainer: Trainer | None = None

    def __call__(self, event: TrainEvent) -> None:
        if isinstance(event, StepEvent) and event.step == self.step and self.trainer is not None:
            self.trainer.stop()


def run_until(stop_at: int, *args: Any, **options: Any) -> Trainer:
    listener = StopAt(stop_at)
    trainer = Trainer(*args, **options, listener=listener)
    listener.trainer = trainer
    assert trainer.fit(TEXTS, VALIDATION).reason == "stopped"
    return trainer

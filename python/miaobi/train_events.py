# SPDX-License-Identifier: MIT
"""What happens in a training run, as values: the trainer gives each to its listener and writes it to the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "CheckpointEvent",
    "EndEvent",
    "EvaluationEvent",
    "Listener",
    "RollbackEvent",
    "SampleEvent",
    "SkipEvent",
    "SpikeEvent",
    "StartEvent",
    "StepEvent",
    "TrainEvent",
]


@dataclass(frozen=True)
class StartEvent:
    """The run begins, or goes on at `step` of a checkpoint."""

    step: int
    total_steps: int | None  # None if it ends by the clock
    parameters: int
    train_tokens: int
    validation_tokens: int
    config: dict[str, Any]
    model: dict[str, Any]
    tokenizer_hash: str
    version: str
    data: dict[str, Any] = field(default_factory=dict)  # the `data_info` of the trainer


@dataclass(frozen=True)
class StepEvent:
    """A step was made. `loss` is in nats for each token; `elapsed` seconds of the run, resumed parts included."""

    step: int
    epoch: float
    progress: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    elapsed: float


@dataclass(frozen=True)
class SkipEvent:
    """A step was not applied, because its loss or gradient was not finite: the `in_a_row`-th such in a row."""

    step: int
    loss: float
    grad_norm: float
    in_a_row: int


@dataclass(frozen=True)
class RollbackEvent:
    """The run went back to the state of the checkpoint at `to_step`, with `rate_scale` of its learning rate."""

    step: int
    to_step: int
    reason: str
    rate_scale: float


@dataclass(frozen=True)
class SpikeEvent:
    """The loss of a step, which was applied, was far above the `expected` one of the steps before."""

    step: int
    loss: float
    expected: float


@dataclass(frozen=True)
class EvaluationEvent:
    """The model was validated: `loss` in nats for each token, and in bits for each character of the text."""

    step: int
    epoch: float
    loss: float
    bits_per_character: float
    train_loss: float  # mean over the steps since the last evaluation
    is_best: bool
    elapsed: float


@dataclass(frozen=True)
class SampleEvent:
    """The model went on from `prompt` with `text`."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class CheckpointEvent:
    """The run was saved in the folder `path`."""

    step: int
    path: str
    is_best: bool


@dataclass(frozen=True)
class EndEvent:
    """The run is over: "done", "early" as validation got no better, or "stopped" before its end by `Trainer.stop`."""

    reason: Literal["done", "early", "stopped"]
    step: int
    epoch: float
    elapsed: float
    tokens: int
    best_step: int | None
    best_loss: float | None


TrainEvent = (
    StartEvent
    | StepEvent
    | SkipEvent
    | SpikeEvent
    | RollbackEvent
    | EvaluationEvent
    | SampleEvent
    | CheckpointEvent
    | EndEvent
)
Listener = Callable[[TrainEvent], None]

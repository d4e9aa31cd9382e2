# SPDX-License-Identifier: MIT
"""A training run for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miaobi.train_events import EvaluationEvent, StepEvent, TrainEvent

__all__ = ["TensorBoardListener"]


class TensorBoardListener:
    """A listener of `Trainer` that writes scalars into a folder for `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError if TensorBoard is not installed."""
        try:
            from tensorboard.summary import Writer
        except ImportError:
            raise ValueError("--tensorboard needs TensorBoard: pip install 'miaobi[tensorboard]'") from None
        self._folder = folder
        self._make = Writer
        self._writer: Any = None

    def __call__(self, event: TrainEvent) -> None:
        """Writes the figures of a step or an evaluation."""
        if isinstance(event, StepEvent):
            names = ("loss", "learning_rate", "grad_norm", "tokens_per_second")
            self._add(event.step, {f"train/{name}": getattr(event, name) for name in names})
        elif isinstance(event, EvaluationEvent):
            self._add(
                event.step, {f"validation/{name}": getattr(event, name) for name in ("loss", "bits_per_character")}
            )

    def close(self) -> None:
        """Writes what is still held."""
        if self._writer is not None:
            self._writer.close()

    def _add(self, step: int, values: dict[str, float]) -> None:
        if self._writer is None:  # the folder is not touched before the run has begun
            self._writer = self._make(str(self._folder))
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

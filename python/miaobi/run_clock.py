# SPDX-License-Identifier: MIT
"""How far a training run is, by steps or by the clock, and what is due at that point."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Final

from miaobi.checkpoint import TrainState
from miaobi.train_config import TrainConfig

__all__ = ["RunClock"]

_SPEED_WINDOW: Final = 30  # steps over which tokens per second is taken


class RunClock:
    """Keeps the time of a run that may have begun in another process, and its speed.

    `total_steps` is the length of the run, or None for one that ends by the clock. The state is given to each call, for
    a run that goes back has another one.
    """

    def __init__(self, config: TrainConfig, total_steps: int | None, elapsed: float) -> None:
        self.total_steps: Final = total_steps
        self._config = config
        self._zero = time.monotonic() - elapsed
        self._saved_at = elapsed
        self._speed: deque[tuple[int, float]] = deque(maxlen=_SPEED_WINDOW)

    @property
    def elapsed(self) -> float:
        """Seconds of the run up to now."""
        return time.monotonic() - self._zero

    @property
    def tokens_per_second(self) -> float:
        """The speed of the last steps."""
        return sum(n for n, _ in self._speed) / max(sum(s for _, s in self._speed), 1e-9)

    def note_step(self, tokens: int, seconds: float) -> None:
        """Counts a step towards the speed."""
        self._speed.append((tokens, seconds))

    def note_save(self) -> None:
        """Counts the minutes to the next save from now on."""
        self._saved_at = self.elapsed

    def progress(self, state: TrainState) -> float:
        """How much of the run is done, 0 to 1."""
        return self._share(state.step, state.elapsed)

    def progress_of_step(self, state: TrainState) -> float:
        """How much of the run will be done after the step at hand: the first step shall not have a rate of 0."""
        return self._share(state.step + 1, state.elapsed + (self._speed[-1][1] if self._speed else 0.0))

    def _share(self, step: int, elapsed: float) -> float:
        if self.total_steps is not None:
            return step / self.total_steps
        assert self._config.minutes is not None
        return elapsed / (60.0 * self._config.minutes)

    def is_evaluation_due(self, state: TrainState, before: float) -> bool:
        """Whether to validate after a step that began when `before` of the run was done."""
        after = self.progress(state)
        if after >= 1.0:
            return True
        if self._config.eval_every is not None:
            return state.step % self._config.eval_every == 0
        n = self._config.evaluations
        return math.floor(after * n + 1e-9) > math.floor(before * n + 1e-9)

    def is_save_due(self, state: TrainState) -> bool:
        """Whether to save after this step, apart from evaluations."""
        every = self._config.save_every
        by_step = every is not None and state.step % every == 0
        return by_step or state.elapsed - self._saved_at >= 60.0 * self._config.save_minutes

# SPDX-License-Identifier: MIT
"""Telling a jump of the training loss from its noise."""

from __future__ import annotations

from typing import Final

__all__ = ["LossWatch"]

# A loss this many mean deviations, and nats, above the running mean is no noise; the first steps have no mean yet.
_DEVIATIONS: Final = 6.0
_NATS: Final = 0.5
_AFTER: Final = 20
_DECAY: Final = 0.95


class LossWatch:
    """A running mean and mean deviation of the losses of a run."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._deviation = 0.0
        self._steps = 0

    def is_spike(self, loss: float) -> bool:
        """Takes the loss of the next step; whether it is far above those before it, whose mean was `mean`."""
        above = loss - self.mean
        spike = self._steps >= _AFTER and above > max(_DEVIATIONS * self._deviation, _NATS)
        if not spike:
            decay = min(_DECAY, self._steps / (self._steps + 1))
            self.mean += (1 - decay) * above
            self._deviation = decay * self._deviation + (1 - decay) * abs(above)
            self._steps += 1
        return spike

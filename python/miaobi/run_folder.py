# SPDX-License-Identifier: MIT
"""What a training run keeps in its folder: the last and the best checkpoint, some more, and the model itself."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from miaobi.chat import ChatTemplate
from miaobi.checkpoint import (
    TrainState,
    copy_checkpoint,
    find_checkpoint,
    load_checkpoint,
    publish,
    save_checkpoint,
)
from miaobi.model import GPT, AdamW
from miaobi.tokenizer import JiebaTokenizer
from miaobi.train_config import TrainConfig

__all__ = ["CHECKPOINTS", "RunFolder"]

CHECKPOINTS: Final = "checkpoints"
_STEP_PREFIX: Final = "step-"


class RunFolder:
    """`checkpoints/last`, `checkpoints/best`, the most recent `checkpoints/step-N`, and beside them the model."""

    def __init__(self, path: Path, config: TrainConfig, data: Mapping[str, Any], template: ChatTemplate | None) -> None:
        self.path: Final = path
        self.last: Final = path / CHECKPOINTS / "last"
        self.best: Final = path / CHECKPOINTS / "best"
        self._config = config
        self._data = data
        self.template = template  # None as long as the model has read no dialogue

    def save(
        self, model: GPT, tokenizer: JiebaTokenizer, optimizer: AdamW, state: TrainState, is_best: bool = False
    ) -> None:
        """Writes the checkpoint "last", and "best" if it is, and the model of the one that is kept. Raises OSError."""
        save_checkpoint(self.last, model, tokenizer, optimizer, state, self._data, self.template)
        if is_best:
            copy_checkpoint(self.last, self.best)
        if self._config.keep_checkpoints and state.step:
            copy_checkpoint(self.last, self.last.with_name(f"{_STEP_PREFIX}{state.step:08}"))
            for old in sorted(self.last.parent.glob(f"{_STEP_PREFIX}????????"))[: -self._config.keep_checkpoints]:
                shutil.rmtree(old)
        if state.step and (is_best or self._config.keep == "last" or state.best_step is None):
            publish(self.last, self.path)

    def publish(self, state: TrainState, best: bool) -> None:
        """Makes the model folder that of the best checkpoint, or of the last; a resumed run may have kept another."""
        found = find_checkpoint(self.best)
        publish(found if best and state.best_step and found else self.last, self.path)

    def load_best(self, model: GPT, tokenizer: JiebaTokenizer, optimizer: AdamW) -> None:
        """Gives the model the weights of the best checkpoint."""
        load_checkpoint(find_checkpoint(self.best) or self.best, model, tokenizer, optimizer)

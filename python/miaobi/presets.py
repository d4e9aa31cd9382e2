# SPDX-License-Identifier: MIT
"""Model sizes with settings that train them well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from miaobi.model import GPTConfig

__all__ = ["INITS", "PRESETS", "Preset"]

INITS: Final = ("bigrams", "random")  # how the weights of a new model begin


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The shape of a model, without its vocabulary, and the settings of `TrainConfig` that suit it."""

    n_layer: int
    n_head: int
    n_embd: int
    n_inner: int
    n_positions: int
    batch_size: int
    learning_rate: float
    gradient_accumulation: int = 1

    def model_config(self, vocab_size: int) -> GPTConfig:
        """The configuration of a model with this many tokens."""
        from miaobi.model import GPTConfig  # the command line names the presets before it needs NumPy

        return GPTConfig(
            vocab_size=vocab_size,
            n_positions=self.n_positions,
            n_embd=self.n_embd,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_inner=self.n_inner,
        )


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "tiny": Preset(n_layer=2, n_head=4, n_embd=128, n_inner=512, n_positions=128, batch_size=8, learning_rate=4e-3),
        "nano": Preset(n_layer=2, n_head=8, n_embd=256, n_inner=512, n_positions=128, batch_size=4, learning_rate=2e-3),
        "mini": Preset(
            n_layer=4, n_head=8, n_embd=256, n_inner=1024, n_positions=256, batch_size=8, learning_rate=1.5e-3
        ),
        "small": Preset(
            n_layer=6, n_head=6, n_embd=384, n_inner=1536, n_positions=256, batch_size=4, learning_rate=1e-3
        ),
        "medium": Preset(
            n_layer=8, n_head=8, n_embd=512, n_inner=2048, n_positions=512, batch_size=4, learning_rate=8e-4
        ),
        "base": Preset(
            n_layer=12,
            n_head=12,
            n_embd=768,
            n_inner=3072,
            n_positions=1024,
            batch_size=8,
            learning_rate=6e-4,
            gradient_accumulation=4,
        ),
    }
)

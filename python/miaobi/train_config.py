# SPDX-License-Identifier: MIT
"""The settings of a training run, checked when they are made, and the learning rate that follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final, Literal

__all__ = ["TrainConfig"]

_DEFAULT_MINUTES: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Raises ValueError naming the field if one is out of range.

    steps, epochs, minutes: the length of the run, at most one of them; none is 5 minutes. Epochs need not be whole.
    batch_size:            contexts of tokens that each step learns from: a batch has batch_size * n_positions tokens.
    gradient_accumulation: parts in which a batch is computed. More parts take less memory; the result is the same
                           but for rounding.
    learning_rate:         highest learning rate, reached after `warmup`, a share of the run; then it falls along a
                           cosine to learning_rate * min_learning_rate_ratio.
    weight_decay, betas, epsilon: of AdamW; decay is for matrices only, and off by default, as the next three are.
    label_smoothing:       share of a target's probability that goes to all tokens evenly, 0 to under 1.
    z_loss:                weight of the squared logarithm of the softmax's sum, which keeps logits from drifting; 1e-4
                           is usual. Neither is in the losses that are reported.
    precision:             of the matrix products: "bf16" rounds their operands to bfloat16 and is faster where the
                           machine has instructions for it (AVX-512 BF16); sums, weights and moments stay float32.
    dropout:               share of the elements that a step leaves out of the embeddings and of what each attention and
                           feed-forward layer gives, 0 to under 1; None for that of the model's config, 0 if new.
    max_grad_norm:         the gradient of all parameters together is scaled down to this length; None for no limit.
    evaluations:           how often to validate, at equal distances, the end included; `eval_every` steps instead if
                           given. At each the run is saved, and a sample is written from each of `sample_prompts`.
    eval_tokens:           validate on about so many tokens at most: whole documents, evenly spread, always the same.
    sample_tokens:         length of a sample.
    early_stopping:        end the run when so many validations in a row were no better than the best, and go back to
                           the weights of the best; None for never.
    save_minutes, save_every: save also when so many minutes, or steps, have gone by.
    keep:                  which weights the model folder holds at the end: those of the "best" validation, or the
                           "last".
    keep_checkpoints:      of all that was saved, keep so many of the most recent beside the last and the best.
    freeze:                names of parameters, or patterns such as "transformer.wte.*", that are not to be changed.
    mix_ratio:             share of each batch that comes from the text to mix in, where there is one.
    seed:                  the order of the documents, and the samples, follow from it.
    """

    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    min_learning_rate_ratio: float = 0.1
    warmup: float = 0.1
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    precision: Literal["float32", "bf16"] = "float32"
    dropout: float | None = None
    betas: tuple[float, float] = (0.9, 0.99)  # a batch has few tokens: 0.95 forgets the rare ones
    epsilon: float = 1e-8
    max_grad_norm: float | None = 1.0
    evaluations: int = 10
    eval_every: int | None = None
    eval_tokens: int = 20_000
    sample_prompts: Sequence[str] = ()
    sample_tokens: int = 48
    early_stopping: int | None = None
    save_minutes: float = 10.0
    save_every: int | None = None
    keep: Literal["best", "last"] = "best"
    keep_checkpoints: int = 0
    freeze: Sequence[str] = ()
    mix_ratio: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "epochs", "minutes") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"[train] expected one of steps, epochs and minutes, got {' and '.join(given)}")
        if not given:
            object.__setattr__(self, "minutes", _DEFAULT_MINUTES)
        for name in ("steps", "batch_size", "gradient_accumulation", "evaluations", "eval_every", "eval_tokens"):
            self._check_int(name, 1)
        for name in ("sample_tokens", "early_stopping", "save_every"):
            self._check_int(name, 1)
        for name in ("keep_checkpoints", "seed"):
            self._check_int(name, 0)
        for name in ("epochs", "minutes", "learning_rate", "epsilon", "max_grad_norm", "save_minutes"):
            self._check_real(name, 0.0, math.inf, open_low=True)
        for name in ("weight_decay", "z_loss"):
            self._check_real(name, 0.0, math.inf)
        for name in ("label_smoothing", "dropout"):
            self._check_real(name, 0.0, math.nextafter(1.0, 0.0))
        self._check_real("mix_ratio", 0.0, math.nextafter(1.0, 0.0), open_low=True)
        for name in ("min_learning_rate_ratio", "warmup"):
            self._check_real(name, 0.0, 1.0)
        betas = tuple(self.betas)
        if len(betas) != 2 or not all(isinstance(beta, Real) and 0 <= beta < 1 for beta in betas):
            raise ValueError(f"[train] expected betas of two numbers from 0 to under 1, got {self.betas!r}")
        object.__setattr__(self, "betas", betas)
        for name in ("sample_prompts", "freeze"):
            texts = getattr(self, name)
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"[train] expected {name} to be a list of str, got {texts!r:.80}")
            object.__setattr__(self, name, tuple(texts))
        if self.precision not in ("float32", "bf16"):
            raise ValueError(f'[train] expected precision to be "float32" or "bf16", got {self.precision!r:.80}')
        if self.keep not in ("best", "last"):
            raise ValueError(f'[train] expected keep to be "best" or "last", got {self.keep!r:.80}')

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate when `progress`, 0 to 1, of the run is done."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        low = self.learning_rate * self.min_learning_rate_ratio
        through = min((progress - self.warmup) / (1.0 - self.warmup), 1.0) if self.warmup < 1.0 else 1.0
        return low + (self.learning_rate - low) * 0.5 * (1.0 + math.cos(math.pi * through))

    def loss_options(self) -> dict[str, Any]:
        """How a step's loss is computed: the options of `GPT.loss_backward`."""
        return {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss, "precision": self.precision}

    def _check_int(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if value is None and name in ("steps", "eval_every", "early_stopping", "save_every"):
            return
        if not isinstance(value, Integral) or isinstance(value, bool) or value < low:
            raise ValueError(f"[train] expected {name} to be an integer of {low} or more, got {value!r:.80}")
        object.__setattr__(self, name, int(value))

    def _check_real(self, name: str, low: float, high: float, *, open_low: bool = False) -> None:
        value = getattr(self, name)
        if value is None and name in ("epochs", "minutes", "max_grad_norm", "dropout"):
            return
        fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or not (low < value if open_low else low <= value) or value > high:
            kind = f"a number above {low:g}" if open_low else f"a number of {low:g} or more"
            kind += "" if math.isinf(high) else f", {'up to' if high == 1.0 else 'under'} {high:g}"
            raise ValueError(f"[train] expected {name} to be {kind}, got {value!r:.80}")
        object.__setattr__(self, name, float(value))

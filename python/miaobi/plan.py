# SPDX-License-Identifier: MIT
"""What a machine can train in some time, from a measurement of a few seconds, and which size of model that is best for.

Sizes are compared by the loss that the law of Hoffmann et al. 2022 predicts, with what Muennighoff et al. 2023 found on
repeated text: of N parameters and D tokens, A / N^alpha + B / D^beta, where passes over the same text count less and
less, and so do parameters beyond those that the text can fill. The constants are those of the papers, from larger
models and other languages: they rank sizes, and predict no loss of ours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from miaobi._core import get_num_threads
from miaobi.bigram_init import bigram_init_memory
from miaobi.model import GPT, AdamW, GPTConfig
from miaobi.presets import PRESETS, Preset

__all__ = ["MEASURED", "Machine", "Plan", "best_plan", "flops_per_token", "plans", "predicted_loss"]

_A, _ALPHA, _B, _BETA, _FLOOR = 406.4, 0.34, 410.7, 0.28, 1.69  # Hoffmann et al. 2022, approach 3
_REPEATED_TOKENS, _REPEATED_PARAMETERS = 15.39, 5.31  # Muennighoff et al. 2023: R*_D and R*_N
# After so many passes over a text another one teaches next to nothing (Muennighoff et al. 2023, figure 5).
_USEFUL_PASSES: Final = 40.0
MEASURED: Final = ("tiny", "mini")  # between them, the speed of others is interpolated; larger ones take more memory
_MEASURED_VOCABULARY: Final = 8000
_MEASURED_ROWS: Final = 512  # tokens of a step: a whole batch would take more memory than the run of a small model
_WORKING_SHARE: Final = 0.93  # of the time goes to steps: the rest validates, writes samples, and saves
# Measured with `bench/compare_plan.py`, in bytes.
_BASE_MEMORY: Final = 75e6  # Python, NumPy and the dictionary
_TEXT_MEMORY: Final = (10.0, 5e7)  # for each token, and at most: counts of words, what is kept of each document
_WORK_MEMORY: Final = 68e6  # a chunk of logits, packed panels, and what the allocator does not give back


@dataclass(frozen=True)
class Machine:
    """How fast a machine trains: FLOP/s at some sizes of model, given as FLOP for each token, ascending."""

    speeds: tuple[tuple[float, float], ...]
    threads: int

    @classmethod
    def measure(cls, seconds: float = 5.0) -> Machine:
        """Times training steps of two sizes for about `seconds` together."""
        found = []
        for name in MEASURED:
            preset = PRESETS[name]
            config = preset.model_config(_MEASURED_VOCABULARY)
            rate = _measured_rate(config, _MEASURED_ROWS // preset.n_positions, seconds / len(MEASURED))
            found.append((flops_per_token(config), flops_per_token(config) * rate))
        return cls(tuple(found), get_num_threads())

    def tokens_per_second(self, config: GPTConfig) -> float:
        """What to expect for a model, interpolated over the logarithm of its FLOP for each token."""
        flops = flops_per_token(config)
        sizes, rates = zip(*self.speeds, strict=True)
        return float(np.interp(math.log(flops), np.log(sizes), rates)) / flops


class Plan(NamedTuple):
    """What training one size for some time comes to."""

    name: str
    preset: Preset
    parameters: int
    minutes: float
    tokens_per_second: float
    steps: int
    passes: float  # over the text
    memory: float  # bytes, at most
    disk: float  # bytes, of the whole folder of the run
    model_size: float  # bytes
    loss: float  # predicted, to compare sizes with

    def sentence(self) -> str:
        """The plan in words."""
        return (
            f"{self.parameters / 1e6:.1f} million parameters at about {self.tokens_per_second:,.0f} tokens/s: "
            f"{self.steps:,} steps, {self.passes:.1f} times through the text in {self.minutes:g} minutes"
        )

    @property
    def is_text_too_small(self) -> bool:
        """Whether the text would be read so often that reading on teaches next to nothing new."""
        return self.passes > _USEFUL_PASSES


def flops_per_token(config: GPTConfig) -> float:
    """Floating point operations for each token of a training step: six for each weight, and attention's."""
    width, layers = config.n_embd, config.n_layer
    weights = layers * (4 * width**2 + 2 * width * config.inner_size) + config.vocab_size * width
    return 6.0 * weights + 6.0 * layers * config.n_positions * width


def predicted_loss(parameters: float, tokens: float, unique_tokens: float) -> float:
    """The loss of a model that saw `tokens`, of which `unique_tokens` are different: lower is better."""
    data = unique_tokens * _saturated(max(tokens / unique_tokens - 1, 0.0), _REPEATED_TOKENS)
    data = min(data, tokens)
    filled = (_ALPHA * _A / (_BETA * _B) * unique_tokens**_BETA) ** (1 / _ALPHA)  # the best size for one pass
    size = min(filled * _saturated(max(parameters / filled - 1, 0.0), _REPEATED_PARAMETERS), parameters)
    return float(_FLOOR + _A / size**_ALPHA + _B / data**_BETA)


def plans(
    machine: Machine, vocab_size: int, tokens: int, minutes: float, presets: Mapping[str, Preset] = PRESETS
) -> list[Plan]:
    """What each size comes to on a text of `tokens` tokens in `minutes`."""
    found = []
    for name, preset in presets.items():
        config = preset.model_config(vocab_size)
        parameters = _parameters(config)
        rate = machine.tokens_per_second(config)
        seen = max(rate * 60 * minutes * _WORKING_SHARE, 1.0)
        batch = preset.batch_size * preset.n_positions
        found.append(
            Plan(
                name=name,
                preset=preset,
                parameters=parameters,
                minutes=minutes,
                tokens_per_second=rate,
                steps=int(seen // min(batch, tokens)),
                passes=seen / tokens,
                memory=_memory(preset, config, parameters, tokens),
                disk=(12.0 + 12.0) * parameters + 3.0 * tokens,
                model_size=4.0 * parameters,
                loss=predicted_loss(parameters, seen, tokens),
            )
        )
    return found


def best_plan(machine: Machine, vocab_size: int, tokens: int, minutes: float) -> Plan:
    """The size with the lowest predicted loss."""
    return min(plans(machine, vocab_size, tokens, minutes), key=lambda plan: plan.loss)


def _memory(preset: Preset, config: GPTConfig, parameters: int, tokens: int) -> float:
    """Bytes that a run takes at most: while it makes the first weights, or while it trains and writes samples."""
    width, inner = config.n_embd, config.inner_size
    rows = preset.batch_size * preset.n_positions / preset.gradient_accumulation
    kept = config.n_layer * (6 * width + inner)  # of each token: a block's input, Q, K, V, attention, middle, MLP
    passing = 3 * width + max(4 * width, inner)  # and what backward holds of one block
    weights = 16.0 + 4.0  # of each parameter: itself, its gradient, two moments; and packed, for samples
    training = _WORK_MEMORY + weights * parameters + 4.0 * rows * (kept + passing)
    beginning = 8.0 * parameters + bigram_init_memory(config.vocab_size, width, tokens)
    each, most = _TEXT_MEMORY
    text = min(each * tokens, most) + 2.0 * tokens  # the file of tokens, too, which is mapped
    return _BASE_MEMORY + text + max(training, beginning)


def _saturated(repeats: float, scale: float) -> float:
    """1 and what `repeats` more of the same are worth."""
    return 1 + scale * (1 - math.exp(-repeats / scale))


def _parameters(config: GPTConfig) -> int:
    width, inner = config.n_embd, config.inner_size
    block = 4 * width**2 + 2 * width * inner + 9 * width + inner
    return config.n_layer * block + (config.vocab_size + config.n_positions) * width + 2 * width


def _measured_rate(config: GPTConfig, batch: int, seconds: float) -> float:
    """Tokens per second of training steps on random tokens: the median over the steps that fit in the time."""
    begun = time.perf_counter()
    model = GPT(config)
    optimizer = AdamW(model, 1e-4)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, config.n_positions + 1)).astype(np.int32)
    times: list[float] = []
    while len(times) < 3 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        model.zero_grad()
        model.loss_backward(ids[:, :-1], ids[:, 1:])
        optimizer.step(max_grad_norm=1.0)
        times.append(time.perf_counter() - start)
    return batch * config.n_positions / float(np.median(times[1:]))  # the first one takes the memory

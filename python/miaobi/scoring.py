# SPDX-License-Identifier: MIT
"""How well a model predicts text: nats, perplexity and bits per character."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from miaobi.model import GPT

__all__ = ["Score", "score_documents"]

_BATCH_TOKENS: Final = 2048  # enough rows to keep the matrix products busy, few enough to stay in tens of megabytes
_IGNORED: Final = -100  # the target that token_losses does not score


class Score(NamedTuple):
    """What predicting some text cost. Scores of texts can be added up with `+`."""

    nats: float  # sum of -log(probability) of all tokens
    tokens: int  # tokens predicted, the end token included
    characters: int

    def __add__(self, other: object) -> Score:
        if not isinstance(other, Score):
            return NotImplemented
        return Score(self.nats + other.nats, self.tokens + other.tokens, self.characters + other.characters)

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of a token: comparable only between models with the same tokenizer. NaN for no token."""
        mean = self.nats / self.tokens if self.tokens else math.nan
        return math.exp(mean) if mean < 709 else math.inf  # exp(710) is more than a float holds

    @property
    def bits_per_character(self) -> float:
        """Bits for a character of text: comparable between all models. NaN for no text."""
        return self.nats / math.log(2) / self.characters if self.characters else math.nan


def score_documents(model: GPT, documents: Iterable[tuple[Sequence[int], int]]) -> Iterator[Score]:
    """The score of each document, in order, given as (token ids from bos to eos, number of characters).

    Every token but the first is predicted once, from all before it, or from the most recent half to whole context
    where a document is longer than that.
    """
    context = model.config.n_positions
    waiting: list[tuple[int, int]] = []  # windows and characters of each document that is not scored yet
    windows: list[tuple[Sequence[int], int]] = []
    for ids, characters in documents:
        before = len(windows)
        windows.extend(_windows(ids, context))
        waiting.append((len(windows) - before, characters))
        if sum(len(window) for window, _ in windows) >= _BATCH_TOKENS:
            yield from _scores(model, windows, waiting)
            windows, waiting = [], []
    yield from _scores(model, windows, waiting)


def _windows(ids: Sequence[int], context: int) -> Iterator[tuple[Sequence[int], int]]:
    """Pieces of at most context + 1 ids, with the place of the first id in each that no piece before predicts."""
    step = max(context // 2, 1)
    done = 1
    start = 0
    while done < len(ids):
        yield ids[start : start + context + 1], done - start
        done = start + context + 1
        start += step


def _scores(model: GPT, windows: list[tuple[Sequence[int], int]], documents: list[tuple[int, int]]) -> Iterator[Score]:
    """The score of each document, given as (number of its windows, characters)."""
    sums = []
    for batch in _batches(windows):
        inputs = np.concatenate([np.asarray(ids[:-1], np.int32) for ids, _ in batch])
        targets = np.concatenate([np.asarray(ids[1:], np.int32) for ids, _ in batch])
        offsets = np.asarray([0, *accumulate(len(ids) - 1 for ids, _ in batch)], np.int64)
        for begin, (_, first) in zip(offsets, batch, strict=False):
            targets[begin : begin + first - 1] = _IGNORED
        losses = model.token_losses(inputs, targets, offsets).astype(np.float64)
        sums += list(
            zip(np.add.reduceat(losses, offsets[:-1]), np.add.reduceat(targets >= 0, offsets[:-1]), strict=True)
        )
    results = iter(sums)
    for count, characters in documents:
        parts = [next(results) for _ in range(count)]
        yield Score(float(sum(nats for nats, _ in parts)), int(sum(tokens for _, tokens in parts)), characters)


def _batches(windows: list[tuple[Sequence[int], int]]) -> Iterator[list[tuple[Sequence[int], int]]]:
    """Groups of windows with about as many tokens as a batch has."""
    batch: list[tuple[Sequence[int], int]] = []
    size = 0
    for window in windows:
        if batch and size + len(window[0]) > _BATCH_TOKENS:
            yield batch
            batch, size = [], 0
        batch.append(window)
        size += len(window[0])
    if batch:
        yield batch

# SPDX-License-Identifier: MIT
"""How well a model predicts text: nats, perplexity and bits per character."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from miaobi.model import GPT

__all__ = ["BATCH_TOKENS", "Score", "TokenDocument", "score_documents"]

BATCH_TOKENS: Final = 2048  # enough rows to keep the matrix products busy, few enough to stay in tens of megabytes
_IGNORED: Final = -100  # the target that token_losses does not score


class TokenDocument(NamedTuple):
    """A document as ids from bos to eos, how many characters are scored, and which ids are: None is all."""

    ids: Sequence[int] | NDArray[np.int32]
    characters: int
    scored: NDArray[np.bool_] | None = None


class Score(NamedTuple):
    """What predicting some text cost. Scores of texts can be added up with `+`."""

    nats: float  # sum of -log(probability) of all tokens
    tokens: int  # tokens predicted, the end token included
    characters: int
    correct: int = 0  # tokens that the model thought likeliest

    def __add__(self, other: object) -> Score:
        if not isinstance(other, Score):
            return NotImplemented
        return Score(
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.characters + other.characters,
            self.correct + other.correct,
        )

    @property
    def accuracy(self) -> float:
        """Share of the tokens that the model thought likeliest, 0 to 1. NaN for no token."""
        return self.correct / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of a token: comparable only between models with the same tokenizer. NaN for no token."""
        mean = self.nats / self.tokens if self.tokens else math.nan
        return math.exp(mean) if mean < 709 else math.inf  # exp(710) is more than a float holds

    @property
    def bits_per_character(self) -> float:
        """Bits for a character of text: comparable between all models. NaN for no text."""
        return self.nats / math.log(2) / self.characters if self.characters else math.nan


_Window = tuple[NDArray[np.int32], NDArray[np.int32]]  # ids and their targets


def score_documents(
    model: GPT, documents: Iterable[tuple[Sequence[int], int] | TokenDocument], batch_tokens: int = BATCH_TOKENS
) -> Iterator[Score]:
    """The score of each document, in order, given as (token ids from bos to eos, number of characters).

    Every token but the first is predicted once, from all before it, or from the most recent half to whole context
    where a document is longer than that. Tokens that are not scored are only read. About `batch_tokens` are computed at
    once; the scores do not depend on that.
    """
    context = model.config.n_positions
    waiting: list[tuple[int, int]] = []  # windows and characters of each document that is not scored yet
    windows: list[_Window] = []
    size = 0
    for document in documents:
        found = list(_windows(TokenDocument(*document), context))
        windows += found
        size += sum(len(ids) for ids, _ in found)
        waiting.append((len(found), document[1]))
        if size >= batch_tokens:
            yield from _scores(model, windows, waiting, batch_tokens)
            windows, waiting, size = [], [], 0
    yield from _scores(model, windows, waiting, batch_tokens)


def _windows(document: TokenDocument, context: int) -> Iterator[_Window]:
    """Pieces of at most `context` ids; a target that a piece before has predicted is ignored, as one not scored is."""
    ids = np.asarray(document.ids, np.int32)
    targets = ids[1:].copy()
    if document.scored is not None:
        targets[~document.scored[1:]] = _IGNORED
    step = max(context // 2, 1)
    start = done = 0
    while done < len(targets):
        window = targets[start : start + context].copy()
        window[: done - start] = _IGNORED
        yield ids[start : start + len(window)], window
        done = start + context
        start += step


def _scores(model: GPT, windows: list[_Window], documents: list[tuple[int, int]], batch_tokens: int) -> Iterator[Score]:
    """The score of each document, given as (number of its windows, characters)."""
    sums: list[tuple[float, int, int]] = []
    for batch in _batches(windows, batch_tokens):
        inputs, targets = (np.concatenate(arrays) for arrays in zip(*batch, strict=True))
        offsets = np.asarray([0, *accumulate(len(ids) for ids, _ in batch)], np.int64)
        losses, predicted = model.score_tokens(inputs, targets, offsets)
        scored = targets != _IGNORED
        nats = np.add.reduceat(losses.astype(np.float64), offsets[:-1])
        tokens = np.add.reduceat(scored.astype(np.int64), offsets[:-1])
        correct = np.add.reduceat((scored & (predicted == targets)).astype(np.int64), offsets[:-1])
        sums += zip(nats.tolist(), tokens.tolist(), correct.tolist(), strict=True)
    results = iter(sums)
    for count, characters in documents:
        parts = [next(results) for _ in range(count)]
        yield Score(
            sum(part[0] for part in parts), sum(part[1] for part in parts), characters, sum(part[2] for part in parts)
        )


def _batches(windows: list[_Window], batch_tokens: int) -> Iterator[list[_Window]]:
    """Groups of windows with about as many tokens as a batch has."""
    batch: list[_Window] = []
    size = 0
    for window in windows:
        if batch and size + len(window[0]) > batch_tokens:
            yield batch
            batch, size = [], 0
        batch.append(window)
        size += len(window[0])
    if batch:
        yield batch

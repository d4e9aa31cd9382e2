# SPDX-License-Identifier: MIT
"""Tokenized documents, cut to the context length and packed into ragged batches that fill their token budget."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from miaobi.shuffle import permutation
from miaobi.tokenizer import JiebaTokenizer

__all__ = ["IGNORED_TARGET", "Batch", "Batches", "TokenData"]

IGNORED_TARGET = -100  # a target that is not scored


class Batch(NamedTuple):
    """A ragged batch: sequence s is `ids[offsets[s]:offsets[s + 1]]`; `targets` is each id's next token.

    `scored` is the number of targets that count, those that are not -100.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.int32]
    offsets: NDArray[np.int64]
    scored: int

    def split(self, parts: int) -> Iterator[Batch]:
        """The same sequences in at most `parts` batches of about equal length, in order; no sequence is cut."""
        ends = np.searchsorted(self.offsets, np.arange(1, parts + 1) * self.offsets[-1] / parts)
        first = 0
        for last in np.unique(ends).tolist():
            if last > first:
                tokens = slice(self.offsets[first], self.offsets[last])
                yield _batch(self.ids[tokens], self.targets[tokens], self.offsets[first : last + 1] - tokens.start)
                first = last


def _batch(ids: NDArray[np.int32], targets: NDArray[np.int32], offsets: NDArray[np.int64]) -> Batch:
    return Batch(ids, targets, offsets, int(np.count_nonzero(targets != IGNORED_TARGET)))


@dataclass(frozen=True, eq=False)
class TokenData:
    """Documents as ids, one after the other: document d is `tokens[starts[d]:starts[d + 1]]`.

    Each is `[bos] + text + [eos]`. `characters` are the lengths of the texts, the unit of bits per character.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    characters: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or self.starts.ndim != 1 or not len(self.starts):
            raise ValueError("[batches] expected one-dimensional tokens and starts")
        if len(self.characters) != len(self):
            raise ValueError(f"[batches] expected characters of {len(self)} documents, got {len(self.characters)}")
        if self.starts[0] != 0 or self.starts[-1] != len(self.tokens) or np.any(np.diff(self.starts) < 2):
            raise ValueError(
                "[batches] expected starts from 0 to the number of tokens, with two tokens or more in each document"
            )

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], tokenizer: JiebaTokenizer, progress: Callable[[int], None] | None = None
    ) -> TokenData:
        """Encodes `texts`; `progress` is called with the characters encoded so far."""
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        chunks: list[NDArray[np.int32]] = []
        characters: list[int] = []
        done = 0
        for text in texts:
            chunks.append(np.array([bos, *tokenizer.encode(text), eos], np.int32))
            characters.append(len(text))
            done += len(text)
            if progress is not None:
                progress(done)
        return cls.from_ids(chunks, characters)

    @classmethod
    def from_ids(cls, documents: Sequence[ArrayLike], characters: Sequence[int]) -> TokenData:
        """Documents that are tokens already, with bos and eos, and the length of each one's text."""
        chunks = [np.asarray(document, np.int32) for document in documents]
        starts = np.cumsum([0, *map(len, chunks)], dtype=np.int64)
        tokens = np.concatenate(chunks) if chunks else np.empty(0, np.int32)
        return cls(tokens, starts, np.asarray(characters, np.int64))

    def documents(self) -> Iterator[tuple[Sequence[int], int]]:
        """The ids of each document and the length of its text."""
        for start, end, characters in zip(self.starts, self.starts[1:], self.characters, strict=False):
            yield self.tokens[start:end].tolist(), int(characters)

    def spread(self, tokens: int) -> TokenData:
        """About `tokens` tokens at most: whole documents, evenly spread; all of them if they have no more."""
        if len(self.tokens) <= tokens:
            return self
        count = max(len(self) * tokens // len(self.tokens), 1)
        chosen = np.arange(count) * len(self) // count
        documents = [self.tokens[self.starts[d] : self.starts[d + 1]] for d in chosen]
        return TokenData.from_ids(documents, self.characters[chosen].tolist())

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.starts) - 1

    @property
    def predictions(self) -> int:
        """Tokens to predict: all but the first of each document."""
        return len(self.tokens) - len(self)

    @cached_property
    def hash(self) -> str:
        """A hash of all tokens and starts, to know the same data again."""
        digest = hashlib.sha256(self.starts.astype("<i8").tobytes())
        digest.update(self.tokens.astype("<i4").tobytes())
        return digest.hexdigest()


class Batches:
    """The batches of each epoch over some documents. Batch i of epoch e is the same whenever it is asked for.

    A document of more than `context` predictions is cut into consecutive pieces, so that every token but bos is
    predicted once an epoch. The pieces, in an order that depends on `seed` and epoch only, are laid end to end and cut
    into batches of equal size, `max_tokens` or a little less; a piece at such a cut goes into both. Nothing is padded
    or left out. `seed` None keeps the order of the documents.
    """

    def __init__(
        self,
        data: TokenData,
        context: int,
        max_tokens: int,
        *,
        seed: int | None = None,
        pad_token_id: int = JiebaTokenizer.pad_token_id,
    ) -> None:
        if context < 1 or max_tokens < 1:
            raise ValueError(f"[batches] expected a context and max_tokens of 1 or more, got {context}, {max_tokens}")
        if not data.predictions:
            raise ValueError("[batches] expected at least one document, got none")
        self._data = data
        self._seed = seed
        self._pad = pad_token_id
        inputs = np.diff(data.starts) - 1
        pieces = -(-inputs // context)
        nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # 0, 1, ... in each document
        self._starts = np.repeat(data.starts[:-1], pieces) + nth * context
        self._lengths = np.minimum(np.repeat(inputs, pieces) - nth * context, context)
        self._epoch = -1
        self._order = self._ends = np.empty(0, np.int64)
        batches = -(-data.predictions // max_tokens)
        self.batch_tokens = -(-data.predictions // batches)
        self.batches_per_epoch = -(-data.predictions // self.batch_tokens)

    def batch(self, epoch: int, i: int) -> Batch:
        """Batch `i` of `epoch`, both from 0; raises IndexError for an `i` past the epoch."""
        if not 0 <= i < self.batches_per_epoch:
            raise IndexError(f"[batches] expected a batch from 0 to {self.batches_per_epoch - 1}, got {i}")
        if epoch != self._epoch:
            n = len(self._starts)
            self._order = np.arange(n) if self._seed is None else permutation(n, self._seed, epoch)
            self._ends = np.cumsum(self._lengths[self._order])
            self._epoch = epoch
        low = i * self.batch_tokens
        high = min(low + self.batch_tokens, self._data.predictions)
        first = int(np.searchsorted(self._ends, low, side="right"))
        last = int(np.searchsorted(self._ends, high, side="left")) + 1
        pieces = self._order[first:last]
        lengths = self._lengths[pieces]
        starts = self._starts[pieces]
        into_first = low - (int(self._ends[first]) - int(lengths[0]))  # what the batch before took of this piece
        starts[0] += into_first
        lengths[0] -= into_first
        lengths[-1] -= int(self._ends[last - 1]) - high
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        targets = self._data.tokens[at + 1]
        targets[targets == self._pad] = IGNORED_TARGET
        return _batch(self._data.tokens[at], targets, offsets)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from batch `start` on."""
        for i in range(start, self.batches_per_epoch):
            yield self.batch(epoch, i)

# SPDX-License-Identifier: MIT
"""Tokenized documents, cut to the context length and packed into ragged batches that fill their token budget."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from miaobi.chat import ChatTemplate
from miaobi.corpus import Document
from miaobi.scoring import TokenDocument
from miaobi.shuffle import permutation
from miaobi.tokenizer import JiebaTokenizer

__all__ = ["IGNORED_TARGET", "Batch", "Batches", "MixedBatches", "TokenData", "encode_documents"]

IGNORED_TARGET = -100  # a target that is not scored
_HASH_TOKENS: Final = 1 << 20  # at a time: mapped tokens need not be in memory
_ENCODED_AT_ONCE: Final = 256  # documents


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


def encode_documents(
    documents: Iterable[Document], tokenizer: JiebaTokenizer, template: ChatTemplate | None = None
) -> Iterator[TokenDocument]:
    """The tokens of each document, `[bos] + text + [eos]`.

    Of a dialogue only the answers and what ends them are scored, and only their characters count.
    """
    template = template or ChatTemplate()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    waiting = iter(documents)
    while group := list(islice(waiting, _ENCODED_AT_ONCE)):
        segments = [None if isinstance(document, str) else template.segments(document) for document in group]
        parts = [
            [document] if isinstance(document, str) else [segment.text for segment in found or ()]
            for document, found in zip(group, segments, strict=True)
        ]
        all_ids, starts = tokenizer.encode_arrays(chain.from_iterable(parts))
        done = 0  # parts
        for texts, found in zip(parts, segments, strict=True):
            ends = starts[done : done + len(texts) + 1]
            done += len(texts)
            ids = np.concatenate([[bos], all_ids[ends[0] : ends[-1]], [eos]]).astype(np.int32)
            if found is None:
                yield TokenDocument(ids, len(texts[0]))
                continue
            learned = [segment.learned for segment in found]
            flags = np.repeat(learned, np.diff(ends))
            scored = np.concatenate([[False], flags, learned[-1:]]).astype(np.bool_)
            yield TokenDocument(ids, sum(len(segment.text) for segment in found if segment.learned), scored)


@dataclass(frozen=True, eq=False)
class TokenData:
    """Documents as ids, one after the other: document d is `tokens[starts[d]:starts[d + 1]]`.

    Each is `[bos] + text + [eos]`. `characters` are the lengths of the texts, the unit of bits per character. `scored`,
    if given, says of each token whether it is learnt; None learns all. Tokens are of any integer type; the arrays may
    be mapped files.
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    characters: NDArray[Any]
    scored: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or self.starts.ndim != 1 or not len(self.starts):
            raise ValueError("[batches] expected one-dimensional tokens and starts")
        if len(self.characters) != len(self):
            raise ValueError(f"[batches] expected characters of {len(self)} documents, got {len(self.characters)}")
        if self.starts[0] != 0 or self.starts[-1] != len(self.tokens) or np.any(np.diff(self.starts) < 2):
            raise ValueError(
                "[batches] expected starts from 0 to the number of tokens, with two tokens or more in each document"
            )
        if self.scored is not None and self.scored.shape != self.tokens.shape:
            raise ValueError(f"[batches] expected {len(self.tokens)} flags of tokens, got {self.scored.shape}")

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[Document],
        tokenizer: JiebaTokenizer,
        progress: Callable[[int], None] | None = None,
        template: ChatTemplate | None = None,
    ) -> TokenData:
        """Encodes `texts`, or the messages of dialogues; `progress` is called with the characters encoded so far."""
        documents: list[TokenDocument] = []
        done = 0
        for document in encode_documents(texts, tokenizer, template):
            documents.append(document)
            done += document.characters
            if progress is not None:
                progress(done)
        return cls._join(documents)

    @classmethod
    def from_ids(cls, documents: Sequence[ArrayLike], characters: Sequence[int]) -> TokenData:
        """Documents that are tokens already, with bos and eos, and the length of each one's text."""
        if len(characters) != len(documents):
            raise ValueError(f"[batches] expected characters of {len(documents)} documents, got {len(characters)}")
        return cls._join(
            [TokenDocument(np.asarray(ids, np.int32), n) for ids, n in zip(documents, characters, strict=True)]
        )

    @classmethod
    def _join(cls, documents: Sequence[TokenDocument]) -> TokenData:
        starts = np.cumsum([0, *(len(document.ids) for document in documents)], dtype=np.int64)
        tokens = np.concatenate([np.empty(0, np.int32), *(document.ids for document in documents)], dtype=np.int32)
        scored = None
        if any(document.scored is not None for document in documents):
            scored = np.concatenate(
                [np.ones(len(d.ids), np.bool_) if d.scored is None else d.scored for d in documents]
            )
        return cls(tokens, starts, np.asarray([document.characters for document in documents], np.int64), scored)

    def documents(self) -> Iterator[TokenDocument]:
        """The ids of each document and the length of its text."""
        for d in range(len(self)):
            yield self._document(d)

    def _document(self, d: int) -> TokenDocument:
        place = slice(self.starts[d], self.starts[d + 1])
        scored = None if self.scored is None else self.scored[place]
        return TokenDocument(self.tokens[place].astype(np.int32), int(self.characters[d]), scored)

    def spread(self, tokens: int) -> TokenData:
        """About `tokens` tokens at most: whole documents, evenly spread; all of them if they have no more."""
        if len(self.tokens) <= tokens:
            return self
        count = max(len(self) * tokens // len(self.tokens), 1)
        return self._join([self._document(d) for d in (np.arange(count) * len(self) // count).tolist()])

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.starts) - 1

    @property
    def predictions(self) -> int:
        """Tokens to predict: all but the first of each document."""
        return len(self.tokens) - len(self)

    @cached_property
    def hash(self) -> str:
        """A hash of all tokens and starts, and of which are scored, to know the same data again."""
        digest = hashlib.sha256()
        for values, kind in ((self.starts, "<i8"), (self.tokens, "<i4"), (self.scored, "u1")):
            for i in range(0, 0 if values is None else len(values), _HASH_TOKENS):
                assert values is not None
                digest.update(values[i : i + _HASH_TOKENS].astype(kind).tobytes())
        return digest.hexdigest()

    @property
    def learned(self) -> int:
        """Tokens that are learnt: those to predict, of dialogues those of the answers."""
        return self.predictions if self.scored is None else int(np.count_nonzero(self.scored))


class Batches:
    """The batches of each epoch over some documents. Batch i of epoch e is the same whenever it is asked for.

    A document of more than `context` predictions is cut into consecutive pieces, so that every token but bos is
    predicted once an epoch. The pieces, in an order that depends on `seed` and epoch only, are laid end to end and cut
    into batches of equal size, `max_tokens` or a little less; a piece at such a cut goes into both. Nothing is padded
    or left out. `seed` None keeps the order of the documents.

    Where only some tokens are scored, the part of a piece that begins a batch brings the tokens before it along, not
    scored again: an answer is never learnt without its question. A batch may then have nothing to score.
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
        if not data.learned:
            raise ValueError("[batches] expected something to learn, got dialogues without an answer")
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
        lengths[-1] -= int(self._ends[last - 1]) - high
        scored = self._data.scored
        if scored is None:
            starts[0] += into_first
            lengths[0] -= into_first
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        targets = self._data.tokens[at + 1].astype(np.int32)
        targets[targets == self._pad] = IGNORED_TARGET
        if scored is not None:
            targets[~scored[at + 1]] = IGNORED_TARGET
            targets[:into_first] = IGNORED_TARGET
        return _batch(self._data.tokens[at].astype(np.int32), targets, offsets)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from batch `start` on."""
        for i in range(start, self.batches_per_epoch):
            yield self.batch(epoch, i)


class MixedBatches:
    """Batches with a share of other text in each: `batch_tokens * ratio` of its predictions are from `other`.

    An epoch is one of the main text; the other one goes on from batch to batch, through epochs of its own.
    """

    def __init__(
        self, data: TokenData, other: TokenData, ratio: float, context: int, max_tokens: int, *, seed: int | None = None
    ) -> None:
        if not 0 < ratio < 1:
            raise ValueError(f"[batches] expected a ratio above 0 and under 1, got {ratio}")
        mixed = min(max(round(ratio * max_tokens), 1), max_tokens - 1)
        if not mixed:
            raise ValueError("[batches] expected batches of 2 tokens or more to mix")
        self._main = Batches(data, context, max_tokens - mixed, seed=seed)
        self._other = Batches(other, context, mixed, seed=seed)
        self.batches_per_epoch = self._main.batches_per_epoch
        self.batch_tokens = self._main.batch_tokens + self._other.batch_tokens

    def batch(self, epoch: int, i: int) -> Batch:
        """Batch `i` of `epoch`, both from 0; raises IndexError for an `i` past the epoch."""
        main = self._main.batch(epoch, i)
        other = self._other.batch(*divmod(epoch * self.batches_per_epoch + i, self._other.batches_per_epoch))
        return _batch(
            np.concatenate([main.ids, other.ids]),
            np.concatenate([main.targets, other.targets]),
            np.concatenate([main.offsets, other.offsets[1:] + main.offsets[-1]]),
        )

# SPDX-License-Identifier: MIT
"""What a model sees of a growing text, with a KV cache or without, and the text that its tokens become."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from miaobi._core import KVCache
    from miaobi.model import GPT

__all__ = ["Decoder", "StopFilter", "advance", "kept_tokens"]


def kept_tokens(limit: int) -> int:
    """How many of its most recent tokens a context of `limit` tokens keeps when it is full: three quarters.

    Learned positions tie a cached key to its place, so what is kept has to be encoded again from position 0. That is
    3 tokens of prefill for each token written past the limit, all of them in one batch every limit / 4 tokens.
    """
    return min(limit * 3 // 4, limit - 1)


class Decoder:
    """The tokens that the model sees of one text, at most `limit`, and their keys and values if there is a cache.

    `advance` appends to it. It is a window on the text: when it is full its oldest quarter is forgotten.
    """

    def __init__(self, model: GPT, limit: int, cache: KVCache | None) -> None:
        self.model = model
        self.limit = limit
        self.cache = cache
        self.sequence = -1 if cache is None else cache.add_sequence()
        self._tokens: NDArray[np.int32] = np.empty(limit, np.int32)
        self._length = 0

    @property
    def tokens(self) -> NDArray[np.int32]:
        """A view of the tokens that the model sees, oldest first; valid until the next `advance`."""
        return self._tokens[: self._length]

    def fork(self) -> Decoder:
        """Another decoder that has seen the same; the cache shares what they have in common."""
        other = Decoder.__new__(Decoder)
        other.model, other.limit, other.cache = self.model, self.limit, self.cache
        other.sequence = -1 if self.cache is None else self.cache.fork(self.sequence)
        other._tokens = self._tokens.copy()
        other._length = self._length
        return other

    def free(self) -> None:
        """Gives the cache's blocks back; the decoder is of no use afterwards."""
        if self.cache is not None and self.sequence >= 0:
            self.cache.free_sequence(self.sequence)
            self.sequence = -1

    def rewind(self, tokens: Sequence[int]) -> NDArray[np.int32]:
        """Forgets what is not the beginning of `tokens`, and returns the rest of them, at least one, for `advance`.

        Of more than `limit` tokens the most recent part counts, as if the context had become full.
        """
        wanted = np.asarray(tokens, np.int32)
        if len(wanted) > self.limit:
            wanted = wanted[-max(kept_tokens(self.limit), 1) :]
        most = min(self._length, len(wanted) - 1)
        different = np.flatnonzero(self._tokens[:most] != wanted[:most])
        self._truncate(int(different[0]) if len(different) else most)
        return wanted[self._length :]

    def _truncate(self, length: int) -> None:
        self._length = length
        if self.cache is not None:
            self.cache.truncate(self.sequence, length)

    def _append(self, new: NDArray[np.int32]) -> NDArray[np.int32]:
        """Takes in tokens and returns those that the model has to encode for it: `new`, or all that are kept."""
        begin = self._length
        if begin + len(new) > self.limit:  # `rewind` leaves no more than fits, so it is one token that does not
            kept = kept_tokens(self.limit)
            self._tokens[:kept] = self._tokens[begin - kept : begin].copy()
            self._truncate(0)
            self._length = kept
            begin = 0
        end = self._length + len(new)
        self._tokens[self._length : end] = new
        self._length = end
        return self._tokens[begin:end]


def advance(decoders: Sequence[Decoder], new: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
    """Appends one or more `new` tokens to each decoder and returns the logits (S, V) of what follows each.

    All decoders have the same model, and the same cache or none; without one everything is computed again.
    """
    first = decoders[0]
    parts = [decoder._append(ids) for decoder, ids in zip(decoders, new, strict=True)]
    if first.cache is None:
        parts = [decoder.tokens for decoder in decoders]
    ids = parts[0] if len(parts) == 1 else np.concatenate(parts)
    offsets = np.asarray([0, *accumulate(map(len, parts))], np.int64)
    logits: NDArray[np.float32]
    if first.cache is None:
        logits = first.model.forward(ids, offsets)[offsets[1:] - 1]
    else:
        logits = first.model.forward_cached(first.cache, [decoder.sequence for decoder in decoders], ids, offsets)
    return logits


class StopFilter:
    """Cuts a text that comes in pieces before the stop string that is complete first, whatever the pieces are.

    A piece that may be the beginning of a stop string is held back until it is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """What can be shown now that `piece` has come."""
        if not self._stops:
            return piece
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was held back and is no stop string after all."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, but is not complete."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

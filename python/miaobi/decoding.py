# SPDX-License-Identifier: MIT
"""What a model sees of a growing text, with a KV cache or without: the only place where texts meet the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from miaobi._core import KVCache, Sampler
    from miaobi.model import GPT

__all__ = ["Batch", "Cancelled", "Decoder", "advance", "all_logits", "kept_tokens"]

# Rows of one step: enough to keep the matrix products busy, few enough to stop within a fraction of a second.
_STEP_ROWS: Final = 128


class Cancelled(Exception):
    """What a check raises where the text is to end: no error, somebody asked for it."""


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

    def shared(self, tokens: Sequence[int]) -> int:
        """How many tokens `rewind` would not have to encode again."""
        wanted = self._window(tokens)
        most = min(self._length, len(wanted) - 1)
        different = np.flatnonzero(self._tokens[:most] != wanted[:most])
        return int(different[0]) if len(different) else most

    def rewind(self, tokens: Sequence[int]) -> NDArray[np.int32]:
        """Forgets what is not the beginning of `tokens`, and returns the rest of them, at least one, for `advance`.

        Of more than `limit` tokens the most recent part counts, as if the context had become full.
        """
        self._truncate(self.shared(tokens))
        return self._window(tokens)[self._length :]

    def _window(self, tokens: Sequence[int]) -> NDArray[np.int32]:
        wanted = np.asarray(tokens, np.int32)
        return wanted if len(wanted) <= self.limit else wanted[-max(kept_tokens(self.limit), 1) :]

    def _truncate(self, length: int) -> None:
        self._length = length
        if self.cache is not None:
            self.cache.truncate(self.sequence, length)

    def _append(self, new: NDArray[np.int32]) -> NDArray[np.int32]:
        """Takes in tokens and returns those that the model has to encode for it: `new`, or all that are kept."""
        begin = self._length
        if begin + len(new) > self.limit:
            kept = max(min(kept_tokens(self.limit), self.limit - len(new)), 0)
            self._tokens[:kept] = self._tokens[begin - kept : begin].copy()
            self._truncate(0)
            self._length = kept
            begin = 0
        end = self._length + len(new)
        self._tokens[self._length : end] = new
        self._length = end
        return self._tokens[begin:end]

    def _settle(self) -> None:
        """Forgets what the cache does not have: after a step that was broken off."""
        if self.cache is not None:
            self._length = min(self._length, self.cache.length(self.sequence))


def _go_on() -> None:
    """The check that never stops."""


def advance(
    decoders: Sequence[Decoder], new: Sequence[NDArray[np.int32]], check: Callable[[], None] = _go_on
) -> NDArray[np.float32]:
    """Appends one or more `new` tokens, at most `limit`, to each decoder; the logits (S, V) of what follows each.

    All decoders have the same model, and the same cache or none; without one everything is computed again. A long
    text is encoded in steps, and `check` is called before each: what it raises leaves all decoders usable.
    """
    parts = [decoder._append(ids) for decoder, ids in zip(decoders, new, strict=True)]
    try:
        return _logits(decoders, parts, check)
    except BaseException:
        for decoder in decoders:
            decoder._settle()
        raise


class Batch:
    """Texts that grow by one token each, time and again, with the samplers that choose it: one call of the engine.

    Nothing else may happen to the decoders meanwhile.
    """

    def __init__(self, decoders: Sequence[Decoder], samplers: Sequence[Sampler]) -> None:
        self._decoders = decoders
        self._samplers = samplers
        self._model, self._cache = decoders[0].model, decoders[0].cache
        self._sequences = [decoder.sequence for decoder in decoders]
        self._room = min(decoder.limit - decoder._length for decoder in decoders)

    def write_on(
        self, tokens: Sequence[int], banned: Sequence[NDArray[np.int32]], check: Callable[[], None]
    ) -> list[int] | None:
        """`advance` by one token each, and what the samplers choose then.

        None, and nothing is done, where that is not one step: without a cache, or where a text is full.
        """
        if self._cache is None or self._room == 0:
            return None
        check()
        self._room -= 1
        for decoder, token in zip(self._decoders, tokens, strict=True):
            decoder._tokens[decoder._length] = token
            decoder._length += 1
        try:
            return self._model.sample_cached(self._cache, self._sequences, tokens, self._samplers, banned)
        except BaseException:
            for decoder in self._decoders:
                decoder._settle()
            raise


def all_logits(decoder: Decoder, new: NDArray[np.int32]) -> NDArray[np.float32]:
    """Appends any number of tokens and gives the logits (n, V) of what follows each of them.

    The same, to rounding, however the tokens are cut into calls, and with a cache or without.
    """
    rows = []
    while len(new):
        room = decoder.limit - len(decoder.tokens) or 1  # one token more makes room
        part, new = new[:room], new[room:]
        last = advance([decoder], [part])
        if len(part) > 1:  # the cache gives the last row only; the others come from one pass over all tokens
            ids, offsets = _ragged([decoder.tokens])
            rows.append(decoder.model.forward(ids, offsets)[-len(part) : -1])
        rows.append(last)
    return np.concatenate(rows)


def _logits(
    decoders: Sequence[Decoder], parts: Sequence[NDArray[np.int32]], check: Callable[[], None]
) -> NDArray[np.float32]:
    """The logits after the tokens that each decoder has taken in, of which the model has not seen `parts`."""
    model, cache = decoders[0].model, decoders[0].cache
    check()
    if cache is None:
        return model.forward_last(*_ragged([decoder.tokens for decoder in decoders]))
    if sum(map(len, parts)) <= _STEP_ROWS:
        return model.forward_cached(cache, [decoder.sequence for decoder in decoders], *_ragged(parts))
    logits = np.empty((len(decoders), model.config.vocab_size), np.float32)
    waiting = list(enumerate(parts))
    while waiting:
        check()
        room, step = _STEP_ROWS, []
        while waiting and room > 0:
            number, part = waiting.pop(0)
            step.append((number, part[:room]))
            if len(part) > room:
                waiting.insert(0, (number, part[room:]))
            room -= len(part)
        numbers = [number for number, _ in step]
        sequences = [decoders[number].sequence for number in numbers]
        # Of a part that goes on in the next step, the row is overwritten there.
        logits[numbers] = model.forward_cached(cache, sequences, *_ragged([part for _, part in step]))
    return logits


def _ragged(parts: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Flat ids and their offsets."""
    if len(parts) == 1:
        return parts[0], np.asarray([0, len(parts[0])], np.int64)
    return np.concatenate(parts), np.asarray([0, *accumulate(map(len, parts))], np.int64)

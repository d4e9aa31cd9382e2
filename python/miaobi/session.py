# SPDX-License-Identifier: MIT
"""Where a model writes: a cache and a cancel flag of its own, over weights that all sessions share; its streams."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from miaobi.beam import Found, beam_search
from miaobi.decoding import Batch, Cancelled, Decoder, advance
from miaobi.generation import FinishReason
from miaobi.writing import Style, Writer, choose

if TYPE_CHECKING:
    from miaobi.model import GPT

__all__ = ["Outcome", "Session", "TextStream", "rows_for"]

_MAX_ROWS: Final = 32  # texts that are written at once; more give no more tokens a second
_MAX_BYTES: Final = 2**29  # of cache for them
_BLOCK: Final = 32  # tokens by which the cache hands out room
_FORK_ROOM: Final = 2 * _BLOCK  # forks may hold a block that is not full and its copy


def rows_for(model: GPT, texts: int, row_tokens: int) -> int:
    """How many of some texts are written at once; where one ends, the next begins."""
    token_bytes = 2 * 4 * model.config.n_layer * model.config.n_embd
    return max(min(texts, _MAX_ROWS, _MAX_BYTES // (token_bytes * row_tokens)), 1)


@dataclass
class _Row:
    """A text that is being written."""

    number: int
    decoder: Decoder
    writer: Writer
    new: NDArray[np.int32]  # what the model has to see before anything is chosen
    copies: list[tuple[int, Writer]] = field(default_factory=list)  # that go on from the same prompt

    def with_copies(self) -> list[_Row]:
        """This row, and one for each text that goes on from its prompt, now that the model has seen that."""
        copies, self.copies = self.copies, []
        return [self, *[_Row(number, self.decoder.fork(), writer, self.new) for number, writer in copies]]


def _batch_of(rows: Sequence[_Row]) -> Batch | None:
    """The rows as a batch, if there are any and nothing in Python looks at their logits."""
    if not rows or any(row.writer.needs_logits or row.writer.token < 0 for row in rows):
        return None
    return Batch([row.decoder for row in rows], [row.writer.sampler for row in rows])


class Session:
    """Texts that one thread writes, up to `rows` at a time, in a KV cache that it owns, or without one.

    Any number of sessions may write with one model at the same time. `cancel` may be called from any thread.
    """

    def __init__(
        self,
        model: GPT,
        limit: int,
        cached: bool,
        cache_dtype: str = "float32",
        rows: int = 1,
        row_tokens: int | None = None,
    ) -> None:
        """`limit`: the most tokens that the model sees; `row_tokens`: room for each text, if that is less."""
        self.limit: Final = limit
        self.cached: Final = cached
        self.rows: Final = rows
        self._model = model
        size = limit if row_tokens is None else min(limit, row_tokens)
        if rows > 1:
            size = -(-size // _BLOCK) * _BLOCK + _FORK_ROOM
        self._cache = model.new_cache(size * rows, cache_dtype) if cached else None
        self._kept: Decoder | None = None  # what the last text of a session with one row left in the cache
        self._cancelled = threading.Event()
        self._closed = threading.Event()

    def cancel(self) -> None:
        """Ends what is being written, within a token or a step of the prompt."""
        self._cancelled.set()

    def close(self) -> None:
        """Makes the next step raise ValueError."""
        self._closed.set()

    def check(self) -> None:
        """Raises Cancelled after `cancel`, and ValueError after `close`."""
        if self._closed.is_set():
            raise ValueError("[llm] this LLM is closed; make another one with LLM.from_pretrained(dir)")
        if self._cancelled.is_set():
            raise Cancelled

    def start(self, cancelled: threading.Event) -> None:
        """Begins a new call, with a cancel flag of its own."""
        self._cancelled = cancelled

    def shared(self, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt are in the cache already."""
        return 0 if self._kept is None else self._kept.shared(prompt)

    def cache_info(self) -> dict[str, int]:
        """Capacity and use in tokens, and bytes."""
        return {"capacity": 0, "used": 0, "bytes": 0} if self._cache is None else dict(self._cache.info())

    def write(self, writers: Sequence[Writer]) -> Generator[tuple[int, str], None, None]:
        """Writes all texts; yields (number of the text, what it shows next) as they come.

        Writers in a row that have one prompt, the same object, share its keys and values. Each text is what it would
        be alone. When cancelled, or when the iterator is closed, the texts end where they are.
        """
        waiting = deque(enumerate(writers))
        active: list[_Row] = []
        batch: Batch | None = None  # of the active rows, where they need no more than samplers
        try:
            while waiting or active:
                if waiting and self._admit(waiting, active):
                    batch = None
                tokens = None if batch is None else self._write_on(active, batch)
                logits: Sequence[NDArray[np.float32] | None] = [None] * len(active)
                if tokens is None:
                    active, tokens, logits = self._choose(active)
                    batch = None
                for row, token, after in zip(active, tokens, logits, strict=True):
                    writer = row.writer
                    piece = writer.take(token, after)
                    if writer.finish_reason is not None:
                        batch = None
                        self._leave(row.decoder)
                    if piece:
                        yield row.number, piece
                if batch is None:
                    active = [row for row in active if row.writer.finish_reason is None]
                    batch = _batch_of(active)
        except Cancelled:
            for number, writer in enumerate(writers):
                if writer.finish_reason is None and (piece := writer.finish("cancelled")):
                    yield number, piece
        finally:
            for row in active:
                if row.writer.finish_reason in (None, "cancelled"):  # the others have left
                    self._leave(row.decoder)
            for writer in writers:
                writer.finish_reason = writer.finish_reason or "cancelled"

    def _write_on(self, rows: list[_Row], batch: Batch) -> list[int] | None:
        """The next token of each row by one call of the engine; None where that cannot be."""
        return batch.write_on([row.writer.token for row in rows], [row.writer.banned() for row in rows], self.check)

    def _choose(self, rows: list[_Row]) -> tuple[list[_Row], list[int], list[NDArray[np.float32]]]:
        """The rows, now with the copies of those that had only a prompt, and the next token of each with its logits."""
        new = [row.new if row.writer.token < 0 else np.asarray([row.writer.token], np.int32) for row in rows]
        logits = advance([row.decoder for row in rows], new, self.check)
        grown = [(row, after) for begun, after in zip(rows, logits, strict=True) for row in begun.with_copies()]
        tokens = choose([row.writer.choice(after) for row, after in grown])
        return [row for row, _ in grown], tokens, [after for _, after in grown]

    def _admit(self, waiting: deque[tuple[int, Writer]], active: list[_Row]) -> bool:
        """Begins as many texts as there is room for; whether there are any."""
        room = self.rows - len(active)
        begun = room > 0
        while waiting and room > 0:
            number, writer = waiting.popleft()
            room -= 1
            decoder = self._decoder()
            row = _Row(number, decoder, writer, decoder.rewind(writer.prompt))
            while waiting and room > 0 and waiting[0][1].prompt is writer.prompt:
                row.copies.append(waiting.popleft())
                room -= 1
            active.append(row)
        return begun

    def _decoder(self) -> Decoder:
        kept, self._kept = self._kept, None
        return kept or Decoder(self._model, self.limit, self._cache)

    def _leave(self, decoder: Decoder) -> None:
        """Keeps what a text left for the next one, or makes room."""
        if self.rows == 1:
            self._kept = decoder
        else:
            decoder.free()

    def search(self, style: Style, prompt: Sequence[int]) -> list[Found]:
        """The best continuations that beam search finds, best first. When cancelled, those that it has so far."""
        decoder = self._decoder()
        return beam_search(decoder, decoder.rewind(prompt), style, prompt, self.check)


class Outcome(Protocol):
    """How a text ended, and its seed."""

    finish_reason: FinishReason | None

    @property
    def seed(self) -> int:
        """The seed that gives the text again."""


class TextStream(Iterator[str]):
    """A text in pieces, as it is written.

    `cancel` may be called from any thread; so may `close`, which the end of a with-statement calls.
    """

    def __init__(self, pieces: Generator[str, None, None], outcome: Outcome, cancelled: threading.Event) -> None:
        self._pieces = pieces
        self._outcome = outcome
        self._cancelled = cancelled

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text ended, as in `GenerationResult`; None while it goes on."""
        return self._outcome.finish_reason

    @property
    def seed(self) -> int:
        """The seed that gives the same text again."""
        return self._outcome.seed

    def cancel(self) -> None:
        """Ends the text within a token, or within a step of the prompt."""
        self._cancelled.set()

    def close(self) -> None:
        """Ends the text and gives its memory back; a second call does nothing."""
        self.cancel()
        with contextlib.suppress(ValueError):  # another thread is in it, and will find it cancelled
            self._pieces.close()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

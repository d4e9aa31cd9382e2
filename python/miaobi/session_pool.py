# SPDX-License-Identifier: MIT
"""The sessions of one model: those that write now, and those whose caches may serve the next text."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from numpy.typing import NDArray

from miaobi.decoding import Decoder, all_logits
from miaobi.session import Session, rows_for

if TYPE_CHECKING:
    from miaobi.model import GPT

__all__ = ["SessionPool", "Window"]

Window = int | Literal["auto"] | None

_MOST_IDLE: Final = 4  # kept for the dialogues that may go on
_SMALLEST_WINDOW: Final = 64  # of "auto", which doubles it
_SAMPLED_WEIGHTS: Final = 4096  # few enough to read in microseconds; any step of an optimizer changes some of them


class SessionPool:
    """Gives each call a session of its own. All methods may be called from any thread; after `close` they raise."""

    def __init__(self, model: GPT, dtype: str = "float32") -> None:
        """`dtype`: how the weights are read, "float32" or "bf16". ValueError if another pool of the model differs."""
        _share(model, self, dtype)
        self._model: GPT | None = model
        self._dtype = dtype
        self._packed_weights = b""  # a sample of those that the model has packed
        # Guards what follows. Reentrant: the collector may close an abandoned stream while this thread has it.
        self._lock = threading.RLock()
        self._cached = True
        self._window: Window = None
        self._cache_dtype = "float32"
        self._auto_limit = _SMALLEST_WINDOW
        self._idle: list[Session] = []  # with what finished texts left in their caches, the latest last
        self._idle_weights = b""
        self._busy: list[Session] = []
        self._forward: Decoder | None = None  # of `forward`

    @property
    def dtype(self) -> str:
        """What the weights are read as."""
        return self._dtype

    @property
    def model(self) -> GPT:
        """The model. Raises ValueError after `close`."""
        if self._model is None:
            raise ValueError("[llm] this LLM is closed; make another one with LLM.from_pretrained(dir)")
        return self._model

    @property
    def context(self) -> int:
        """The most tokens that the model sees at once."""
        positions = self.model.config.n_positions
        return min(positions, self._window) if isinstance(self._window, int) else positions

    def configure(self, cached: bool, window: Window, cache_dtype: str) -> None:
        """Settings for the calls to come; everything kept is forgotten."""
        with self._lock:
            self.clear()
            self._cached, self._window, self._cache_dtype = cached, window, cache_dtype

    @property
    def window(self) -> Window:
        """The window of the calls to come."""
        return self._window

    def clear(self) -> None:
        """Forgets what is kept between calls."""
        with self._lock:
            self.model  # noqa: B018 - raises after `close`
            self._idle, self._forward, self._auto_limit = [], None, _SMALLEST_WINDOW
            self._packed_weights = b""

    def info(self) -> dict[str, int]:
        """Capacity and use in tokens, and bytes, of all caches."""
        with self._lock:
            self.model  # noqa: B018
            infos = [session.cache_info() for session in (*self._idle, *self._busy)]
            if self._forward is not None and self._forward.cache is not None:
                infos.append(dict(self._forward.cache.info()))
        return {name: sum(info[name] for info in infos) for name in ("capacity", "used", "bytes")}

    def cancel(self) -> None:
        """Cancels all that is being written."""
        with self._lock:
            for session in self._busy:
                session.cancel()

    def close(self) -> None:
        """Forgets the model; what is being written raises ValueError at its next token."""
        with self._lock:
            if self._model is not None:
                _POOLS[self._model].discard(self)
            self._model = self._forward = None
            self._idle = []
            for session in self._busy:
                session.close()

    def forward(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """The logits (n, V) of ids that go on from those of earlier calls."""
        with self._lock:
            self._pack()
            if self._forward is None:
                cache = self.model.new_cache(self.context, self._cache_dtype) if self._cached else None
                self._forward = Decoder(self.model, self.context, cache)
            return all_logits(self._forward, ids)

    @contextlib.contextmanager
    def session(
        self,
        cancelled: threading.Event,
        prompt: Sequence[int],
        tokens: int,
        texts: int = 1,
        *,
        all_at_once: bool = False,
    ) -> Iterator[Session]:
        """A session for `texts` texts of at most so many tokens, for as long as the block lasts.

        For one text it is the one that knows most of the prompt. What it leaves is kept for the next call, unless an
        error ends the block.
        """
        session = self._take(prompt, tokens, texts, all_at_once)
        session.start(cancelled)
        usable = False
        try:
            yield session
            usable = True
        except GeneratorExit:  # raised at a yield, where the session is whole; elsewhere it may not be, and is dropped
            usable = True
            raise
        finally:
            self._give(session, usable)

    def _take(self, prompt: Sequence[int], tokens: int, texts: int, all_at_once: bool) -> Session:
        with self._lock:
            limit = self._limit(tokens)
            self._pack()
            if self._idle and self._idle_weights != self._packed_weights:
                self._idle = []
            self._idle = [session for session in self._idle if session.limit == limit]
            if texts > 1:
                row_tokens = min(tokens, limit)
                rows = texts if all_at_once else rows_for(self.model, texts, row_tokens)
                session = Session(self.model, limit, self._cached, self._cache_dtype, max(rows, 2), row_tokens)
            elif self._idle:
                session = max(self._idle, key=lambda idle: idle.shared(prompt))
                self._idle.remove(session)
            else:
                session = Session(self.model, limit, self._cached, self._cache_dtype)
            self._busy.append(session)
            return session

    def _give(self, session: Session, usable: bool) -> None:
        with self._lock:
            self._busy.remove(session)
            changed = session.cached != self._cached or self._model is None or session.limit != self._limit(0)
            if not usable or session.rows > 1 or changed:
                return
            weights = self._weights()
            if weights != self._idle_weights:
                self._idle, self._idle_weights = [], weights
            self._idle = [*self._idle[1 - _MOST_IDLE :], session]

    def _limit(self, tokens: int) -> int:
        """The most tokens that the model is to see of a text that has so many when it is complete."""
        if self._window != "auto":
            return self.context
        while self._auto_limit < min(tokens, self.context):
            self._auto_limit *= 2
        return min(self._auto_limit, self.context)

    def _pack(self) -> None:
        """Prepares the weights for decoding, unless that has been done since they changed."""
        weights = self._weights()
        if self.model.packed_as != self._dtype or weights != self._packed_weights:
            self.model.pack(self._dtype)
            self._packed_weights = weights

    def _weights(self) -> bytes:
        """A sample of the parameters, to see whether they changed."""
        arena = self.model.arena
        return arena[:: max(len(arena) // _SAMPLED_WEIGHTS, 1)].tobytes()


# A model has one packed copy of its weights: pools that wanted different ones would change each other's texts.
_POOLS: Final[WeakKeyDictionary[GPT, WeakSet[SessionPool]]] = WeakKeyDictionary()
_POOLS_LOCK: Final = threading.Lock()


def _share(model: GPT, pool: SessionPool, dtype: str) -> None:
    """Counts a pool among those of its model. Raises ValueError if one of them reads the weights as something else."""
    with _POOLS_LOCK:
        pools = _POOLS.setdefault(model, WeakSet())
        other = next((pool.dtype for pool in pools if pool.dtype != dtype), None)
        if other is not None:
            raise ValueError(
                f'[llm] expected dtype="{other}", as another LLM of this model has, got "{dtype}"; close that one, or '
                "load the model a second time with GPT.from_pretrained(dir)"
            )
        pools.add(pool)

# SPDX-License-Identifier: MIT
"""A least-recently-used cache from whole texts to token ids, with counts that stay exact under threads."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["CacheInfo", "LRUCache", "get_cache_hit_rate", "reset_cache_stats"]

# What an entry costs beside its key and value: slots and node of the OrderedDict (CPython 3.10-3.13, measured).
_ENTRY_OVERHEAD = 120
_DEFAULT_ENTRIES = 10_000
_DEFAULT_BYTES = 32 << 20
# A longer text hardly comes twice, and one of them would push out hundreds of sentences.
_DEFAULT_ENTRY_BYTES = 64 << 10


class CacheInfo(NamedTuple):
    """State of one cache: counts since the last reset, entries and bytes held now, and the limits."""

    hits: int
    misses: int
    entries: int
    max_entries: int
    bytes: int
    max_bytes: int


# One lock for all caches: it is held for a few dictionary operations only (never while a text is cut), and the
# process-wide counts then need no second one.
_lock = threading.Lock()
_total_hits = 0
_total_misses = 0
_caches: weakref.WeakSet[LRUCache] = weakref.WeakSet()


def _renew_lock() -> None:
    """A child forked while another thread held the lock would wait for ever: it starts with its own."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class LRUCache:
    """Keeps the token ids of the most recently used texts.

    Holds at most `max_entries` texts (0: none) and `max_bytes` bytes of keys and values; an entry of more than
    `max_entry_bytes` is not kept. Every `get` counts as one hit or one miss, whatever other threads do.
    """

    def __init__(
        self,
        max_entries: int = _DEFAULT_ENTRIES,
        max_bytes: int = _DEFAULT_BYTES,
        max_entry_bytes: int = _DEFAULT_ENTRY_BYTES,
    ) -> None:
        if min(max_entries, max_bytes, max_entry_bytes) < 0:
            raise ValueError(
                f"[cache] expected limits of 0 or more, got max_entries={max_entries}, max_bytes={max_bytes}, "
                f"max_entry_bytes={max_entry_bytes}; 0 entries switches the cache off"
            )
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_entry_bytes = min(max_entry_bytes, max_bytes)
        self._entries: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._bytes = 0
        self._hits = 0
        self._misses = 0
        with _lock:
            _caches.add(self)

    def get(self, text: str) -> tuple[int, ...] | None:
        """The ids kept for `text`, which becomes the most recently used, or None."""
        global _total_hits, _total_misses
        with _lock:
            ids = self._entries.get(text)
            if ids is None:
                self._misses += 1
                _total_misses += 1
            else:
                self._entries.move_to_end(text)
                self._hits += 1
                _total_hits += 1
            return ids

    def get_many(self, texts: list[str]) -> list[tuple[int, ...] | None] | None:
        """What `get` gives for each text, or None if that is None for all. Raises TypeError if a text is no str."""
        global _total_hits, _total_misses
        with _lock:
            known = [self._entries.get(text) for text in texts] if self._entries else []
            hits = len(known) - known.count(None)
            self._hits += hits
            self._misses += len(texts) - hits
            _total_hits += hits
            _total_misses += len(texts) - hits
            if not hits:
                return None
            for text, ids in zip(texts, known, strict=True):
                if ids is not None:
                    self._entries.move_to_end(text)
            return known

    def put_many(self, entries: Iterable[tuple[str, list[int]]]) -> None:
        """`put` for each text with its ids."""
        if self._max_entries:
            for text, ids in entries:
                self.put(text, tuple(ids))

    def put(self, text: str, ids: tuple[int, ...]) -> None:
        """Keeps `ids` for `text` as the most recently used, and drops the least recently used beyond the limits."""
        size = _entry_bytes(text, ids)
        if size > self._max_entry_bytes or not self._max_entries:
            return
        with _lock:
            old = self._entries.pop(text, None)
            if old is not None:
                self._bytes -= _entry_bytes(text, old)
            self._entries[text] = ids
            self._bytes += size
            self._shrink()

    def resize(self, max_entries: int) -> None:
        """Changes the limit, and drops the least recently used texts beyond it. Raises ValueError if it is negative."""
        if max_entries < 0:
            raise ValueError(f"[cache] expected a limit of 0 or more entries, got {max_entries}")
        with _lock:
            self._max_entries = max_entries
            self._shrink()

    def _shrink(self) -> None:
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._bytes -= _entry_bytes(*self._entries.popitem(last=False))

    def clear(self) -> None:
        """Drops all entries; the counts stay."""
        with _lock:
            self._entries.clear()
            self._bytes = 0

    def info(self) -> CacheInfo:
        """The counts, sizes and limits at one moment."""
        with _lock:
            return CacheInfo(
                self._hits, self._misses, len(self._entries), self._max_entries, self._bytes, self._max_bytes
            )


def _entry_bytes(text: str, ids: tuple[int, ...]) -> int:
    """Memory of one entry in bytes; the ints themselves belong to the vocabulary and are shared."""
    return sys.getsizeof(text) + sys.getsizeof(ids) + _ENTRY_OVERHEAD


def get_cache_hit_rate() -> tuple[int, int, float]:
    """(hits, misses, hits / calls) of all caches of the process since the last reset; the rate of no calls is 0."""
    with _lock:
        hits, misses = _total_hits, _total_misses
    return hits, misses, hits / max(hits + misses, 1)


def reset_cache_stats() -> None:
    """Sets the counts of every cache of the process to 0; the entries stay."""
    global _total_hits, _total_misses
    with _lock:
        _total_hits = _total_misses = 0
        for cache in _caches:
            cache._hits = cache._misses = 0

# SPDX-License-Identifier: MIT
"""A lock on the folder of a run, so that no two write into one. It goes with its process, however that ends."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Final

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["LOCK_FILE", "RunLock"]

LOCK_FILE: Final = "train.lock"
_held: dict[str, int] = {}  # folders that this process has locked, and how often


class RunLock:
    """With statement: within the block the folder belongs to this process, and is made if it is not there.

    A process may lock what it has locked already. A folder that stays empty is removed again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._key = os.path.realpath(folder)
        self._descriptor: int | None = None
        self._made: list[Path] = []

    def __enter__(self) -> RunLock:
        """Raises BlockingIOError if another process has it, and OSError if the folder cannot be written."""
        if not _held.get(self._key):
            self._made = [path for path in (self._folder, *self._folder.parents) if not path.exists()]
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._descriptor = _lock(self._folder / LOCK_FILE)
            except BaseException:
                self._remove_empty()
                raise
        _held[self._key] = _held.get(self._key, 0) + 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _held[self._key] -= 1
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):  # while it is locked: nobody else can have begun to use it
            (self._folder / LOCK_FILE).unlink()
        os.close(self._descriptor)
        self._descriptor = None
        self._remove_empty()

    def _remove_empty(self) -> None:
        for path in self._made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _lock(path: Path) -> int:
    """The descriptor of the lock file, which is locked as long as it is open."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if sys.platform == "win32":
                os.lseek(descriptor, _FAR, os.SEEK_SET)  # Windows forbids reading what is locked
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path))
        except OSError:
            owner = os.pread(descriptor, 20, 0).decode("ascii", "replace") if hasattr(os, "pread") else "?"
            os.close(descriptor)
            raise BlockingIOError(
                f"{path.parent}: another run (process {owner or '?'}) is writing into this folder; wait for it, stop "
                "it, or give another --out"
            ) from None
        if there:  # else its last owner removed it meanwhile, and the next one makes another
            try:
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
            except OSError as error:
                path.unlink(missing_ok=True)
                os.close(descriptor)
                raise OSError(error.errno, f"{error.strerror}; make room there, or give another --out", path) from None
            return descriptor
        os.close(descriptor)


_FAR: Final = 1 << 20

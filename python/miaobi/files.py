# SPDX-License-Identifier: MIT
"""Writing files and folders so that a reader sees the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["previous_of", "replacing", "require_space", "sync_folder", "write_atomic"]

_SPARE_BYTES: Final = 16 << 20  # for what else is written at the time: a tokenizer, a log


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to a temporary name beside `path`, syncs it to disk, and renames it to `path`.

    Raises OSError as the system reports it (read-only, full, no such folder); the temporary file is then gone
    and `path` is as it was.
    """
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(target.parent)  # the rename itself is durable only then


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new empty folder that takes the place of `folder` when the block ends, and vanishes if it fails."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    previous = previous_of(folder)
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        sync_folder(temporary)
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)  # a folder with files in it cannot be renamed over: until the next line
        temporary.rename(folder)  # is done, a reader takes previous_of(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.exists() and previous.exists():
            previous.rename(folder)
        for parent in made:
            with contextlib.suppress(OSError):  # it has something in it, or was never made
                parent.rmdir()
        raise
    shutil.rmtree(previous, ignore_errors=True)


def previous_of(folder: Path) -> Path:
    """Where the old content of `folder` is while `replacing` puts the new one in its place."""
    return folder.with_name(f"{folder.name}.previous")


def sync_folder(folder: Path) -> None:
    """Makes renames within `folder` durable."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_space(folder: Path, size: int, what: str) -> None:
    """Raises OSError if the disk of `folder` has no room for `size` bytes; the nearest folder that exists is asked."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    needed = size + _SPARE_BYTES
    if free < needed:
        raise OSError(f"{folder}: the disk is full: {what} {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free")

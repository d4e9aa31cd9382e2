# SPDX-License-Identifier: MIT
"""Writes of tensor files that fail: what was there stays as it was, and nothing else is left."""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miaobi import _core

FLOATS = np.random.default_rng(7).standard_normal((3, 5)).astype(np.float32)
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def read(path: Path) -> np.ndarray:
    with _core.SafetensorsFile(path) as file:
        return file.read("x")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    _core.write_safetensors(path, {"x": FLOATS})
    return path


def assert_untouched(saved: Path) -> None:
    assert os.listdir(saved.parent) == [saved.name]
    np.testing.assert_array_equal(read(saved), FLOATS)


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "reason"),
    [
        ({"x": FLOATS.astype(np.float64)}, {}, ValueError, "C-contiguous float32"),
        ({"x": FLOATS.T}, {}, ValueError, "C-contiguous float32"),
        ({"x": FLOATS.tolist()}, {}, ValueError, "C-contiguous float32"),
        ({"__metadata__": FLOATS}, {}, ValueError, "none called __metadata__"),
        ({"x": np.zeros((1,) * 33, np.float32)}, {}, ValueError, "at most 32 dimensions"),
        ({"x\ud800": FLOATS}, {}, ValueError, "surrogates"),
        ({1: FLOATS}, {}, TypeError, "expected str as tensor name"),
        ({"x": FLOATS}, {"k": 1}, TypeError, "expected str as metadata value"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_tensors(
    saved: Path, tensors: dict[str, Any], metadata: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        _core.write_safetensors(saved, tensors, metadata)
    assert_untouched(saved)


def test_missing_files_and_folders(saved: Path) -> None:
    missing = saved.parent / "没有" / "a"
    for action in (lambda: _core.SafetensorsFile(missing), lambda: _core.write_safetensors(missing, {})):
        with pytest.raises(FileNotFoundError, match=re.escape(str(missing))):
            action()
    assert_untouched(saved)


@posix_only
def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for action in (lambda: _core.SafetensorsFile(folder), lambda: _core.write_safetensors(folder, {"x": FLOATS})):
        with pytest.raises(IsADirectoryError):
            action()
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(folder) == []


@posix_only
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        _core.SafetensorsFile(tmp_path / "pipe")


@posix_only
def test_a_read_only_folder(saved: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    saved.parent.chmod(0o555)
    try:
        with pytest.raises(PermissionError):
            _core.write_safetensors(saved, {"x": FLOATS + 1})
    finally:
        saved.parent.chmod(0o755)
    assert_untouched(saved)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """A disk that is full after so many bytes of a file. Python ignores the signal, so writing fails with EFBIG."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@posix_only
def test_a_write_that_fails_halfway(saved: Path) -> None:
    with files_limited_to(100_000), pytest.raises(OSError, match=re.escape(str(saved))) as caught:
        _core.write_safetensors(saved, {"x": np.ones(10**6, np.float32)})
    assert caught.value.errno == errno.EFBIG
    assert_untouched(saved)


@posix_only
def test_a_full_disk_is_seen_before_writing(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    needed = shutil.disk_usage(saved).free + 2**32
    sparse = tmp_path_factory.mktemp("sparse") / "zeros"  # takes no space
    try:
        array = np.memmap(sparse, np.float32, "w+", shape=(needed // 4,))
    except OSError as error:
        pytest.skip(f"no sparse file of {needed} bytes here: {error}")
    try:
        # Were the check missing, the limit would keep this test from really filling the disk.
        with (
            files_limited_to(100_000),
            pytest.raises(OSError, match=r"needs \d+ bytes, the disk has \d+ avail") as caught,
        ):
            _core.write_safetensors(saved, {"x": array})
    finally:
        del array
        sparse.unlink()
    assert caught.value.errno == errno.ENOSPC
    assert_untouched(saved)


def test_many_threads_write_one_path(tmp_path: Path) -> None:
    path = tmp_path / "a"
    arrays = [np.full(5000, i, np.float32) for i in range(8)]
    threads = [threading.Thread(target=_core.write_safetensors, args=(path, {"x": array})) for array in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["a"]
    values = read(path)
    np.testing.assert_array_equal(values, arrays[int(values[0])])

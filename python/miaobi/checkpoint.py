# SPDX-License-Identifier: MIT
"""Saving and restoring a training run: a folder is replaced as a whole, so that there is always a complete one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from miaobi import _core
from miaobi.errors import FormatError
from miaobi.files import write_atomic
from miaobi.llm import LLM
from miaobi.model import GPT, AdamW
from miaobi.tokenizer import JiebaTokenizer

__all__ = [
    "TrainState",
    "copy_checkpoint",
    "find_checkpoint",
    "load_checkpoint",
    "load_state",
    "publish",
    "save_checkpoint",
]

_FORMAT: Final = "miaobi-training"
_VERSION: Final = 1
_STATE_FILE: Final = "trainer_state.json"
_OPTIMIZER_FILE: Final = "optimizer.safetensors"
_SPARE_BYTES: Final = 16 << 20  # for the tokenizer, the log, and what else is written at the time


@dataclass
class TrainState:
    """Where a run stands. With the weights and the moments it is all that the next step depends on."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # the next one of the epoch
    optimizer_step: int = 0
    tokens: int = 0
    elapsed: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None
    evaluation_due: bool = False
    train_loss_sum: float = 0.0  # since the last evaluation
    train_loss_tokens: int = 0
    train_hash: str = ""
    validation_hash: str = ""
    tokenizer_hash: str = ""
    config: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, model: GPT, tokenizer: JiebaTokenizer, optimizer: AdamW, state: TrainState) -> None:
    """Writes the run to `folder`, which holds the old content until the new one is complete and on disk.

    Raises OSError, with the old content in place and nothing else left, if it cannot be written.
    """
    _require_space(folder, 3 * model.arena.nbytes)
    with _replacing(folder) as temporary, LLM(model, tokenizer) as llm:
        llm.save_pretrained(temporary)
        moments = {"m": optimizer.m, "v": optimizer.v}
        _core.write_safetensors(str(temporary / _OPTIMIZER_FILE), moments, {"step": str(optimizer.step_count)})
        content = {"format": _FORMAT, "version": _VERSION, **asdict(state)}
        write_atomic(temporary / _STATE_FILE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def copy_checkpoint(source: Path, folder: Path) -> None:
    """Makes `folder` the same checkpoint as `source`, replaced as a whole; large files take no room of their own."""
    with _replacing(folder) as temporary:
        for path in source.iterdir():
            _link(path, temporary / path.name)


def publish(source: Path, folder: Path) -> None:
    """Puts the model of the checkpoint `source` into `folder`, file by file, the weights last."""
    names = [path.name for path in source.iterdir() if path.name not in (_STATE_FILE, _OPTIMIZER_FILE)]
    for name in sorted(names, key=lambda name: (name.endswith(".safetensors"), name)):
        target = folder / name
        if target.exists() and target.samefile(source / name):
            continue  # renaming a file to another name of itself would do nothing and leave both
        temporary = folder / f"{name}.tmp"
        temporary.unlink(missing_ok=True)
        try:
            _link(source / name, temporary)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(folder)


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint `folder` if it is complete; if its replacement was cut short, that which it was to replace."""
    for path in (folder, _previous(folder)):
        if (path / _STATE_FILE).is_file():
            return path
    return None


def load_state(folder: Path) -> TrainState:
    """The state in the checkpoint `folder`. Raises FormatError if it is damaged and FileNotFoundError if missing."""
    path = folder / _STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: there is no checkpoint here; give a folder such as OUT/checkpoints/last")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise FormatError(path, "expected the JSON of a training run") from None
    expected = {known.name: known.type for known in fields(TrainState)}
    if not isinstance(content, dict) or content.get("format") != _FORMAT or content.get("version") != _VERSION:
        raise FormatError(path, f'expected the format "{_FORMAT}", version {_VERSION}')
    if set(content) != {"format", "version", *expected}:
        raise FormatError(path, f"expected the fields {sorted(expected)}, got {sorted(content)[:20]}")
    for name, kind in expected.items():
        if not _has_type(content[name], str(kind)):
            raise FormatError(path, f'expected "{name}" to be of type {kind}, got {content[name]!r:.80}')
    return TrainState(**{name: content[name] for name in expected})


def load_checkpoint(folder: Path, model: GPT, tokenizer: JiebaTokenizer, optimizer: AdamW) -> TrainState:
    """Restores weights and moments from the checkpoint `folder` and returns where the run stood.

    Raises FormatError if it is damaged, FileNotFoundError if missing, and ValueError if it is of another model or
    tokenizer.
    """
    state = load_state(folder)
    if state.tokenizer_hash != tokenizer.hash:
        raise ValueError(
            f"{folder}: the checkpoint has another tokenizer; load it with JiebaTokenizer.load({str(folder)!r})"
        )
    saved = GPT.from_pretrained(folder)
    if saved.config != model.config:
        raise ValueError(f"{folder}: the checkpoint is of another model: expected {model.config}, got {saved.config}")
    path = folder / _OPTIMIZER_FILE
    moments = _core.SafetensorsFile(str(path))
    for name, view in (("m", optimizer.m), ("v", optimizer.v)):
        values = moments.read(name)
        if values.shape != view.shape:
            raise FormatError(path, f'expected "{name}" of shape {view.shape}, got {values.shape}')
        view[:] = values
    model.arena[:] = saved.arena
    optimizer.step_count = state.optimizer_step
    return state


def _has_type(value: object, kind: str) -> bool:
    names = {"int": int, "float": float | int, "bool": bool, "str": str, "dict[str, Any]": dict, "None": type(None)}
    if isinstance(value, bool):  # which is an int to Python
        return kind == "bool"
    return any(isinstance(value, names[name]) for name in kind.split(" | "))


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new empty folder that takes the place of `folder` when the block ends, and vanishes if it fails."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    previous = _previous(folder)
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        _sync_folder(temporary)
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)  # a folder with files in it cannot be renamed over: until the next line
        temporary.rename(folder)  # is done, find_checkpoint() takes the previous one
        _sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.exists() and previous.exists():
            previous.rename(folder)
        for parent in made:
            with contextlib.suppress(OSError):  # it has something in it, or was never made
                parent.rmdir()
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _previous(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.previous")


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where that cannot be; small files are copied, for people edit those."""
    if source.suffix == ".safetensors":
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _require_space(folder: Path, size: int) -> None:
    """Raises OSError if the disk of `folder` has no room for `size` bytes; the nearest folder that exists is asked."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    needed = size + _SPARE_BYTES
    if free < needed:
        raise OSError(
            f"{folder}: the disk is full: saving the run takes {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free"
        )

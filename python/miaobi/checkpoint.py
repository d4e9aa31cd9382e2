# SPDX-License-Identifier: MIT
"""Saving and restoring a training run: a folder is replaced as a whole, so that there is always a complete one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import numpy as np

from miaobi import _core
from miaobi.chat import ChatTemplate
from miaobi.errors import FormatError
from miaobi.files import previous_of, replacing, require_space, sync_folder, write_atomic
from miaobi.llm import LLM
from miaobi.model import GPT, AdamW
from miaobi.tokenizer import JiebaTokenizer

__all__ = [
    "TrainState",
    "copy_checkpoint",
    "find_checkpoint",
    "find_good_checkpoint",
    "load_checkpoint",
    "load_state",
    "publish",
    "save_checkpoint",
    "verify_checkpoint",
]

_FORMAT: Final = "miaobi-training"
_VERSION: Final = 2
_SINCE_VERSION_2: Final = ("bad_evaluations", "rate_scale", "rollbacks")
_MANIFEST_FORMAT: Final = "miaobi-checkpoint"
_MANIFEST_FILE: Final = "manifest.json"
_STATE_FILE: Final = "trainer_state.json"
_OPTIMIZER_FILE: Final = "optimizer.safetensors"


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
    bad_evaluations: int = 0  # since the best one
    rate_scale: float = 1.0  # of the learning rate: less after the run had to go back
    rollbacks: int = 0
    train_loss_sum: float = 0.0  # since the last evaluation
    train_loss_tokens: int = 0
    train_hash: str = ""
    validation_hash: str = ""
    tokenizer_hash: str = ""
    config: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    model: GPT,
    tokenizer: JiebaTokenizer,
    optimizer: AdamW,
    state: TrainState,
    data: Mapping[str, Any] | None = None,
    template: ChatTemplate | None = None,
) -> None:
    """Writes the run to `folder`, which holds the old content until the new one is complete and on disk.

    Its manifest tells where the run came from, `data` among it, and names the hash of each file. Raises OSError, with
    the old content in place and nothing else left, if it cannot be written.
    """
    require_space(folder, 3 * model.arena.nbytes, "saving the run takes")
    with replacing(folder) as temporary, LLM(model, tokenizer, chat_template=template) as llm:
        llm.save_pretrained(temporary)
        moments = {"m": optimizer.m, "v": optimizer.v}
        _core.write_safetensors(str(temporary / _OPTIMIZER_FILE), moments, {"step": str(optimizer.step_count)})
        content = {"format": _FORMAT, "version": _VERSION, **asdict(state)}
        write_atomic(temporary / _STATE_FILE, _json(content))
        write_atomic(temporary / _MANIFEST_FILE, _json(_manifest(temporary, state, data or {})))


def verify_checkpoint(folder: Path) -> TrainState:
    """The state in the checkpoint `folder`, all files of which are what its manifest says.

    Raises FormatError that names the damaged file, and FileNotFoundError if there is no checkpoint.
    """
    state = load_state(folder)
    path = folder / _MANIFEST_FILE
    if not path.exists():
        return state  # an older version wrote it
    try:
        files = json.loads(path.read_bytes())["files"]
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FormatError(path, "expected the JSON of a checkpoint's manifest") from None
    for name, (length, digest) in expected.items():
        file = folder / name
        if not file.is_file():
            raise FormatError(file, "the file is missing")
        if file.stat().st_size != length:
            raise FormatError(file, f"expected {length:,} bytes, got {file.stat().st_size:,}")
        if _sha256(file) != digest:
            raise FormatError(file, "it is damaged: it does not have the hash that the manifest names")
    return state


def find_good_checkpoint(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint in the folder `checkpoints` that is not damaged and got furthest, and what is wrong with others.

    None if there is none. A replacement that was cut short leaves the one that it was to replace.
    """
    found: list[tuple[int, bool, Path]] = []
    faults: list[str] = []
    for path in checkpoints.iterdir() if checkpoints.is_dir() else ():
        if path.is_dir() and path.suffix != ".tmp":
            try:
                found.append((-load_state(path).step, path.name != "last", path))
            except (OSError, FormatError) as error:
                faults.append(str(error))
    for _, _, path in sorted(found):
        try:
            verify_checkpoint(path)
        except (OSError, FormatError) as error:
            faults.append(str(error))
            continue
        return path, faults
    return None, faults


def copy_checkpoint(source: Path, folder: Path) -> None:
    """Makes `folder` the same checkpoint as `source`, replaced as a whole; large files take no room of their own."""
    with replacing(folder) as temporary:
        for path in source.iterdir():
            _link(path, temporary / path.name)


def publish(source: Path, folder: Path) -> None:
    """Puts the model of the checkpoint `source` into `folder`, file by file, the weights last."""
    own = (_STATE_FILE, _OPTIMIZER_FILE, _MANIFEST_FILE)
    names = [path.name for path in source.iterdir() if path.name not in own]
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
    sync_folder(folder)


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint `folder` if it is complete; if its replacement was cut short, that which it was to replace."""
    for path in (folder, previous_of(folder)):
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
    if not isinstance(content, dict) or content.get("format") != _FORMAT or content.get("version") not in (1, _VERSION):
        raise FormatError(path, f'expected the format "{_FORMAT}", version {_VERSION}')
    if content["version"] == 1:
        content |= {name: getattr(TrainState(), name) for name in _SINCE_VERSION_2}
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
    state = verify_checkpoint(folder)
    if state.tokenizer_hash != tokenizer.hash:
        raise ValueError(
            f"{folder}: the checkpoint has another tokenizer; load it with JiebaTokenizer.load({str(folder)!r})"
        )
    saved = GPT.from_pretrained(folder)
    if replace(saved.config, dropout=model.config.dropout) != model.config:  # a run may go on with another rate
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


def _manifest(folder: Path, state: TrainState, data: Mapping[str, Any]) -> dict[str, Any]:
    """Where a checkpoint came from, and the sizes and hashes of the files in `folder`."""
    build = _core.build_info()
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return {
        "format": _MANIFEST_FORMAT,
        "version": 1,
        "miaobi": build["version"],
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": state.step,
        "seed": state.config.get("seed"),
        "data": {**data, "train_hash": state.train_hash, "validation_hash": state.validation_hash},
        "tokenizer_hash": state.tokenizer_hash,
        "config": state.config,
        "machine": {
            **{name: build[name] for name in ("cpu", "isa", "backend", "matmul_precision", "threads")},
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths},
    }


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _has_type(value: object, kind: str) -> bool:
    names = {"int": int, "float": float | int, "bool": bool, "str": str, "dict[str, Any]": dict, "None": type(None)}
    if isinstance(value, bool):  # which is an int to Python
        return kind == "bool"
    return any(isinstance(value, names[name]) for name in kind.split(" | "))


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where that cannot be; small files are copied, for people edit those."""
    if source.suffix == ".safetensors":
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())

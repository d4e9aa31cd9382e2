# SPDX-License-Identifier: MIT
"""The log of a training run: one JSON object in each line, for every event."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from miaobi.files import write_atomic
from miaobi.train_events import TrainEvent

__all__ = ["LOG_FILE", "TrainLog"]

LOG_FILE: Final = "train_log.jsonl"


class TrainLog:
    """Appends events to `folder/train_log.jsonl`, each on disk's way as soon as it is written."""

    def __init__(self, folder: Path, step: int) -> None:
        """Opens the log of a run that stands at `step`: what came after, and was lost with a killed run, is dropped."""
        path = folder / LOG_FILE
        if path.exists():
            _drop_after(path, step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, event: TrainEvent) -> None:
        """Appends `event` as {"event": "step", "step": 1, ...}."""
        name = type(event).__name__.removesuffix("Event").lower()
        line = json.dumps(_plain({"event": name, **asdict(event)}), ensure_ascii=False, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()


def _drop_after(path: Path, step: int) -> None:
    kept: list[bytes] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for line in lines:
        try:
            logged = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a killed run
        if logged <= step and line.endswith(b"\n"):
            kept.append(line)
    if len(kept) < len(lines):
        write_atomic(path, b"".join(kept))


def _plain(value: Any) -> Any:
    """`value` with numbers that JSON has not, such as NaN, as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value

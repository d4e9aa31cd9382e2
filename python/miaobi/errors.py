# SPDX-License-Identifier: MIT
"""The exceptions of miaobi that are more than a plain ValueError."""

from __future__ import annotations

import os

__all__ = ["FormatError"]


class FormatError(ValueError):
    """A file that is not what it should be.

    Attributes: `path` (str), `reason` (str), and `offset`, the byte at which the fault was seen, or None.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, offset: int | None = None) -> None:
        self.path = os.fspath(path)
        self.reason = reason
        self.offset = offset
        super().__init__(self.path, reason, offset)  # the same arguments again, so that it can be pickled

    def __str__(self) -> str:
        where = "" if self.offset is None else f" (at byte {self.offset})"
        return f"{self.path}: {self.reason}{where}"

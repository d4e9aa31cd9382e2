# SPDX-License-Identifier: MIT
"""The values of a JSON list one by one, so that the list need not fit in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["JsonError", "list_items"]

_WHITESPACE: Final = " \t\n\r"
_MAX_VALUE_CHARS: Final = 1 << 26  # one value is held in memory: longer than any book
# An error so near to the end of what has been read may be one of the cut: in the middle of "false" or "\\ud83d\\ude00".
_CUT_CHARS: Final = 16
_DECODER: Final = json.JSONDecoder()


class JsonError(ValueError):
    """Text that is not JSON: `reason`, and where in the whole text, from 1."""

    def __init__(self, reason: str, line: int, column: int) -> None:
        super().__init__(f"{reason} (line {line}, column {column})")
        self.reason = reason
        self.line = line
        self.column = column


class _Text:
    """A text that comes in chunks: the part that has not been used, and where it begins."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self._rest = ""
        self._at = 0  # what comes before in `_rest` is used
        self._line = self._column = 0
        self._ended = False

    def _read(self, chars: int) -> bool:
        """Drops what is used and makes the unused part at least `chars` long, if there is so much; whether it grew."""
        unused = self._rest[self._at :]
        used = self._rest[: self._at]
        self._line += used.count("\n")
        self._column = len(used) - used.rfind("\n") - 1 + (0 if "\n" in used else self._column)
        parts = [unused]
        length = before = len(unused)
        while length < chars and not self._ended:
            chunk = next(self._chunks, None)
            self._ended = chunk is None
            parts.append(chunk or "")
            length += len(parts[-1])
        self._rest, self._at = "".join(parts), 0
        return length > before

    def next_char(self) -> str:
        """The next character that is not white space, which stays unused; "" at the end."""
        while True:
            while self._at < len(self._rest):
                if self._rest[self._at] not in _WHITESPACE:
                    return self._rest[self._at]
                self._at += 1
            if not self._read(1):
                return ""

    def skip(self) -> None:
        """Uses up one character."""
        self._at += 1

    def error(self, reason: str, position: int | None = None) -> JsonError:
        """An error at a position of the part that is held; by default where the unused begins."""
        before = self._rest[: self._at if position is None else position]
        column = len(before) - before.rfind("\n") - 1 + (0 if "\n" in before else self._column)
        return JsonError(reason, self._line + before.count("\n") + 1, column + 1)

    def value(self) -> Any:
        """Uses up one value."""
        self.next_char()
        while True:
            length = len(self._rest) - self._at
            try:
                value, end = _DECODER.raw_decode(self._rest, self._at)
                used = end - self._at
                # A number may go on after the cut, even after "1" of "1e+5".
                if end <= len(self._rest) - _CUT_CHARS or not self._read(2 * length + _CUT_CHARS):
                    self._at += used
                    return value
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos > len(self._rest) - _CUT_CHARS
                fault = self.error(error.msg, error.pos)
                if not is_cut or not self._read(max(2 * length, _CUT_CHARS)):
                    raise fault from None
            except (ValueError, RecursionError):
                raise self.error("a number too long or lists too deep", self._at) from None
            if length > _MAX_VALUE_CHARS:
                raise self.error(f"a value of more than {_MAX_VALUE_CHARS:,} characters")


def list_items(chunks: Iterator[str]) -> Iterator[tuple[bool, Any]]:
    """The items of the list that the text is, each with True; if it is one other value, that, with False.

    Raises JsonError where the text is not JSON, which may be after some items.
    """
    text = _Text(chunks)
    if text.next_char() != "[":
        yield False, text.value()
    else:
        text.skip()
        if text.next_char() == "]":
            text.skip()
        else:
            while True:
                yield True, text.value()
                mark = text.next_char()
                if mark not in (",", "]"):
                    raise text.error("Expecting ',' delimiter")
                text.skip()
                if mark == "]":
                    break
    if text.next_char():
        raise text.error("Extra data")

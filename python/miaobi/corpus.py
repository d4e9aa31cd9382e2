# SPDX-License-Identifier: MIT
"""Documents from files: plain text, JSON and JSON lines, in the encodings that Chinese text comes in."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from miaobi import chat
from miaobi.errors import FormatError
from miaobi.json_stream import JsonError, list_items
from miaobi.shuffle import permutation
from miaobi.text_encoding import read_text

__all__ = ["Corpus", "Document", "Documents", "Format", "Separator", "Source", "hold_out", "read_corpus"]

_log = logging.getLogger(__name__)

Separator = Literal["line", "blank"]
Format = Literal["text", "chat"]
Document = str | list[dict[str, str]]  # a text, or the messages of a dialogue whose answers are to be learnt

# No document has such a line; a file that was saved without line ends has.
_MAX_LINE_CHARS: Final = 1_000_000
_DIGEST_BYTES: Final = 16  # two different documents of a million never have the same


class Source(NamedTuple):
    """What one file gave: its encoding, documents, how many of those are dialogues, and characters."""

    path: str
    encoding: str
    documents: int
    dialogues: int
    characters: int


class Documents:
    """Documents that can be gone through again and again and need not be in memory: 20 bytes are kept of each.

    Iterating reads them anew and raises ValueError if they are not what they were.
    """

    def __init__(self, read: Callable[[], Iterable[Document]], digests: bytes, lengths: Sequence[int]) -> None:
        self._read = read
        self._digests = np.frombuffer(digests, np.uint64).reshape(-1, 2)
        self.lengths: Final = np.asarray(lengths, np.int32)  # characters of each document
        self._chosen: NDArray[np.bool_] | None = None  # of all that are read; the arrays above are of these alone

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Documents:
        """Documents that are in memory."""
        kept = list(documents)
        return cls(lambda: kept, b"".join(map(_digest, kept)), [len(_text(document)) for document in kept])

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[Document]:
        """The documents in order."""
        chosen = None if self._chosen is None else iter(self._chosen)
        expected = iter(self._digests)
        seen = 0
        for document in self._read():
            if chosen is not None and not next(chosen, False):
                continue
            digest = next(expected, None)
            if digest is None or _digest(document) != digest.tobytes():
                break
            seen += 1
            yield document
        if seen < len(self):
            raise ValueError("[corpus] the text changed while it was read; leave the files alone, and begin again")

    @property
    def characters(self) -> int:
        """Characters of all documents."""
        return int(self.lengths.sum(dtype=np.int64))

    @cached_property
    def hash(self) -> str:
        """A hash of all documents in order, to know the same text again."""
        return hashlib.sha256(self._digests.tobytes()).hexdigest()

    @cached_property
    def first_copies(self) -> NDArray[np.bool_]:
        """Which documents no earlier one equals."""
        order = np.lexsort((self._digests[:, 1], self._digests[:, 0]))  # stable: the first of equal ones comes first
        ordered = self._digests[order]
        first = np.ones(len(self), np.bool_)
        first[order[1:]] = np.any(ordered[1:] != ordered[:-1], axis=1)
        return first

    def select(self, chosen: NDArray[np.bool_]) -> Documents:
        """Those documents for which `chosen` is true."""
        part = Documents(self._read, self._digests[chosen].tobytes(), self.lengths[chosen].tolist())
        part._chosen = chosen.copy() if self._chosen is None else self._chosen.copy()
        if self._chosen is not None:
            part._chosen[self._chosen] = chosen
        return part

    def deduplicated(self) -> Documents:
        """The documents without those that an earlier one equals, character by character."""
        return self.select(self.first_copies)

    def hold_out(
        self, fraction: float = 0.02, *, seed: int = 0, max_characters: int = 100_000
    ) -> tuple[Documents, Documents]:
        """Splits into documents to train on and those to validate with, each in the given order.

        Takes `fraction` of the documents, chosen by `seed`, but at least 20 (of few documents, one in ten, at least
        one) and about `max_characters` at most, which is enough for a steady figure. Copies of a held-out document are
        held out, too. A single document, or a fraction of 0, leaves nothing to validate with.
        """
        if not 0 <= fraction < 1:
            raise ValueError(f"[corpus] expected a validation fraction of at least 0 and under 1, got {fraction}")
        unique = np.flatnonzero(self.first_copies)
        out = np.zeros(len(self), np.bool_)
        if fraction and len(unique) > 1:
            count = min(max(int(fraction * len(unique)), 20), max(len(unique) // 10, 1), len(unique) - 1)
            held_out: list[int] = []
            characters = 0
            for i in unique[permutation(len(unique), seed)[:count]].tolist():
                if held_out and characters + int(self.lengths[i]) > max_characters:
                    continue  # a shorter one may still fit
                held_out.append(i)
                characters += int(self.lengths[i])
            keys = self._digests.view(f"S{_DIGEST_BYTES}").ravel()
            out = np.isin(keys, keys[held_out])
        return self.select(~out), self.select(out)


class Corpus(Documents):
    """Documents of files, in order, without white space around them, and what each file gave."""

    sources: list[Source]

    @property
    def documents(self) -> list[str]:
        """The texts of all documents at once."""
        return [_text(document) for document in self]

    @property
    def dialogues(self) -> int:
        """Number of documents that are dialogues."""
        return sum(source.dialogues for source in self.sources)


def read_corpus(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    separator: Separator = "line",
    text_field: str = "text",
    format: Format = "text",
) -> Corpus:
    """Goes through the documents of one or more files once, checks them, and notes what they are.

    `.jsonl`: a JSON value in each line; `.json`: a list of values. A value is a string, an object with a string in
    `text_field`, or an object with a list of chat messages in "messages". Any other name is plain text: a document in
    each line, or, with the separator "blank", between blank lines. Empty documents are left out. A document that is a
    dialogue comes out as `miaobi.chat.render` writes it; with the format "chat" every one has to be, with an answer in
    it, and comes out as its messages. Files may be larger than memory, single documents may not; pipes are kept there.

    Raises FileNotFoundError, OSError, FormatError for a file that is not such text, and ValueError if there is no
    document in a file or a line of more than a million characters.
    """
    if separator not in ("line", "blank"):
        raise ValueError(f'[corpus] expected a separator of "line" or "blank", got {separator!r}')
    if format not in ("text", "chat"):
        raise ValueError(f'[corpus] expected a format of "text" or "chat", got {format!r}')
    files = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    if not files:
        raise ValueError("[corpus] expected at least one file, got none")
    for path in files:
        _check_file(path)
    sources: list[Source] = []
    digests = bytearray()
    lengths = array("i")
    kept: dict[Path, list[Document]] = {}  # of pipes, which cannot be read again
    for path in files:
        before, dialogues = len(lengths), 0
        encoding, found = _open(path, separator, text_field, format)
        for document, is_dialogue in found:
            if path.is_fifo():
                kept.setdefault(path, []).append(document)
            text = _text(document)
            digests += _digest(document)
            lengths.append(len(text))
            dialogues += is_dialogue
        new = len(lengths) - before
        if not new:
            raise ValueError(f"{path}: there is no text in it; give a file with at least one document")
        sources.append(Source(str(path), encoding, new, dialogues, sum(lengths[before:])))
        _log.info("%s: %s, %d documents, %d characters", *sources[-1][:2], new, sources[-1].characters)

    def read() -> Iterator[Document]:
        for path in files:
            if path in kept:
                yield from kept[path]
            else:
                yield from (document for document, _ in _open(path, separator, text_field, format)[1])

    corpus = Corpus(read, bytes(digests), lengths)
    corpus.sources = sources
    return corpus


def hold_out(
    documents: Sequence[str], fraction: float = 0.02, *, seed: int = 0, max_characters: int = 100_000
) -> tuple[list[str], list[str]]:
    """`Documents.hold_out` for texts in memory."""
    parts = Documents.of(documents).hold_out(fraction, seed=seed, max_characters=max_characters)
    train, held_out = ([_text(document) for document in part] for part in parts)
    return train, held_out


def _text(document: Document) -> str:
    return document if isinstance(document, str) else chat.render(document)


def _digest(document: Document) -> bytes:
    data = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(data.encode(), digest_size=_DIGEST_BYTES).digest()


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder; give the files in it, such as {path}/*.txt")
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if not (path.is_file() or path.is_fifo()):  # a device may never end
        raise ValueError(f"{path}: this is not a file; give a .txt, .json or .jsonl file")
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{path}: the file is empty; give a file with at least one document")


def _open(
    path: Path, separator: Separator, text_field: str, format: Format
) -> tuple[str, Iterator[tuple[Document, bool]]]:
    """The encoding of a file, and its documents, each with whether it is a dialogue."""
    encoding, chunks = read_text(path)
    return encoding, _documents(chunks, path, separator, text_field, format)


def _documents(
    chunks: Iterator[str], path: Path, separator: Separator, text_field: str, format: Format
) -> Iterator[tuple[Document, bool]]:
    """The documents of a file that are not empty, each with whether it is a dialogue."""
    suffix = path.suffix.lower()
    values: Iterable[tuple[str, Any]]
    if suffix == ".json":
        values = _json_values(chunks, path)
    elif suffix == ".jsonl":
        values = _json_lines(chunks, path)
    else:
        values = _text_blocks(chunks, path, separator)
    for where, value in values:
        messages = None
        if isinstance(value, dict):
            messages, value = _open_object(value, path, where, text_field)
        if isinstance(value, str) and messages is None:
            messages = chat.parse_dialogue(value)
        elif not isinstance(value, str):
            raise FormatError(
                path, f"{where}: expected a string or an object, got {_json_name(value)}; give a document in each"
            )
        text = value.strip() if messages is None else chat.render(messages)
        if not text:
            continue
        _check_document(text, path, where)
        if format == "text":
            yield text, messages is not None
            continue
        if messages is None or not any(m["role"] == "assistant" and m["content"] for m in messages):
            raise FormatError(
                path,
                f'{where}: expected a dialogue with an answer, "用户：... 助手：..." or messages, got {text!r:.60}; '
                "leave --format chat away to train on all of the text",
            )
        yield messages, True


def _open_object(
    value: dict[str, Any], path: Path, where: str, text_field: str
) -> tuple[list[dict[str, str]] | None, Any]:
    """The messages of a JSON object and "", or None and its text."""
    if "messages" in value:
        try:
            chat.validate(value["messages"])
        except (TypeError, ValueError) as error:
            raise FormatError(path, f"{where}: {error}") from None
        return value["messages"], ""
    if not isinstance(value.get(text_field), str):
        raise FormatError(
            path,
            f'{where}: expected a string in the field "{text_field}", or "messages", got the fields '
            f"{sorted(value)[:10]}; name the field of the text with --text-field (text_field in Python)",
        )
    return None, value[text_field]


def _text_blocks(chunks: Iterator[str], path: Path, separator: Separator) -> Iterator[tuple[str, str]]:
    block: list[str] = []
    start = 1
    for number, line in enumerate(_lines(chunks, path), 1):
        if separator == "line":
            yield f"line {number}", line
        elif line.strip():
            if not block:
                start = number
            block.append(line)
        elif block:
            yield f"line {start}", "\n".join(block)
            block = []
    if block:
        yield f"line {start}", "\n".join(block)


def _json_lines(chunks: Iterator[str], path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(chunks, path), 1):
        if line.strip():
            yield f"line {number}", _parse_json(line, path, f"line {number}")


def _json_values(chunks: Iterator[str], path: Path) -> Iterator[tuple[str, Any]]:
    hint = "; if each line is JSON of its own, name the file .jsonl"
    try:
        for number, (is_item, value) in enumerate(list_items(chunks), 1):
            if not is_item and not isinstance(value, dict):
                raise FormatError(path, f"expected a JSON list of documents, got {_json_name(value)}{hint}")
            yield f"document {number}", value
    except JsonError as error:
        raise FormatError(path, f"expected JSON: {error}{hint}") from None


def _parse_json(text: str, path: Path, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FormatError(path, f"{where}: expected JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError):
        raise FormatError(path, f"{where}: expected JSON: a number too long or lists too deep") from None


def _json_name(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "a string")


def _lines(chunks: Iterator[str], path: Path) -> Iterator[str]:
    """Lines as editors see them; str.splitlines also breaks at characters that belong to the text, such as U+2028."""
    rest = ""
    number = 0
    for chunk in chunks:
        if len(rest) > _MAX_LINE_CHARS:  # and there is more: not to be held in memory
            raise _long_line(path, f"line {number + 1}", f"more than {_MAX_LINE_CHARS:,}")
        text = rest + chunk
        half = "\r" if text.endswith("\r") else ""  # maybe of "\r\n"
        *lines, rest = text[: len(text) - len(half)].replace("\r\n", "\n").replace("\r", "\n").split("\n")
        rest += half
        number += len(lines)
        yield from lines
    yield from rest.replace("\r", "\n").split("\n")


def _long_line(path: Path, where: str, length: str) -> ValueError:
    return ValueError(
        f"{path}: {where}: a line of {length} characters, expected {_MAX_LINE_CHARS:,} at most; "
        "break it into lines, one document or paragraph in each"
    )


def _check_document(document: str, path: Path, where: str) -> None:
    if len(document) > _MAX_LINE_CHARS:
        longest = max(map(len, document.split("\n")))
        if longest > _MAX_LINE_CHARS:
            raise _long_line(path, where, f"{longest:,}")
    try:
        document.encode()
    except UnicodeEncodeError as error:  # JSON can spell what UTF-8 cannot
        raise FormatError(
            path, f"{where}: half a surrogate pair (U+{ord(document[error.start]):04X}) is no character; repair it"
        ) from None

# SPDX-License-Identifier: MIT
"""Documents from files: plain text, JSON and JSON lines, in the encodings that Chinese text comes in."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from miaobi import chat
from miaobi.errors import FormatError
from miaobi.shuffle import permutation
from miaobi.text_encoding import decode_text

__all__ = ["Corpus", "Separator", "Source", "hold_out", "read_corpus"]

_log = logging.getLogger(__name__)

Separator = Literal["line", "blank"]

# No document has such a line; a file that was saved without line ends has.
_MAX_LINE_CHARS: Final = 1_000_000


class Source(NamedTuple):
    """What one file gave: its encoding, documents, how many of those are dialogues, and characters."""

    path: str
    encoding: str
    documents: int
    dialogues: int
    characters: int


@dataclass(frozen=True)
class Corpus:
    """Documents in the order of their files, without white space around them, and what each file gave."""

    documents: list[str]
    sources: list[Source]

    @property
    def characters(self) -> int:
        """Characters of all documents."""
        return sum(source.characters for source in self.sources)

    @property
    def dialogues(self) -> int:
        """Number of documents that are dialogues."""
        return sum(source.dialogues for source in self.sources)


def read_corpus(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    separator: Separator = "line",
    text_field: str = "text",
) -> Corpus:
    """Reads the documents of one or more files; dialogues come out as `miaobi.chat.render` writes them.

    `.jsonl`: a JSON value in each line; `.json`: a list of values. A value is a string, an object with a string in
    `text_field`, or an object with a list of chat messages in "messages". Any other name is plain text: a document in
    each line, or, with the separator "blank", between blank lines. Empty documents are left out.

    Raises FileNotFoundError, OSError, FormatError for a file that is not such text, and ValueError if there is no
    document in a file or a line of more than a million characters.
    """
    if separator not in ("line", "blank"):
        raise ValueError(f'[corpus] expected a separator of "line" or "blank", got {separator!r}')
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    documents: list[str] = []
    sources: list[Source] = []
    for path in map(Path, paths):
        text, encoding = decode_text(_read_bytes(path), path)
        before = len(documents)
        dialogues = 0
        for where, document, is_dialogue in _documents(text, path, separator, text_field):
            _check_document(document, path, where)
            documents.append(document)
            dialogues += is_dialogue
        new = documents[before:]
        if not new:
            raise ValueError(f"{path}: there is no text in it; give a file with at least one document")
        sources.append(Source(str(path), encoding, len(new), dialogues, sum(map(len, new))))
        _log.info("%s: %s, %d documents, %d characters", *sources[-1][:2], len(new), sources[-1].characters)
    if not sources:
        raise ValueError("[corpus] expected at least one file, got none")
    return Corpus(documents, sources)


def hold_out(
    documents: Sequence[str], fraction: float = 0.02, *, seed: int = 0, max_characters: int = 100_000
) -> tuple[list[str], list[str]]:
    """Splits documents into those to train on and those to validate with, each in the given order.

    Takes `fraction` of the documents, chosen by `seed`, but at least 20 (of few documents, one in ten, at least one)
    and about `max_characters` at most, which is enough for a steady figure. Copies of a held-out document are held
    out, too. A single document, or a fraction of 0, leaves nothing to validate with.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"[corpus] expected a validation fraction of at least 0 and under 1, got {fraction}")
    texts = list(dict.fromkeys(documents))
    if fraction == 0 or len(texts) < 2:
        return list(documents), []
    count = min(max(int(fraction * len(texts)), 20), max(len(texts) // 10, 1), len(texts) - 1)
    held_out: set[str] = set()
    characters = 0
    for i in permutation(len(texts), seed)[:count].tolist():
        if held_out and characters + len(texts[i]) > max_characters:
            continue  # a shorter one may still fit
        held_out.add(texts[i])
        characters += len(texts[i])
    train = [document for document in documents if document not in held_out]
    return train, [document for document in documents if document in held_out]


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder; give the files in it, such as {path}/*.txt")
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if not (path.is_file() or path.is_fifo()):  # a device may never end
        raise ValueError(f"{path}: this is not a file; give a .txt, .json or .jsonl file")
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{path}: the file is empty; give a file with at least one document")
    return data


def _documents(text: str, path: Path, separator: Separator, text_field: str) -> Iterator[tuple[str, str, bool]]:
    """The documents of a file that are not empty, each with its place and whether it is a dialogue."""
    suffix = path.suffix.lower()
    values: Iterable[tuple[str, Any]]
    if suffix == ".json":
        values = _json_values(text, path)
    elif suffix == ".jsonl":
        values = _json_lines(text, path)
    else:
        values = _text_blocks(text, separator)
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
        document = value.strip() if messages is None else chat.render(messages)
        if document:
            yield where, document, messages is not None


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


def _text_blocks(text: str, separator: Separator) -> Iterator[tuple[str, str]]:
    block: list[str] = []
    start = 1
    for number, line in enumerate(_lines(text), 1):
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


def _json_lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            yield f"line {number}", _parse_json(line, path, f"line {number}: ")


def _json_values(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    values = _parse_json(text, path, "")
    if isinstance(values, dict):
        values = [values]
    if not isinstance(values, list):
        raise FormatError(path, f"expected a JSON list of documents, got {_json_name(values)}")
    for number, value in enumerate(values, 1):
        yield f"document {number}", value


def _parse_json(text: str, path: Path, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if not where else f"column {error.colno}"
        hint = "" if where else "; if each line is JSON of its own, name the file .jsonl"
        raise FormatError(path, f"{where}expected JSON: {error.msg} ({place}){hint}") from None
    except (ValueError, RecursionError):
        raise FormatError(path, f"{where}expected JSON of documents: a number too long or lists too deep") from None


def _json_name(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "a string")


def _lines(text: str) -> list[str]:
    """Lines as editors see them; str.splitlines also breaks at characters that belong to the text, such as U+2028."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _check_document(document: str, path: Path, where: str) -> None:
    if len(document) > _MAX_LINE_CHARS:
        longest = max(map(len, document.split("\n")))
        if longest > _MAX_LINE_CHARS:
            raise ValueError(
                f"{path}: {where}: a line of {longest:,} characters, expected {_MAX_LINE_CHARS:,} at most; "
                "break it into lines, one document or paragraph in each"
            )
    try:
        document.encode()
    except UnicodeEncodeError as error:  # JSON can spell what UTF-8 cannot
        raise FormatError(
            path, f"{where}: half a surrogate pair (U+{ord(document[error.start]):04X}) is no character; repair it"
        ) from None

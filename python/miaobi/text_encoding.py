# SPDX-License-Identifier: MIT
"""Bytes to text: UTF-8 by rule, the encodings of older Chinese files by their look, and a clear word about the rest."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from miaobi.errors import FormatError

__all__ = ["DecodedText", "decode_text", "read_text"]

_BOMS: Final = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8", "UTF-8 with BOM"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
_GUESSES: Final = (
    ("gb18030", "GB18030"),
    ("big5", "Big5"),
    ("utf-16-le", "UTF-16"),
    ("utf-16-be", "UTF-16"),
)
# Punctuation and the most frequent characters of modern and classical Chinese, in both scripts.
_FREQUENT: Final = frozenset(
    "，。、；：？！“”《》（）\u3000的一是不了在人有我他这這中大来來上国國个個到说說们們为為子和你地出道也时時年得就那要下以生"
    "会會自着之可家学學对對里裡后後小么麼心多天而能好都然没沒日于於起还還发發成事只作当當想看文无無开開手十用主行方又如前所"
    "本见見经經头頭面公同三已老从從动動两兩长長山风風花春水月云雲江秋何此处處相"
)
# Of Chinese prose and verse a third are such characters (a fifth in the barest line of a hundred); of the same bytes
# read in a wrong encoding, under 1%.
_MIN_FREQUENT: Final = 0.1
_SAMPLE_CHARS: Final = 100_000
# A text may have a stray control character in it; a file that is no text has them everywhere.
_MAX_CONTROL: Final = 0.001
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")  # not tab, line ends, form feed, escape
# A UTF-8 file with a broken character in it has many good ones for each broken one.
_MIN_GOOD_PER_BROKEN: Final = 10
_WHOLE_BYTES: Final = 32 << 20  # a file of up to so many bytes is decoded at once, a larger one as it is read
_CHUNK_BYTES: Final = 4 << 20
_LONGEST_CHARACTER: Final = 4  # bytes, in any of the encodings


class DecodedText(NamedTuple):
    """The text of a file, and the name of the encoding it was in."""

    text: str
    encoding: str


def decode_text(data: bytes, path: str | os.PathLike[str]) -> DecodedText:
    """The text in `data`, the bytes of the file at `path`, which is only named in errors.

    A byte order mark decides if there is one; else UTF-8 if it is valid; else GB18030, Big5 or UTF-16 if the result
    looks like Chinese. Raises FormatError, with the offset of the first bad byte, for anything else.
    """
    text, encoding = _decode(data, path)
    return DecodedText(text, encoding.name)


def read_text(path: Path) -> tuple[str, Iterator[str]]:
    """The name of the encoding of a file, and its text, in parts if it is large: memory is bounded.

    What a large file begins with decides about its encoding. Raises as `decode_text`, also while the parts are read,
    and OSError.
    """
    if not path.is_file() or path.stat().st_size <= _WHOLE_BYTES:
        text, name = decode_text(path.read_bytes(), path)
        return name, iter((text,))
    with open(path, "rb") as file:
        encoding = _detect(file.read(_CHUNK_BYTES), path)
    return encoding.name, _parts(path, encoding)


class _Encoding(NamedTuple):
    codec: str
    name: str
    mark: int  # bytes of its mark at the beginning of the file


def _detect(head: bytes, path: Path) -> _Encoding:
    """The encoding of a text that begins with `head`, whose end may be within a character."""
    for cut in range(_LONGEST_CHARACTER):
        try:
            return _decode(head[: len(head) - cut], path)[1]
        except FormatError:
            continue
    return _decode(head, path)[1]


def _parts(path: Path, encoding: _Encoding) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding.codec)()
    with open(path, "rb") as file:
        at = file.seek(encoding.mark)
        while True:
            data = file.read(_CHUNK_BYTES)
            held = len(decoder.getstate()[0])  # bytes of a character that is not complete
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                reason = f"it begins as {encoding.name} text but is not valid {encoding.name} here; repair it"
                raise FormatError(path, reason, at - held + error.start) from None
            if not data:
                return
            yield _no_binary(text, path, data)
            at += len(data)


def _decode(data: bytes, path: str | os.PathLike[str]) -> tuple[str, _Encoding]:
    for mark, codec, name in _BOMS:
        if data.startswith(mark):
            try:
                text = data[len(mark) :].decode(codec)
            except UnicodeDecodeError as error:
                reason = f"it begins with the mark of {name} but is not valid {name}; save it again as UTF-8"
                raise FormatError(path, reason, len(mark) + error.start) from None
            return _no_binary(text, path, data), _Encoding(codec, name, len(mark))
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return _guess(data, path, error.start)
    if "\0" in text:  # UTF-16 of mostly Latin text is also valid UTF-8, with a zero in every other byte
        return _guess(data, path, data.index(0))
    return _no_binary(text, path, data), _Encoding("utf-8", "UTF-8", 0)


def _guess(data: bytes, path: str | os.PathLike[str], bad: int) -> tuple[str, _Encoding]:
    """The text of `data`, which has no mark and is not UTF-8 text because of the byte at `bad`."""
    if _is_damaged_utf8(data):
        reason = f"this is UTF-8 text with a broken character, byte 0x{data[bad]:02X}; repair it, or take it out"
        raise FormatError(path, reason, bad)
    best, text, encoding = 0.0, "", _Encoding("", "", 0)
    for codec, name in _GUESSES:
        try:
            candidate = data.decode(codec)
        except UnicodeDecodeError:
            continue
        share = _chinese_share(candidate)
        if share > best:
            best, text, encoding = share, candidate, _Encoding(codec, name, 0)
    if best >= _MIN_FREQUENT:
        return text, encoding
    _no_binary(data.decode("latin-1"), path, data)
    raise FormatError(
        path,
        f"byte 0x{data[bad]:02X} is not valid UTF-8, nor does the file look like Chinese in GB18030, Big5 or UTF-16; "
        "save it as UTF-8, or convert it with: iconv -f ENCODING -t UTF-8",
        bad,
    )


def _is_damaged_utf8(data: bytes) -> bool:
    """Whether most of what is not ASCII in `data` is valid UTF-8, so that it is no other encoding."""
    sample = data[: 4 * _SAMPLE_CHARS].decode("utf-8", "replace")
    broken = sample.count("\ufffd")
    good = sum(character > "\x7f" for character in sample) - broken
    return good > _MIN_GOOD_PER_BROKEN * broken


def _chinese_share(text: str) -> float:
    """Share of frequent Chinese characters among those of a sample of `text` that are not ASCII; 1 if all are ASCII,
    0 if it looks binary."""
    if _is_binary(text):
        return 0.0
    wide = [character for character in text[:_SAMPLE_CHARS] if character > "\x7f"]
    return sum(character in _FREQUENT for character in wide) / len(wide) if wide else 1.0


def _is_binary(text: str) -> bool:
    sample = text[:_SAMPLE_CHARS]
    return "\0" in sample or len(_CONTROL.findall(sample)) > _MAX_CONTROL * len(sample) + 1


def _no_binary(text: str, path: str | os.PathLike[str], data: bytes) -> str:
    """`text`, unless it is full of control characters; then FormatError."""
    if _is_binary(text):
        first = _CONTROL.search(data.decode("latin-1"))
        reason = "this is a binary file, not text; give a .txt, .json or .jsonl file"
        raise FormatError(path, reason, first.start() if first else None)
    return text

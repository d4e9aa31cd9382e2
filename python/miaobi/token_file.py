# SPDX-License-Identifier: MIT
"""Tokenized text on disk: written once with bounded memory, mapped while training, reused while nothing changed.

A folder with raw little-endian arrays: `tokens.bin` (uint16, or uint32 for a vocabulary over 65,536), `starts.bin`
(int64, one more than documents), `characters.bin` (int32), for dialogues `scored.bin` (a byte for each token), and
`manifest.json`, which names the hashes of text, tokenizer and content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from miaobi.batches import TokenData, encode_documents
from miaobi.chat import ChatTemplate
from miaobi.corpus import Documents
from miaobi.errors import FormatError
from miaobi.files import replacing, require_space, write_atomic
from miaobi.tokenizer import JiebaTokenizer

__all__ = ["MANIFEST_FILE", "open_tokens", "tokenize"]

MANIFEST_FILE: Final = "manifest.json"
_FORMAT: Final = "miaobi-tokens"
_VERSION: Final = 1
_SMALL_VOCABULARY: Final = 1 << 16
_BUFFERED_TOKENS: Final = 1 << 20
_TOKEN_BYTES: Final = 3  # for a character, index included: what is looked for on the disk before writing


def tokenize(
    folder: Path,
    documents: Documents,
    tokenizer: JiebaTokenizer,
    progress: Callable[[int, int], None] | None = None,
    template: ChatTemplate | None = None,
) -> tuple[TokenData, bool]:
    """The tokens of `documents`, mapped from `folder`, and whether they were there already.

    They are written anew unless the folder holds those of the same text, tokenizer and template, undamaged. Raises
    OSError if it cannot be written.
    """
    source = {
        "text_hash": documents.hash,
        "tokenizer_hash": tokenizer.hash,
        "template": [part.text for part in (template or ChatTemplate()).segments(_PROBE)],
    }
    try:
        data, manifest = _open(folder)
        if {key: manifest[key] for key in source} == source:
            return data, True
    except (OSError, FormatError):
        pass  # none, of another version, or damaged: as good as none
    require_space(folder, _TOKEN_BYTES * documents.characters, "the tokens of the text take")
    with replacing(folder) as temporary:
        _write(temporary, documents, tokenizer, template, source, progress)
    return open_tokens(folder), False


def open_tokens(folder: Path) -> TokenData:
    """The tokens in `folder`, mapped. Raises FileNotFoundError if there are none, FormatError if they are damaged."""
    return _open(folder)[0]


_PROBE: Final = [{"role": role, "content": "."} for role in ("system", "user", "assistant", "user")]


class _Column:
    """An array that is appended to and written in parts."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any]) -> None:
        self._file = file
        self._dtype = dtype
        self._parts: list[NDArray[Any]] = []
        self._waiting = 0

    def append(self, values: NDArray[Any]) -> None:
        self._parts.append(values)
        self._waiting += len(values)
        if self._waiting >= _BUFFERED_TOKENS:
            self.flush()

    def flush(self) -> None:
        if self._parts:
            self._file.write(np.concatenate(self._parts).astype(self._dtype).tobytes())
        self._parts, self._waiting = [], 0


def _write(
    folder: Path,
    documents: Documents,
    tokenizer: JiebaTokenizer,
    template: ChatTemplate | None,
    source: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> None:
    total, done, at = documents.characters, 0, 0
    kinds = _kinds(tokenizer.vocab_size)
    files = {name: open(folder / f"{name}.bin", "xb") for name in kinds}  # noqa: SIM115 - closed below
    try:
        columns = {name: _Column(file, kinds[name]) for name, file in files.items()}
        columns["starts"].append(np.zeros(1, np.int64))
        has_flags = False
        lengths = iter(documents.lengths.tolist())
        for document in encode_documents(documents, tokenizer, template):
            ids = np.asarray(document.ids)
            at += len(ids)
            columns["tokens"].append(ids)
            columns["starts"].append(np.array([at]))
            columns["characters"].append(np.array([document.characters]))
            has_flags |= document.scored is not None
            columns["scored"].append(np.ones(len(ids), np.uint8) if document.scored is None else document.scored)
            done += next(lengths)
            if progress is not None:
                progress(done, total)
        for column in columns.values():
            column.flush()
    finally:
        for file in files.values():
            file.close()
    if not has_flags:
        (folder / "scored.bin").unlink()
    data = _map(folder, tokenizer.vocab_size, len(documents), at, has_flags)
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        **source,
        "vocab_size": tokenizer.vocab_size,
        "documents": len(documents),
        "characters": total,
        "tokens": at,
        "scored": has_flags,
        "content_hash": _content_hash(data),
    }
    write_atomic(folder / MANIFEST_FILE, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


def _kinds(vocab_size: int) -> dict[str, np.dtype[Any]]:
    token = "<u2" if vocab_size <= _SMALL_VOCABULARY else "<u4"
    names = {"tokens": token, "starts": "<i8", "characters": "<i4", "scored": "u1"}
    return {name: np.dtype(kind) for name, kind in names.items()}


def _map(folder: Path, vocab_size: int, documents: int, tokens: int, has_flags: bool) -> TokenData:
    sizes = {"tokens": tokens, "starts": documents + 1, "characters": documents, "scored": tokens if has_flags else 0}
    arrays: dict[str, NDArray[Any]] = {}
    for name, kind in _kinds(vocab_size).items():
        path = folder / f"{name}.bin"
        size = sizes[name] * kind.itemsize
        if name == "scored" and not has_flags:
            continue
        if path.stat().st_size != size:
            raise FormatError(path, f"expected {size:,} bytes, got {path.stat().st_size:,}")
        arrays[name] = np.memmap(path, kind, "r") if size else np.empty(0, kind)
    flags = arrays["scored"].view(np.bool_) if has_flags else None
    try:
        return TokenData(arrays["tokens"], arrays["starts"], arrays["characters"], flags)
    except ValueError as error:
        raise FormatError(folder, str(error)) from None


def _content_hash(data: TokenData) -> str:
    return hashlib.sha256(data.hash.encode() + np.asarray(data.characters, "<i4").tobytes()).hexdigest()


def _open(folder: Path) -> tuple[TokenData, dict[str, Any]]:
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_bytes())
        known = manifest["format"] == _FORMAT and manifest["version"] == _VERSION
        vocab_size, documents, tokens = (int(manifest[name]) for name in ("vocab_size", "documents", "tokens"))
        has_flags = bool(manifest["scored"])
        expected = manifest["content_hash"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(path, "expected the JSON of a token file") from None
    if not known:
        raise FormatError(path, f'expected the format "{_FORMAT}", version {_VERSION}')
    data = _map(folder, vocab_size, documents, tokens, has_flags)
    if _content_hash(data) != expected:
        raise FormatError(folder, "its content does not have the hash that the manifest names; delete the folder")
    return data, manifest

# SPDX-License-Identifier: MIT
"""Cutting Chinese text into words, exactly as jieba does: the engine's segmenter on jieba's dictionary."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from miaobi import _core

__all__ = ["Segmenter", "default_segmenter", "read_idioms", "read_userdict", "segment", "segment_batch"]

_lock = threading.Lock()
# jieba's own pattern: a word, which may have spaces in it, a frequency and a tag.
_USER_LINE = re.compile(r"(.+?)( [0-9]+)?( [a-z]+)?")


class Segmenter:
    """jieba's cut with words of your own. It starts from jieba's dictionary, which all segmenters share.

    Its methods give what those of a `jieba.Tokenizer` with the same words give (jieba 0.42.1). Two differences: what
    one segmenter learns or forgets never reaches another, and `hmm` is off unless asked for. A str of any Unicode,
    halves of surrogate pairs included, is cut. Safe to share between threads.
    """

    def __init__(self, user_dict: str | os.PathLike[str] | None = None) -> None:
        """Reads jieba's dictionary when the first one is made (0.05 s); `user_dict` as `load_userdict`."""
        self._core: Final = _core.Segmenter(_dictionary())
        self._cut: Final = self._core.cutter()
        if user_dict is not None:
            self.load_userdict(user_dict)

    def segment(self, text: str, hmm: bool = False) -> list[str]:
        """The words of `text` in order; joined they are `text` again. As `jieba.lcut(text, HMM=hmm)`."""
        return self._cut(text, hmm)

    def segment_batch(self, texts: Iterable[str], hmm: bool = False) -> list[list[str]]:
        """The words of each text, cut on all threads of the engine."""
        if isinstance(texts, str):
            raise TypeError("[segment] expected a list of texts, got one str; call segment(text)")
        return self._core.cut_batch(list(texts), hmm)

    def cut_for_search(self, text: str, hmm: bool = False) -> list[str]:
        """The words of `text`, each after the words of two and three characters in it.

        As `jieba.lcut_for_search(text, HMM=hmm)`.
        """
        return self._core.cut_for_search(_text(text), hmm)

    def cut_all(self, text: str) -> list[str]:
        """All words of the dictionary that are in `text`. As `jieba.lcut(text, cut_all=True)`, its "" included."""
        return self._core.cut_all(_text(text))

    def frequency(self, word: str) -> int | None:
        """What the dictionary says: 0 for a mere beginning of words or a deleted word, None if it has none of these."""
        frequency = self._core.frequency(_text(word))
        return None if frequency < 0 else frequency

    def add_word(self, word: str, freq: int | None = None) -> None:
        """Adds a word, or changes its frequency; without one it gets that of `suggest_freq`.

        Raises ValueError for an empty word, one of more than 65,535 characters, and a negative frequency.
        """
        self._core.add_word(_text(word), self.suggest_freq(word) if freq is None else freq)

    def del_word(self, word: str) -> None:
        """Takes a word out, and has it split where the HMM would join it."""
        self.add_word(word, 0)

    def suggest_freq(self, segment: str | Iterable[str], tune: bool = False) -> int:
        """The frequency at which a word is not cut, or at which parts of one are cut; with `tune` it is set."""
        if isinstance(segment, str):
            word = segment
            frequency = self._core.suggest_frequency(_text(segment))
        else:
            parts = [_text(part) for part in segment]
            word = "".join(parts)
            frequency = self._core.suggest_split(parts)
        if tune:
            self._core.add_word(word, frequency)
        return frequency

    @property
    def core(self) -> _core.Segmenter:
        """The engine's own segmenter."""
        return self._core

    def load_userdict(self, path: str | os.PathLike[str]) -> None:
        """Adds the words of a file in jieba's format: "word [frequency] [tag]" in each line, UTF-8; tags are not used.

        Raises OSError, and ValueError for a file that is not UTF-8.
        """
        for word, freq in read_userdict(path):
            self.add_word(word, freq)

    def keep_whole(self, words: Iterable[str]) -> None:
        """Words that are never cut from now on, whatever stands beside them; of any characters, such as idioms.

        Where two of them overlap, the first and then the longest is kept. `cut_all` does not know of them.
        """
        self._core.keep_whole([_text(word) for word in words])


def read_userdict(path: str | os.PathLike[str]) -> list[tuple[str, int | None]]:
    """The words of a user dictionary in jieba's format with their frequencies, None where the file has none."""
    data = Path(path).read_bytes()
    words = []
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            text = line.strip().decode().lstrip("\ufeff")
        except UnicodeDecodeError:
            raise ValueError(f"{path}: line {number} is not UTF-8; save the user dictionary as UTF-8") from None
        if text:
            match = _USER_LINE.fullmatch(text)
            if match is None:
                raise ValueError(f'{path}: expected "word [frequency] [tag]" in line {number}, got {text[:80]!r}')
            words.append((match[1], None if match[2] is None else int(match[2])))
    return words


def read_idioms(path: str | os.PathLike[str]) -> list[str]:
    """The words of a UTF-8 file that has one in each line, or is a JSON list of strings."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        words = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except ValueError as error:
        raise ValueError(f"{path}: expected UTF-8, a word in each line or a JSON list of words: {error}") from None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{path}: expected a JSON list of strings")
    return list(dict.fromkeys(word.strip() for word in words if word.strip()))


def segment(text: str, hmm: bool = False) -> list[str]:
    """The words of `text` in order, exactly as `jieba.lcut(text, HMM=hmm)`; joined they are `text` again.

    The first call reads jieba's dictionary (0.05 s). Raises TypeError if `text` is not a str.
    """
    return (_cut or _load_cut())(text, hmm)


def segment_batch(texts: Iterable[str], hmm: bool = False) -> list[list[str]]:
    """The words of each text, as `segment` gives them, cut on all threads of the engine."""
    return default_segmenter().segment_batch(texts, hmm)


@functools.cache
def default_segmenter() -> Segmenter:
    """The segmenter that has jieba's words and no others; nobody adds to it."""
    return Segmenter()


# segment of the default segmenter, once it is there: looked up in the shortest way, for short texts are many.
_cut: Callable[[str, bool], list[str]] | None = None


def _load_cut() -> Callable[[str, bool], list[str]]:
    global _cut
    _cut = default_segmenter().core.cutter()
    return _cut


@functools.cache
def _load_dictionary() -> _core.Dictionary:
    spec = importlib.util.find_spec("jieba")  # found, not imported: its own dictionary takes a second to load
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("[segment] the package jieba, with the dictionary, is missing; pip install jieba")
    return _core.Dictionary(spec.submodule_search_locations[0])


def _dictionary() -> _core.Dictionary:
    with _lock:
        return _load_dictionary()


def _text(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"[segment] expected str, got {type(text).__name__}; decode bytes first")
    return text

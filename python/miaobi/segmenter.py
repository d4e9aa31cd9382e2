# SPDX-License-Identifier: MIT
"""Cutting Chinese text into words: the one place that knows which segmenter does it."""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["segment"]

_load_lock = threading.Lock()
_lcut: Callable[..., list[str]] | None = None


def segment(text: str, hmm: bool = False) -> list[str]:
    """The words of `text` in order, exactly as `jieba.lcut(text, HMM=hmm)`; joined they are `text` again.

    The first call loads jieba's dictionary (about a second). Raises TypeError if `text` is not a str.
    """
    if not isinstance(text, str):
        raise TypeError(f"[segment] expected str, got {type(text).__name__}; decode bytes first")
    lcut = _lcut or _load_jieba()
    return lcut(text, HMM=hmm)


def _load_jieba() -> Callable[..., list[str]]:
    """Imports jieba and reads its dictionary, once, however many threads come at the same time."""
    global _lcut
    with _load_lock:
        if _lcut is None:
            with warnings.catch_warnings():  # jieba's import of pkg_resources and its regex literals both warn
                warnings.simplefilter("ignore")
                jieba: Any = importlib.import_module("jieba")
            # What Tokenizer.initialize() does, less its log lines and the marshal file it leaves in (and would
            # trust from) the shared temporary folder. A tokenizer of our own: jieba.add_word does not reach it.
            tokenizer = jieba.Tokenizer()
            tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
            tokenizer.initialized = True
            _lcut = tokenizer.lcut
        return _lcut

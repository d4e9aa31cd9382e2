# SPDX-License-Identifier: MIT
"""The vocabulary API of miaobi's first version, on the tokenizer's machinery: words by id, and lossless sequences."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Final

from miaobi.tokenizer import JiebaTokenizer

__all__ = ["Vocab"]


class Vocab:
    """A list of words with their ids: the special tokens at 0-6, the bytes at 7-262, then the words in order.

    Words that come twice, are empty, or are names of special or byte tokens are taken once or not at all.
    `tokenizer` is the JiebaTokenizer with the same ids.
    """

    pad_token_id: Final = JiebaTokenizer.pad_token_id
    unk_token_id: Final = JiebaTokenizer.unk_token_id
    bos_token_id: Final = JiebaTokenizer.bos_token_id
    eos_token_id: Final = JiebaTokenizer.eos_token_id

    def __init__(self, words: Iterable[str]) -> None:
        """Raises ValueError if a word is not valid Unicode."""
        fixed = {"", *JiebaTokenizer([]).tokens}
        self.tokenizer: Final = JiebaTokenizer(word for word in dict.fromkeys(words) if word not in fixed)

    @classmethod
    def build_from_texts(cls, texts: Iterable[str]) -> Vocab:
        """Every character and every word of `texts`, the most frequent first. Raises ValueError if there is no text."""
        return cls(JiebaTokenizer.train(texts, sys.maxsize, shrink=True).tokens)

    def __len__(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def words(self) -> list[str]:
        """All tokens in id order."""
        return list(self.tokenizer.tokens)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens with their ids."""
        return self.tokenizer.special_tokens

    def encode(self, word: str) -> int | None:
        """The id of one word, or None if it is not in the vocabulary."""
        return self.tokenizer.token_id(word)

    def encode_with_unk(self, word: str) -> int:
        """The id of one word, or `unk_token_id`."""
        token_id = self.encode(word)
        return self.unk_token_id if token_id is None else token_id

    def decode(self, token_id: int) -> str | None:
        """The word of an id, or None if there is no such id."""
        return self.tokenizer.tokens[token_id] if 0 <= token_id < len(self) else None

    def encode_sequence(self, text: str) -> list[int]:
        """The ids of a whole text, cut into words; words that are not here become characters or bytes, never unk."""
        return self.tokenizer.encode(text)

    def decode_sequence(self, ids: Iterable[int]) -> str:
        """The text of ids, exactly as it was encoded. Raises ValueError if an id is not in the vocabulary."""
        return self.tokenizer.decode(ids)

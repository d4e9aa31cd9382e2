# SPDX-License-Identifier: MIT
"""What the tokens of a vocabulary are as text, and which may come next: what is written is always valid Unicode."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from miaobi.tokenizer import JiebaTokenizer

__all__ = ["SENTENCE_ENDS", "BadWords", "TokenRules", "TokenTable", "is_han"]

SENTENCE_ENDS: Final = tuple("。！？…!?")


def is_han(text: str) -> bool:
    """Whether all characters are Chinese ones: CJK unified ideographs (Unicode 15) or 〇, and there is one."""
    return bool(text) and all(
        "\u4e00" <= c <= "\u9fff" or "\u3400" <= c <= "\u4dbf" or c == "〇" or "\U00020000" <= c <= "\U000323af"
        for c in text
    )


class TokenTable:
    """What each token of a vocabulary is as text, in arrays by id. Made once for a model; not changed."""

    def __init__(self, tokenizer: JiebaTokenizer) -> None:
        self.tokenizer: Final = tokenizer
        self.data: Final = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]

    @cached_property
    def characters(self) -> NDArray[np.int32]:
        """(V,) how many characters begin with a token: 0 for special tokens and the later bytes of a character."""
        return np.asarray([sum(byte & 0xC0 != 0x80 for byte in data) for data in self.data], np.int32)

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token that is whole characters, "" for the others."""
        return [data.decode("utf-8", "ignore") for data in self.data]

    @cached_property
    def han(self) -> NDArray[np.bool_]:
        """(V,) which tokens are one or more Chinese characters and nothing else."""
        return np.asarray([is_han(text) for text in self.texts])

    @cached_property
    def ends_sentence(self) -> NDArray[np.bool_]:
        """(V,) which tokens end with one of SENTENCE_ENDS."""
        return np.asarray([text.endswith(SENTENCE_ENDS) for text in self.texts])

    @cached_property
    def _sorted(self) -> tuple[list[bytes], NDArray[np.int32]]:
        order = sorted(range(len(self.data)), key=self.data.__getitem__)
        return [self.data[i] for i in order], np.asarray(order, np.int32)

    def starting_with(self, prefix: bytes) -> NDArray[np.int32]:
        """The ids of the tokens whose bytes begin with `prefix`, which is not empty, the shortest first."""
        data, ids = self._sorted
        last = bisect_left(data, prefix + b"\xff")  # no text has the byte 0xFF
        return ids[bisect_left(data, prefix) : last]

    def spell(self, data: bytes) -> int:
        """The longest token with which `data` begins, of which there is one: the byte."""
        for length in range(len(data), 0, -1):
            ids = self.starting_with(data[:length])
            if len(ids) and self.data[ids[0]] == data[:length]:
                return int(ids[0])
        raise ValueError("[constraints] expected bytes to spell, got none")


class BadWords:
    """The tokens that would complete one of some texts, however it is cut into tokens."""

    def __init__(self, table: TokenTable, words: Sequence[str]) -> None:
        whole = [word.encode() for word in words]
        self.reach: Final = max(map(len, whole), default=1) - 1
        inside = [i for i, data in enumerate(table.data) if any(word in data for word in whole)]
        self._always = np.asarray(inside, np.int32)
        # Where the text ends with the first bytes of a word, what begins with the rest of it.
        self._after = [
            (word[:cut], ids)
            for word in whole
            for cut in range(1, len(word))
            if len(ids := table.starting_with(word[cut:]))
        ]

    def banned(self, tail: bytes) -> list[NDArray[np.int32]]:
        """The ids, in parts, that may not follow a text that ends with `tail`, at least `reach` bytes if it has."""
        return [self._always, *[ids for start, ids in self._after if tail.endswith(start)]]


class _Lead(NamedTuple):
    """A range of first bytes of UTF-8 sequences (Unicode 15, table 3-7)."""

    first: int
    last: int
    continuations: int
    low: int = 0x80  # the range of the second byte; of the later ones it is always 0x80 to 0xBF
    high: int = 0xBF


_LEADS: Final = (
    _Lead(0x00, 0x7F, 0),
    _Lead(0xC2, 0xDF, 1),
    _Lead(0xE0, 0xE0, 2, low=0xA0),
    _Lead(0xE1, 0xEC, 2),
    _Lead(0xED, 0xED, 2, high=0x9F),
    _Lead(0xEE, 0xEF, 2),
    _Lead(0xF0, 0xF0, 3, low=0x90),
    _Lead(0xF1, 0xF3, 3),
    _Lead(0xF4, 0xF4, 3, high=0x8F),
)
_CONTINUATION: Final = (0x80, 0xBF)


class TokenRules:
    """The tokens that are banned after some others.

    The special tokens but eos never come, for no text has them. A byte comes only where UTF-8 has it, so that no
    character is broken; text and eos, only where a character is complete.

    parts:      the ids of bytes that are no characters.
    at_start:   the ids that may not come where a character is complete, as it is after all tokens but `parts`.
    at_opening: those that may not come there where something visible has to.
    """

    def __init__(self, tokenizer: JiebaTokenizer) -> None:
        size = tokenizer.vocab_size
        special = tokenizer.special_tokens.values()
        self.table: Final = TokenTable(tokenizer)
        data = self.table.data
        # A character's token is as good as its byte; words, and characters of several bytes, are always whole.
        self._bytes = {i: data[i][0] for i in range(size) if len(data[i]) == 1}
        self.parts: Final = frozenset(i for i, byte in self._bytes.items() if byte >= 0x80)
        byte_ids = np.asarray([i for i, byte in self._bytes.items()], np.int32)
        values = np.asarray(list(self._bytes.values()), np.int32)
        starts = np.zeros(256, bool)
        for lead in _LEADS:
            starts[lead.first : lead.last + 1] = True
        never = [i for i in special if i != tokenizer.eos_token_id]
        self.at_start: Final = np.concatenate([np.asarray(never, np.int32), byte_ids[~starts[values]]])
        blank = [i for i, text in enumerate(data) if not text.decode("utf-8", "replace").strip()]
        self.at_opening: Final = np.union1d(self.at_start, np.asarray(blank, np.int32)).astype(np.int32)

        self._all_but = {
            (low, high): np.setdiff1d(np.arange(size, dtype=np.int32), byte_ids[(values >= low) & (values <= high)])
            for low, high in {(lead.low, lead.high) for lead in _LEADS}
        }

    def banned(self, written: Sequence[int], opening: bool = False) -> NDArray[np.int32]:
        """The ids that may not follow `written`, of which the last three matter.

        With `opening`, nothing may come that has no visible character, and not eos.
        """
        for back in range(1, min(3, len(written)) + 1):
            byte = self._bytes.get(written[-back])
            if byte is None or byte < 0x80:
                break
            if byte <= _CONTINUATION[1]:
                continue
            lead = next(lead for lead in _LEADS if lead.first <= byte <= lead.last)
            if back <= lead.continuations:
                return self._all_but[(lead.low, lead.high) if back == 1 else _CONTINUATION]
            break
        return self.at_opening if opening else self.at_start

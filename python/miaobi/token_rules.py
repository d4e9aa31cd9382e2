# SPDX-License-Identifier: MIT
"""Which tokens may come next, whatever the model thinks: what is written is always valid Unicode text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from miaobi.tokenizer import JiebaTokenizer

__all__ = ["TokenRules"]


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
    """

    def __init__(self, tokenizer: JiebaTokenizer) -> None:
        size = tokenizer.vocab_size
        special = tokenizer.special_tokens.values()
        data = [tokenizer.token_bytes(i) for i in range(size)]
        # A character's token is as good as its byte; words, and characters of several bytes, are always whole.
        self._bytes = {i: data[i][0] for i in range(size) if len(data[i]) == 1}
        byte_ids = np.asarray([i for i, byte in self._bytes.items()], np.int32)
        values = np.asarray(list(self._bytes.values()), np.int32)
        starts = np.zeros(256, bool)
        for lead in _LEADS:
            starts[lead.first : lead.last + 1] = True
        never = [i for i in special if i != tokenizer.eos_token_id]
        self._at_start = np.concatenate([np.asarray(never, np.int32), byte_ids[~starts[values]]])
        blank = [i for i, text in enumerate(data) if not text.decode("utf-8", "replace").strip()]
        self._at_opening = np.union1d(self._at_start, np.asarray(blank, np.int32)).astype(np.int32)

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
        return self._at_opening if opening else self._at_start

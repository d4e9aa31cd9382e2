# SPDX-License-Identifier: MIT
"""Rules for what is written, as Chinese writers want them: so many characters, verses, acrostics, whole sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from miaobi.token_rules import SENTENCE_ENDS, TokenTable, is_han

__all__ = ["Acrostic", "Constraint", "ExactLength", "LineLength", "LogitsProcessor", "SentenceEnd", "Written"]

_OPENING, _CLOSING = "“‘「『（《", "”’」』）》"
_MOST_BYTES: Final = 4  # of a character: the most tokens that it takes
# First bytes of characters that are Chinese whatever follows, U+5000 to U+9FFF; and the one before, whose second byte
# has to be 0xB8 or more for U+4E00 on.
_HAN_LEADS: Final = tuple(bytes([lead]) for lead in range(0xE4, 0xEA))
_FIRST_SECOND_BYTE: Final = 0xB8


class Written:
    """What a processor sees of the text so far. It is read only.

    table:      the vocabulary as text: `table.data[id]` are the bytes of a token, `table.characters` counts.
    tokens:     the ids since the prompt that the model sees, the last 1024 of them.
    characters: how many characters have begun since the prompt, one of whose bytes are not all there among them.
    tail:       the last bytes of the text, the prompt's among them; at least 256, if it has as many.
    pending:    the bytes of a character that is not complete.
    """

    _MOST_TOKENS: Final = 1024

    def __init__(self, table: TokenTable, prompt: Sequence[int], reach: int) -> None:
        self.table: Final = table
        self.tokens: list[int] = []
        self.characters = 0
        self.pending = b""
        self._reach = max(reach, 256)
        self.tail = b"".join([table.data[token] for token in prompt[-self._reach :]])[-self._reach :]

    def append(self, token: int, seen: bool = True) -> None:
        """Takes in a token, which the model does not see if not `seen`."""
        data = self.table.data[token]
        self.tail = (self.tail + data)[-self._reach :]
        self.characters += int(self.table.characters[token])
        self.pending = _unfinished(self.pending + data)
        if seen:
            self.tokens.append(token)
            if len(self.tokens) > 2 * self._MOST_TOKENS:
                del self.tokens[: self._MOST_TOKENS]

    def fork(self) -> Written:
        """An independent copy."""
        other = Written.__new__(Written)
        vars(other).update(vars(self))
        other.tokens = self.tokens.copy()
        return other


def _unfinished(data: bytes) -> bytes:
    """The bytes at the end of `data` that are the beginning of a character."""
    for back in range(1, min(len(data), 3) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            return data[-back:] if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else b""
        if byte < 0x80:
            break
    return b""


@runtime_checkable
class LogitsProcessor(Protocol):
    """Changes what comes next: any function of the text so far and the logits.

    One processor serves many texts at once, so it keeps nothing between calls.
    """

    def __call__(self, written: Written, logits: NDArray[np.float32]) -> None:
        """Changes logits (V,) in place; -inf rules a token out. Penalties and bans follow, then the draw."""


class Constraint:
    """A processor that also says where a text may end, and what has to come. Constraints are met together."""

    def __call__(self, written: Written, logits: NDArray[np.float32]) -> None:
        """Rules out what would break the constraint."""

    def forced(self, written: Written) -> int | None:
        """The only token that can come next, if the constraint leaves no choice."""
        return None

    def aside(self, written: Written) -> str:
        """Text that is put before the next token without the model seeing it."""
        return ""

    def may_end(self, written: Written) -> bool:
        """Whether the text is complete as far as this constraint goes."""
        return True

    def done(self, written: Written) -> bool:
        """Whether the text has to end here, if all other constraints let it."""
        return False

    @property
    def most_tokens(self) -> int:
        """The most tokens that a text within the constraint can need, 0 for no bound."""
        return 0


class ExactLength(Constraint):
    """Exactly `characters` characters, punctuation and line breaks among them; the model does not end before.

    With `sentence_end` the last one is 。！？ or …, so that the text does not break off.
    """

    def __init__(self, characters: int, sentence_end: bool = False) -> None:
        self.characters: Final = _positive("ExactLength", "characters", characters)
        self.sentence_end: Final = sentence_end

    def __repr__(self) -> str:
        return f"ExactLength({self.characters}, sentence_end={self.sentence_end})"

    def __call__(self, written: Written, logits: NDArray[np.float32]) -> None:
        """Rules out tokens that have more characters than are left."""
        table = written.table
        left = self.characters - written.characters
        if left < 0:
            raise ValueError(f"[constraints] {self!r} contradicts another constraint, which wrote more characters")
        logits[table.characters > left] = -np.inf
        if self.sentence_end and left:
            logits[(table.characters == left) & ~table.ends_sentence] = -np.inf

    def forced(self, written: Written) -> int | None:
        """A full stop where one is due and the vocabulary has none of them as a token."""
        if not self.sentence_end:
            return None
        if written.pending and written.characters == self.characters:
            return written.table.spell("。".encode()[len(written.pending) :])
        if written.characters == self.characters - 1 and not written.pending:
            stops = [written.table.tokenizer.token_id(end) for end in SENTENCE_ENDS]
            return None if any(stop is not None for stop in stops) else written.table.spell("。".encode())
        return None

    def may_end(self, written: Written) -> bool:
        """At the last character."""
        return written.characters == self.characters and not written.pending

    done = may_end

    @property
    def most_tokens(self) -> int:
        """Each character in bytes."""
        return self.characters * _MOST_BYTES


class LineLength(Constraint):
    """Lines of exactly `length` Chinese characters, each followed by punctuation and a line break.

    lines:     how many; the text ends after the last. None goes on until the model or max_new_tokens ends it.
    endings:   what follows the lines, in turn: "，。" puts ， after odd lines and 。 after even ones; "" nothing.
    breaks:    a line break after each line but the last.
    in_sight:  whether the model sees the line breaks. It should if the texts it has read have them; those of a file
               with one document per line do not, and it would not know what to make of them.
    """

    def __init__(
        self,
        length: int,
        lines: int | None = None,
        *,
        endings: str = "，。",
        breaks: bool = True,
        in_sight: bool = False,
    ) -> None:
        self.length: Final = _positive("LineLength", "length", length)
        self.lines: Final = lines if lines is None else _positive("LineLength", "lines", lines)
        self.endings: Final = tuple(endings) or ("",)
        self.breaks: Final = breaks
        self.in_sight: Final = in_sight
        if not breaks and not endings:
            raise ValueError("[constraints] expected LineLength to have endings or breaks, got neither: lines run on")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.length}, lines={self.lines})"

    def head(self, line: int) -> str:
        """The first character of a line, or "" for any."""
        return ""

    def _place(self, characters: int) -> tuple[int, int]:
        """The line, and the place in it, of a character by its number, ending and line break counted in."""
        sizes = [self.length + len(ending) + self.breaks for ending in self.endings]
        rounds, rest = divmod(characters, sum(sizes))
        line = rounds * len(sizes)
        for size in sizes:
            if rest < size:
                break
            rest -= size
            line += 1
        return line, rest

    def _at_break(self, characters: int) -> bool:
        """Whether the next character is a line break."""
        line, place = self._place(characters)
        return self.breaks and place == self.length + len(self.endings[line % len(self.endings)])

    def _next(self, written: Written) -> tuple[int, int]:
        """The line and place of the character that comes next, or is not complete, a break out of sight skipped."""
        characters = written.characters - bool(written.pending)
        return self._place(characters + (not self.in_sight and self._at_break(characters)))

    def _required(self, line: int, place: int) -> str:
        """The character that has to be at a place, or "" where any Chinese one may be."""
        if place == 0:
            return self.head(line)
        return (self.endings[line % len(self.endings)] + "\n")[place - self.length] if place >= self.length else ""

    def __call__(self, written: Written, logits: NDArray[np.float32]) -> None:
        """Leaves words of Chinese characters that do not reach over the end of the line."""
        table = written.table
        if written.pending:
            if written.pending == _HAN_LEADS[0]:
                for byte in range(0x80, _FIRST_SECOND_BYTE):
                    logits[table.starting_with(bytes([byte]))] = -np.inf
            return
        line, place = self._next(written)
        left = self.length - place
        required = self._required(line, place)
        if required:
            allowed = np.zeros(len(logits), bool)
            for token in table.starting_with(required.encode()):
                text = table.texts[token]
                allowed[token] = text == required or (is_han(text[1:]) and len(text) <= left)
            if not any(table.texts[token] == required for token in np.flatnonzero(allowed)):
                allowed[table.spell(required.encode())] = True
        else:
            allowed = table.han & (table.characters <= left)
            for lead in _HAN_LEADS:
                allowed[table.spell(lead)] = True
        allowed[table.tokenizer.eos_token_id] = self.may_end(written)
        logits[~allowed] = -np.inf

    def forced(self, written: Written) -> int | None:
        """Endings, line breaks in sight, and the later bytes of a first character."""
        line, place = self._next(written)
        required = self._required(line, place)
        if not required or (place == 0 and not written.pending) or (required == "\n" and self.may_end(written)):
            return None
        return written.table.spell(required.encode()[len(written.pending) :])

    def aside(self, written: Written) -> str:
        """The line break, where the model does not see it."""
        hidden = not self.in_sight and not written.pending and self._at_break(written.characters)
        return "\n" if hidden else ""

    def may_end(self, written: Written) -> bool:
        """Where a line is complete, or after the last of them."""
        if written.pending or not written.characters:
            return False
        line, place = self._place(written.characters)
        complete = self._at_break(written.characters) if self.breaks else place == 0
        return complete and (self.lines is None or line + self.breaks >= self.lines)

    def done(self, written: Written) -> bool:
        """After the last line."""
        return self.lines is not None and self.may_end(written)

    @property
    def most_tokens(self) -> int:
        """Each character in bytes."""
        if self.lines is None:
            return 0
        return self.lines * (self.length + max(map(len, self.endings)) + self.breaks) * _MOST_BYTES


class Acrostic(LineLength):
    """藏头诗: `heads` are the first characters of the lines, which have `length` characters each.

    endings, breaks, in_sight: as for `LineLength`.
    """

    def __init__(
        self, heads: str, length: int, *, endings: str = "，。", breaks: bool = True, in_sight: bool = False
    ) -> None:
        if not isinstance(heads, str) or not heads or not all(head.isalnum() for head in heads):
            raise ValueError(
                f"[constraints] expected heads of Acrostic to be the first characters of its lines, got {heads!r:.80}"
            )
        super().__init__(length, len(heads), endings=endings, breaks=breaks, in_sight=in_sight)
        self.heads: Final = heads

    def __repr__(self) -> str:
        return f"Acrostic({self.heads!r}, {self.length})"

    def head(self, line: int) -> str:
        """The first character of a line."""
        return self.heads[line] if line < len(self.heads) else ""


class SentenceEnd(Constraint):
    """Ends after the first sentence that is complete when there are at least `minimum` characters.

    A sentence ends with 。！？ or …, and with the quotation mark or bracket that closes after it.
    """

    def __init__(self, minimum: int = 1) -> None:
        self.minimum: Final = _positive("SentenceEnd", "minimum", minimum)

    def __repr__(self) -> str:
        return f"SentenceEnd({self.minimum})"

    def done(self, written: Written) -> bool:
        """At the end of a sentence."""
        if written.characters < self.minimum or written.pending:
            return False
        tail = written.tail.decode("utf-8", "ignore")
        sentence = tail.rstrip(_CLOSING)
        if not sentence.endswith(SENTENCE_ENDS):
            return False
        still_open = sum((c in _OPENING) - (c in _CLOSING) for c in tail[-written.characters :])
        return still_open <= 0 or len(tail) > len(sentence)


def _positive(owner: str, name: str, value: object) -> int:
    """`value` if it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"[constraints] expected {name} of {owner} to be an integer of at least 1, got {value!r:.80}")
    return value

# SPDX-License-Identifier: MIT
"""Choosing the characters and words of a vocabulary from training texts."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from miaobi import _core
from miaobi.segmenter import Segmenter, default_segmenter
from miaobi.unicode import encode_utf8

__all__ = ["Counts", "Coverage", "Progress", "choose_tokens", "count_texts", "forecast"]

Progress = Callable[[int, int], None]  # (characters cut so far, characters to cut)

# A longer "word" is a run of Latin letters or a drawn line; as one token it would help nobody.
_MAX_WORD_CHARS = 32
# Lines are cut as they are up to this length, longer ones in parts: it bounds what the sample holds at once.
_MAX_PIECE_CHARS = 10_000
# Characters come before words until they cover this share of the text. What is left falls to bytes, three for one
# character, and a model that has to spell them writes broken ones.
_CHARACTER_COVERAGE = 0.9995
# ... but in a small vocabulary words keep a quarter of the room.
_CHARACTER_ROOM = 0.75
# Frequencies from 2,500 characters per vocabulary entry, and no fewer than 20 million, order the words as the whole
# text does but for the rarest; they are cut in a few seconds, and held in 40 MB.
_MIN_SAMPLE_CHARS = 20_000_000
_SAMPLE_CHARS_PER_TOKEN = 2_500
# Cut at once, on all threads, between two reports of progress: a tenth of a second.
_BATCH_CHARS = 1_000_000


class Coverage(NamedTuple):
    """What a vocabulary makes of some texts; special tokens are not counted."""

    characters: int
    tokens: int
    character_tokens: int  # tokens that are a single character
    byte_tokens: int  # tokens that are a single byte
    byte_characters: int  # characters that fell back to bytes

    @property
    def tokens_per_character(self) -> float:
        """Tokens for each character of text; 0 for no text."""
        return self.tokens / max(self.characters, 1)

    @property
    def character_share(self) -> float:
        """Share of the tokens that are single characters, 0 to 1."""
        return self.character_tokens / max(self.tokens, 1)

    @property
    def byte_share(self) -> float:
        """Share of the text's characters that fell back to bytes, 0 to 1."""
        return self.byte_characters / max(self.characters, 1)


class Counts(NamedTuple):
    """How often each character came in all texts, and each longer word in the sample of `sampled` characters."""

    characters: Counter[str]
    words: Counter[str]
    sampled: int


def count_texts(
    texts: Iterable[str],
    vocab_size: int,
    *,
    segmenter: Segmenter | None = None,
    hmm: bool = False,
    sample_chars: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Counts:
    """Counts the characters of all `texts`, and the words of a random sample of lines of `sample_chars` characters.

    The texts are read once and only the sample is held, so they may be a generator over files of any size. None
    takes 2,500 characters per vocabulary entry, at least 20 million; smaller texts are counted whole. The same texts
    and `seed` give the same counts. Raises TypeError if a text is not a str, and
    ValueError if one is not valid Unicode.
    """
    if sample_chars is None:
        sample_chars = max(_MIN_SAMPLE_CHARS, _SAMPLE_CHARS_PER_TOKEN * vocab_size)
    counter = _core.Counter((segmenter or default_segmenter()).core, hmm, _MAX_WORD_CHARS)
    pieces = Counter(_sample_pieces(texts, counter, sample_chars, seed))  # a repeated line is cut once
    total = sum(len(piece) for piece in pieces)
    done = counted = 0
    batch: list[str] = []
    for piece in pieces:
        batch.append(piece)
        done += len(piece)
        if done - counted >= _BATCH_CHARS or done == total:
            counter.add_words(batch, [pieces[piece] for piece in batch])
            batch, counted = [], done
            if progress is not None:
                progress(done, total)
    sampled = sum(len(piece) * times for piece, times in pieces.items())
    return Counts(Counter(counter.characters()), Counter(counter.words()), sampled)


def _sample_pieces(texts: Iterable[str], counter: _core.Counter, limit: int, seed: int) -> list[str]:
    """Lines of all `texts`, each with the same chance, of `limit` characters in total; counts the characters of all.

    Every line draws a number, and those with the smallest are kept: a sample without knowing how much will come.
    """
    if isinstance(texts, str):
        raise TypeError("[tokenizer] expected a list or iterator of texts, got one str; wrap it: [text]")
    draw = random.Random(seed).random
    heap: list[tuple[float, int, str]] = []  # (-number, order, piece): the largest number is first to go
    kept = order = 0
    bound = 1.0
    for number_of_text, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"[tokenizer] expected texts of type str, got {type(text).__name__}; decode bytes first")
        encode_utf8(text, f"text {number_of_text}")
        counter.add_characters(text)
        for line in text.splitlines(keepends=True):
            for start in range(0, len(line), _MAX_PIECE_CHARS):
                number = draw()
                if number >= bound:
                    continue
                piece = line[start : start + _MAX_PIECE_CHARS]
                heapq.heappush(heap, (-number, order, piece))
                order += 1
                kept += len(piece)
                while kept > limit:
                    negative, _, dropped = heapq.heappop(heap)
                    kept -= len(dropped)
                    bound = -negative
    return [piece for _, _, piece in heap]


def choose_tokens(counts: Counts, room: int, min_frequency: int = 1, idioms: frozenset[str] = frozenset()) -> list[str]:
    """At most `room` tokens: characters, then words, each by falling frequency and then by code points.

    Characters are taken until they cover 99.95% of the text or three quarters of the room; then the remaining
    characters and the words compete by frequency, but `idioms` come before others. Fewer than `room` are returned if
    no more come at least `min_frequency` times.
    """
    rank = [(-count, c) for c, count in sorted(counts.characters.items()) if count >= min_frequency]
    rank.sort()
    target = _CHARACTER_COVERAGE * sum(counts.characters.values())
    first = covered = 0
    while first < min(len(rank), int(_CHARACTER_ROOM * room)) and covered < target:
        covered -= rank[first][0]
        first += 1
    rest = rank[first:] + [(-count, word) for word, count in counts.words.items() if count >= min_frequency]
    rest.sort(key=lambda entry: (entry[1] not in idioms, entry))
    chosen = rank[:first] + rest[: room - first]
    return [token for _, token in sorted(chosen, key=lambda entry: (len(entry[1]) > 1, entry))]


def forecast(counts: Counts, tokens: list[str]) -> Coverage:
    """What a vocabulary of `tokens` makes of the texts that were counted, without encoding them again.

    Exact if the words were counted in all texts; of a sample, as good as that.
    """
    vocabulary = set(tokens)
    scale = sum(counts.characters.values()) / max(counts.sampled, 1)  # words are those of the sample
    byte_tokens = byte_characters = character_tokens = 0.0
    rest: dict[str, float] = dict(counts.characters)
    words = 0.0
    for word, count in counts.words.items():
        if word in vocabulary:
            words += count * scale
            for character in word:
                rest[character] -= count * scale
    for character, left in rest.items():
        if character in vocabulary:
            character_tokens += max(left, 0.0)
        else:
            byte_characters += max(left, 0.0)
            byte_tokens += max(left, 0.0) * len(character.encode())
    total = sum(counts.characters.values())
    return Coverage(
        total,
        round(words + character_tokens + byte_tokens),
        round(character_tokens),
        round(byte_tokens),
        round(byte_characters),
    )

# SPDX-License-Identifier: MIT
"""What a tokenizer makes of a text, for people to look at: each token, where it came from, how common its word is."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Literal

from miaobi.tokenizer import SPECIAL_TOKENS, JiebaTokenizer

__all__ = ["Explanation", "TokenOrigin", "explain"]


@dataclass(frozen=True)
class TokenOrigin:
    """One token of a text.

    `origin` says why it is this one: "word", what the segmenter cut is in the vocabulary; "character", the word is not,
    but this character of it; "byte", the character is not either, and this is a byte of its UTF-8. `text` are the
    characters [start, end) that it stands for, `word` is what the segmenter cut there, and `frequency` how often
    the dictionary says that word comes; None if it has no such word.
    """

    id: int
    token: str
    origin: Literal["word", "character", "byte"]
    text: str
    start: int
    end: int
    word: str
    frequency: int | None


@dataclass(frozen=True)
class Explanation:
    """The cut of a text, and its tokens in order."""

    text: str
    words: list[str]
    tokens: list[TokenOrigin]

    def to_html(self) -> str:
        """A page of its own: the text with its words side by side, and under each the tokens; no script, no network."""
        cells = []
        tokens = iter(self.tokens)
        token = next(tokens, None)
        end = 0
        for word in self.words:
            end += len(word)
            parts = []
            while token is not None and token.end <= end:
                parts.append(f'<span class="{token.origin}">{html.escape(_show(token.token))}<i>{token.id}</i></span>')
                frequency = token.frequency
                token = next(tokens, None)
            title = f"{len(parts)} tokens, " + (
                "not in the dictionary" if frequency is None else f"frequency {frequency:,}"
            )
            cells.append(f'<div title="{title}"><b>{html.escape(_show(word))}</b>{"".join(parts)}</div>')
        counts = {
            origin: sum(token.origin == origin for token in self.tokens) for origin in ("word", "character", "byte")
        }
        legend = ", ".join(f'<span class="{origin}">{count:,} {origin}</span>' for origin, count in counts.items())
        head = f"{len(self.text):,} characters, {len(self.words):,} words, {len(self.tokens):,} tokens: {legend}"
        return _PAGE.replace("HEAD", head).replace("BODY", "\n".join(cells))


_PAGE = """<!DOCTYPE html>
<html lang="zh"><meta charset="utf-8"><title>miaobi: tokens</title>
<style>
body { font: 16px sans-serif; margin: 2em }
main { display: flex; flex-wrap: wrap; gap: 6px }
div { border: 1px solid #ccc; border-radius: 4px; padding: 4px; text-align: center }
b { display: block; white-space: pre; font-weight: normal; font-size: 1.2em }
span { border-radius: 3px; padding: 0 4px; margin: 1px; font-size: .8em; display: inline-block }
i { color: #666; margin-left: 4px; font-style: normal; font-size: .8em }
.word { background: #d9f2d9 } .character { background: #fff0c2 } .byte { background: #f8d0d0 }
</style>
<p>HEAD</p>
<main>
BODY
</main></html>
"""


def explain(tokenizer: JiebaTokenizer, text: str) -> Explanation:
    """How `tokenizer` cuts and encodes `text`. Raises as `JiebaTokenizer.encode`."""
    ids, offsets = tokenizer.encode(text, return_offsets=True)
    words = tokenizer.segmenter.segment(text, tokenizer.hmm)
    tokens: list[TokenOrigin] = []
    first_text = len(SPECIAL_TOKENS) + 256
    word, word_end, left = "", 0, iter(words)
    for token_id, (start, end) in zip(ids, offsets, strict=True):
        while word_end <= start:
            word = next(left)
            word_end += len(word)
        frequency = tokenizer.segmenter.frequency(word)
        origin: Literal["word", "character", "byte"] = "character"
        if token_id < first_text:
            origin = "byte"
        elif end - start == len(word):
            origin = "word"
        tokens.append(
            TokenOrigin(
                token_id, tokenizer.tokens[token_id], origin, text[start:end], start, end, word, frequency or None
            )
        )
    return Explanation(text, words, tokens)


def _show(text: str) -> str:
    """`text` with its white space to be seen."""
    return text.replace(" ", "␣").replace("\r", "␍").replace("\n", "␊").replace("\t", "␉")

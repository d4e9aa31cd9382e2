# SPDX-License-Identifier: MIT
"""`miaobi tokenizer`: train a vocabulary, report what it would be, explain what it makes of a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from miaobi.cli import options as opt

if TYPE_CHECKING:
    from rich.console import Console

    from miaobi.tokenizer import JiebaTokenizer
    from miaobi.tokenizer_train import Counts

__all__ = ["explain", "report", "train"]

_FIXED_TOKENS = 263  # special tokens and bytes

Files = Annotated[list[Path], typer.Argument(metavar="FILES...", help="Text: .txt, .jsonl or .json.")]
Size = Annotated[int, typer.Option("--vocab-size", "-v", help="Tokens in the vocabulary.")]
Hmm = Annotated[bool, typer.Option("--hmm", help="Let jieba guess words that its dictionary lacks.")]
UserDict = Annotated[
    Path | None, typer.Option("--user-dict", help='Words of your own, "word [frequency] [tag]" in each line.')
]
Idioms = Annotated[Path | None, typer.Option(help="Idioms that are never cut: one in each line, or a JSON list.")]


def train(
    files: Files,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tokenizer.")],
    vocab_size: Size = 8000,
    hmm: Hmm = False,
    user_dict: UserDict = None,
    idioms: Idioms = None,
) -> None:
    """Learn a vocabulary from text files, which may be larger than memory, and save it as a tokenizer."""
    from miaobi.cli.train_view import make_console, working
    from miaobi.corpus import read_corpus
    from miaobi.tokenizer import JiebaTokenizer

    console = make_console()
    with working(console, "learning the vocabulary") as progress:
        tokenizer = JiebaTokenizer.train(
            (f"{document}\n" for document in read_corpus(files)),
            vocab_size,
            shrink=True,
            hmm=hmm,
            user_dict=user_dict or (),
            idioms=idioms or (),
            progress=progress,
        )
    tokenizer.save(out)
    if tokenizer.vocab_size < vocab_size:
        console.print(f"The text supports {tokenizer.vocab_size:,} tokens, and not {vocab_size:,}.")
    console.print(f"The tokenizer is in {out}: {tokenizer.vocab_size:,} tokens, hash {tokenizer.hash[:12]}. Next:")
    console.print(f'  miaobi tokenizer explain {out} "今天天气很好"', style="bold")


def report(
    files: Files,
    vocab_size: Size = 8000,
    hmm: Hmm = False,
    user_dict: UserDict = None,
    idioms: Idioms = None,
) -> None:
    """Show, before training, what vocabularies of several sizes would make of text files."""
    from miaobi.cli.train_view import make_console, working
    from miaobi.corpus import read_corpus
    from miaobi.segmenter import Segmenter, read_idioms
    from miaobi.tokenizer_train import count_texts

    console = make_console()
    segmenter = Segmenter(user_dict)
    kept = read_idioms(idioms) if idioms else []
    segmenter.keep_whole(kept)
    with working(console, "counting words") as progress:
        texts = (f"{document}\n" for document in read_corpus(files))
        counts = count_texts(texts, vocab_size, segmenter=segmenter, hmm=hmm, progress=progress)
    _show_report(console, counts, vocab_size, frozenset(kept))


def _show_report(console: Console, counts: Counts, vocab_size: int, idioms: frozenset[str]) -> None:
    from rich.table import Table

    from miaobi.tokenizer_train import choose_tokens, forecast

    characters = sum(counts.characters.values())
    console.print(
        f"{characters:,} characters, {len(counts.characters):,} different; "
        f"{len(counts.words):,} different words of two or more"
    )
    table = Table("vocabulary", "tokens/character", "characters covered", "tokens of one character", "spelt in bytes")
    largest = _FIXED_TOKENS + len(counts.characters) + len(counts.words)
    for size in dict.fromkeys(min(vocab_size * factor // 4, largest) for factor in (1, 2, 4, 8, 16)):
        if size <= _FIXED_TOKENS:
            continue
        coverage = forecast(counts, choose_tokens(counts, size - _FIXED_TOKENS, idioms=idioms))
        table.add_row(
            f"{size:,}",
            f"{coverage.tokens_per_character:.3f}",
            f"{1 - coverage.byte_share:.3%}",
            f"{coverage.character_share:.1%}",
            f"{coverage.byte_share:.3%}",
            style="bold" if size == vocab_size else None,
        )
    console.print(table)
    chosen = choose_tokens(counts, max(vocab_size - _FIXED_TOKENS, 1), idioms=idioms)
    longest = sorted(chosen, key=lambda token: (-len(token), -counts.words[token]))[:10]
    console.print("longest words: " + opt.visible("  ".join(longest)))
    if _FIXED_TOKENS + len(chosen) < vocab_size:
        console.print(f"The text supports no more than {_FIXED_TOKENS + len(chosen):,} tokens.")


def explain(
    folder: opt.ModelFolder,
    text: Annotated[str, typer.Argument(help="The text.")],
    html: Annotated[Path | None, typer.Option(help="Write a page to look at in a browser, too.")] = None,
) -> None:
    """Show how a text is cut, each token's id, and whether it is a word, a character or a byte."""
    from rich.table import Table

    from miaobi.cli.train_view import make_console
    from miaobi.files import write_atomic
    from miaobi.token_explain import explain as explain_text
    from miaobi.tokenizer import JiebaTokenizer

    tokenizer: JiebaTokenizer = JiebaTokenizer.load(folder)
    explanation = explain_text(tokenizer, text)
    console = make_console()
    console.print(opt.visible(" / ".join(explanation.words)).replace("\n", "↵"), soft_wrap=True)
    table = Table("id", "token", "origin", "word", "frequency in the dictionary")
    styles = {"word": "green", "character": "yellow", "byte": "red"}
    for token in explanation.tokens:
        frequency = "" if token.frequency is None else f"{token.frequency:,}"
        shown = [opt.visible(piece).replace("\n", "↵") for piece in (token.token, token.word)]
        table.add_row(str(token.id), shown[0], token.origin, shown[1], frequency, style=styles[token.origin])
    console.print(table)
    if html is not None:
        write_atomic(html, explanation.to_html().encode())
        console.print(f"The page is {html}.")

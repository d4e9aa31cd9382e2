# SPDX-License-Identifier: MIT
"""`miaobi eval`: how well a model predicts the text in a file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from miaobi.cli import options as opt

__all__ = ["evaluate"]


def evaluate(
    model: opt.ModelFolder,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Text the model was not trained on: .txt, .json or .jsonl.")
    ],
    document_separator: Annotated[
        str, typer.Option(metavar="line|blank", help="What ends a document of a .txt file: each line, or a blank one.")
    ] = "line",
    text_field: Annotated[str, typer.Option(help="Field of JSON objects that has the text.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    threads: opt.Threads = None,
) -> None:
    """Measure how well a model predicts a text: perplexity and bits per character; lower is better.

    Perplexity depends on the vocabulary; bits per character can be compared between all models. Each document is
    predicted from its beginning to its end token, as in training.
    """
    if document_separator not in ("line", "blank"):
        raise ValueError(f"expected --document-separator line or blank, got {document_separator!r}")
    llm = opt.open_llm(model, threads)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from miaobi.corpus import read_corpus
    from miaobi.scoring import Score, score_documents

    corpus = read_corpus(files, separator="blank" if document_separator == "blank" else "line", text_field=text_field)
    tokenizer = llm.tokenizer
    byte_characters = 0

    def documents() -> Iterator[tuple[list[int], int]]:
        nonlocal byte_characters
        for text in corpus.documents:
            ids = tokenizer.encode(text)
            byte_characters += tokenizer.coverage([ids]).byte_characters
            yield [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], len(text)

    total = Score(0.0, 0, 0)
    begin = time.perf_counter()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[bits]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task("Reading", total=corpus.characters, bits="")
        for score in score_documents(llm.model, documents()):
            total += score
            bar.update(task, completed=total.characters, bits=f"{total.bits_per_character:.3f} bits per character")
    seconds = time.perf_counter() - begin
    if as_json:
        result = {
            "model": str(model),
            "files": [str(path) for path in files],
            "documents": len(corpus.documents),
            "characters": total.characters,
            "tokens": total.tokens,
            "nats": total.nats,
            "perplexity": total.perplexity,
            "bits_per_character": total.bits_per_character,
            "seconds": seconds,
        }
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    typer.echo(f"documents           {len(corpus.documents):,}")
    typer.echo(f"characters          {total.characters:,}")
    share = (total.tokens - len(corpus.documents)) / total.characters
    typer.echo(
        f"tokens              {total.tokens:,} ({share:.2f} a character; {byte_characters:,} fell back to bytes)"
    )
    typer.secho(f"perplexity          {total.perplexity:.2f}", bold=True)
    typer.secho(f"bits per character  {total.bits_per_character:.3f}", bold=True)
    typer.echo(f"time                {seconds:.1f} s, {total.tokens / seconds:,.0f} tokens/s")

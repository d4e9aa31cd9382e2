# SPDX-License-Identifier: MIT
"""`miaobi eval`: how well a model predicts the text in a file."""

from __future__ import annotations

import heapq
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from miaobi.cli import options as opt

__all__ = ["evaluate"]

_SHOWN_CHARS: Final = 60  # of a document


def evaluate(
    model: opt.ModelFolder,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Text the model was not trained on: .txt, .json or .jsonl.")
    ],
    document_separator: Annotated[
        str, typer.Option(metavar="line|blank", help="What ends a document of a .txt file: each line, or a blank one.")
    ] = "line",
    text_field: Annotated[str, typer.Option(help="Field of JSON objects that has the text.")] = "text",
    format: Annotated[
        str, typer.Option(metavar="text|chat", help="Measure all of the text, or of dialogues the answers alone.")
    ] = "text",
    worst: Annotated[int, typer.Option(metavar="N", help="Show the N documents that it predicts worst.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    threads: opt.Threads = None,
) -> None:
    """Measure how well a model predicts a text: perplexity, bits per character, and how often it is right.

    Of perplexity and bits, lower is better. Perplexity depends on the vocabulary; bits per character can be compared
    between all models. Each document is predicted from its beginning to its end token, as in training.
    """
    if document_separator not in ("line", "blank"):
        raise ValueError(f"expected --document-separator line or blank, got {document_separator!r}")
    if format not in ("text", "chat"):
        raise ValueError(f"expected --format text or chat, got {format!r}")
    if worst < 0:
        raise ValueError(f"expected --worst of 0 or more, got {worst}")
    llm = opt.open_llm(model, threads)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from miaobi.batches import encode_documents
    from miaobi.cli.train_view import one_line
    from miaobi.corpus import read_corpus
    from miaobi.scoring import Score, TokenDocument, score_documents

    corpus = read_corpus(
        files,
        separator="blank" if document_separator == "blank" else "line",
        text_field=text_field,
        format="chat" if format == "chat" else "text",
    )
    tokenizer = llm.tokenizer
    byte_characters = 0

    def documents() -> Iterator[TokenDocument]:
        nonlocal byte_characters
        for document in encode_documents(corpus, tokenizer, llm.chat_template):
            byte_characters += tokenizer.coverage([map(int, document.ids)]).byte_characters
            yield document

    total = Score(0.0, 0, 0)
    hardest: list[tuple[float, int]] = []  # bits per character and document: the smallest of those kept comes first
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
        for i, score in enumerate(score_documents(llm.model, documents())):
            total += score
            if worst:
                heapq.heappush(hardest, (score.bits_per_character, -i))
                if len(hardest) > worst:
                    heapq.heappop(hardest)
            bar.update(task, completed=total.characters, bits=f"{total.bits_per_character:.3f} bits per character")
    seconds = time.perf_counter() - begin
    places = {-i for _, i in hardest}
    texts = {
        i: document if isinstance(document, str) else llm.chat_template.render(document)
        for i, document in enumerate(corpus)
        if i in places
    }
    ranked = [{"document": -i + 1, "bits_per_character": bits, "text": texts[-i]} for bits, i in sorted(hardest)[::-1]]
    if as_json:
        result = {
            "model": str(model),
            "files": [str(path) for path in files],
            "documents": len(corpus),
            "characters": total.characters,
            "tokens": total.tokens,
            "nats": total.nats,
            "perplexity": total.perplexity,
            "bits_per_character": total.bits_per_character,
            "accuracy": total.accuracy,
            "worst": ranked,
            "seconds": seconds,
        }
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    typer.echo(f"documents           {len(corpus):,}")
    typer.echo(f"characters          {total.characters:,}")
    share = (total.tokens - len(corpus)) / total.characters
    typer.echo(
        f"tokens              {total.tokens:,} ({share:.2f} a character; {byte_characters:,} fell back to bytes)"
    )
    typer.secho(f"perplexity          {total.perplexity:.2f}", bold=True)
    typer.secho(f"bits per character  {total.bits_per_character:.3f}", bold=True)
    typer.secho(f"next token right    {total.accuracy:.1%}", bold=True)
    typer.echo(f"time                {seconds:.1f} s, {total.tokens / seconds:,.0f} tokens/s")
    if ranked:
        typer.echo("predicted worst, in bits per character:")
    for entry in ranked:
        text = one_line(str(entry["text"]))
        shown = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
        typer.echo(f"  {entry['bits_per_character']:6.2f}  document {entry['document']:,}: {shown}")

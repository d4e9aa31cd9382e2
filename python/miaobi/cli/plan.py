# SPDX-License-Identifier: MIT
"""`miaobi plan`: what this machine can train on a text in some time."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Final

import typer

from miaobi.cli import options as opt

__all__ = ["plan"]

_SAMPLE_CHARS: Final = 200_000  # tell how many tokens a character takes, in about a second


def plan(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Text to learn from: .txt, .json or .jsonl.")],
    minutes: Annotated[float, typer.Option(help="Time to train.")] = 60.0,
    vocab_size: Annotated[int, typer.Option(help="Number of tokens.")] = 8000,
    document_separator: Annotated[
        str, typer.Option(metavar="line|blank", help="What ends a document of a .txt file: each line, or a blank one.")
    ] = "line",
    text_field: Annotated[str, typer.Option(help="Field of JSON objects that has the text.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    threads: opt.Threads = None,
) -> None:
    """Tell what this machine can train on a text in some time, and which size of model is best for it.

    It measures the machine for five seconds and looks at the text; nothing is written. `miaobi train --minutes` without
    --preset does the same and takes the best.
    """
    if document_separator not in ("line", "blank"):
        raise ValueError(f"expected --document-separator line or blank, got {document_separator!r}")
    if not 0 < minutes < 1e6:
        raise ValueError(f"expected --minutes above 0, got {minutes:g}")
    opt.set_threads(threads)
    from rich.console import Console
    from rich.table import Table

    from miaobi.cli.train_view import duration, size
    from miaobi.corpus import read_corpus
    from miaobi.plan import MEASURED, Machine, plans
    from miaobi.tokenizer import JiebaTokenizer

    console = Console(highlight=False, emoji=False, markup=False)
    with Console(stderr=True).status("Looking at the text and the machine ..."):
        corpus = read_corpus(
            files, separator="blank" if document_separator == "blank" else "line", text_field=text_field
        )
        sample: list[str] = []
        step = max(corpus.characters // _SAMPLE_CHARS, 1)
        for i, document in enumerate(corpus):
            if i % step == 0 and isinstance(document, str):
                sample.append(document)
        tokenizer = JiebaTokenizer.train(sample, vocab_size, shrink=True)
        ratio = tokenizer.coverage(sample).tokens_per_character
        # The whole text supports a larger vocabulary than the sample.
        size_of_vocabulary = vocab_size if step > 1 else tokenizer.vocab_size
        machine = Machine.measure()
    tokens = int(corpus.characters * ratio) + len(corpus)
    found = plans(machine, size_of_vocabulary, tokens, minutes)
    best = min(found, key=lambda entry: entry.loss)
    command = f"miaobi train {shlex.join(map(str, files))} --out my-model --preset {best.name} --minutes {minutes:g}"
    if as_json:
        rows = [{**row._asdict(), "preset": row.name} for row in found]
        result = {"tokens": tokens, "threads": machine.threads, "best": best.name, "plans": rows, "command": command}
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    typer.echo(f"text       {len(corpus):,} documents, {corpus.characters:,} characters, about {tokens:,} tokens")
    speeds = " and ".join(
        f"{rate / 1e9:,.0f} GFLOP/s with {name}" for (_, rate), name in zip(machine.speeds, MEASURED, strict=True)
    )
    typer.echo(f"machine    {machine.threads} threads, training at {speeds}")
    typer.echo(f"time       {duration(60 * minutes)}\n")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("size", "parameters", "tokens/s", "steps", "through the text", "memory", "model", "expected loss"):
        table.add_column(name, justify="left" if name == "size" else "right")
    for row in found:
        table.add_row(
            f"{row.name} *" if row is best else row.name,
            f"{row.parameters:,}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.steps:,}",
            f"{row.passes:,.1f} x",
            size(row.memory),
            size(row.model_size),
            f"{row.loss:.2f}",
            style="bold" if row is best else None,
        )
    console.print(table)
    typer.echo("\nThe loss is a law's, made for larger models: it ranks the sizes, no more.")
    if best.is_text_too_small:
        typer.echo(
            f"The text is too small for {minutes:g} minutes: it would be read {best.passes:,.0f} times and learnt by "
            f"heart. Give more text, or less time: {minutes * 40 / best.passes:.1g} minutes are enough."
        )
    else:
        per_hour = 60 * best.passes / minutes
        typer.echo(f"{best.name}: {best.sentence()}; {per_hour:.1f} times in an hour, {size(best.disk)} of disk.")
    typer.echo("Next:")
    typer.secho(f"  {command}", bold=True)

# SPDX-License-Identifier: MIT
"""`miaobi explain`: what a model makes of a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from miaobi.cli import options as opt

__all__ = ["explain"]


def explain(
    model: opt.ModelFolder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The sentence.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page.")] = Path("explain.html"),
    threads: opt.Threads = None,
) -> None:
    """Show what a model makes of a sentence: how likely each token was, and what each attention head looks at.

    The page needs no network to look at; the probabilities are printed, too.
    """
    llm = opt.open_llm(model, threads)
    from rich.console import Console
    from rich.table import Table

    from miaobi.explain import explain as explain_text
    from miaobi.explain import explanation_page
    from miaobi.files import write_atomic

    found = explain_text(llm, text)
    write_atomic(out, explanation_page(str(model), text, found).encode())
    grid = Table(box=None, padding=(0, 2, 0, 0))
    grid.add_column("token")
    grid.add_column("probability", justify="right")
    grid.add_column("likeliest there")
    for token in found.tokens:
        others = "  ".join(f"{opt.visible(name)} {share:.0%}" for name, share in token.alternatives[:3])
        style = "green" if token.text == token.alternatives[0][0] else ""
        grid.add_row(opt.visible(token.text), token.percent, others, style=style)
    Console(highlight=False, emoji=False, markup=False).print(grid)
    typer.echo(f"{found.bits:.1f} bits, {found.bits / len(text):.2f} a character")
    typer.echo(f"What each head looks at is in {out}")

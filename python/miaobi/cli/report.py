# SPDX-License-Identifier: MIT
"""`miaobi report`: a training run as a page, while it goes on or after it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of a run, which may still go on.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The page.", show_default="DIR/report.html")
    ] = None,
) -> None:
    """Show a training run as one page: curves, speed, samples over time. It needs no network to look at.

    The page of a run that goes on is written anew each time this is called; a browser loads it again by itself.
    """
    from miaobi.train_report import write_report

    typer.echo(f"The page is in {write_report(run, out)}")

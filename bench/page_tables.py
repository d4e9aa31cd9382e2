# SPDX-License-Identifier: MIT
"""Tables, times and ratios as the performance page writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown; columns of numbers to the right."""
    body = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(head, *body, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numbers = [
        i > 0 and all(cell[:1].isdigit() or cell == "-" for cell in column[1:]) for i, column in enumerate(columns)
    ]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numbers, strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-:"[n]) for w, n in zip(widths, numbers, strict=True)) + "|"
    return "\n".join([line(head), rule, *map(line, body)]) + "\n"


def short(seconds: float) -> str:
    """A time with three digits."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def sample(row: Row, side: str) -> str:
    """The median of a side, with the number of calls where they are few."""
    values = row["sides"].get(side)
    if values is None:
        return "-"
    return short(values["median"]) + (f" (n={values['n']})" if values["n"] < 20 else "")


def better(row: Row) -> str:
    return f"{row['ratios'][row['best_peer']]:.2f}"


def by_threads(cases: Sequence[Row]) -> list[int]:
    return sorted({row["threads"] for row in cases})


def threads_text(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"

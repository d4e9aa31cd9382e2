# SPDX-License-Identifier: MIT
"""What the page of results says of factors that cannot be reached: what they would need, beside the machine's peak."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from page_tables import Row, threads_text


def section(cases: Sequence[Row], factors: Mapping[int, float], peak: Callable[[str, int], float | None]) -> str:
    """What the factors over the better peer would need, by the number of threads."""
    lines = [above_peak(cases, threads, factor, peak("float32", threads)) for threads, factor in factors.items()]
    return "\nHow far from the limit:\n\n" + "".join(lines) if any(lines) else ""


def two_threads(cases: Sequence[Row], enough: float = 1.75) -> str:
    """What a second thread gives, line by line, where there is work enough to share, and what it gives the peers."""
    rows = {(row["shape"], row["form"], row["threads"]): row for row in cases}
    large = [key for key in rows if key[2] == 2 and min(map(int, key[0].split("x"))) >= 256]
    pairs = [(rows[shape, form, 1], rows[shape, form, 2]) for shape, form, _ in large if (shape, form, 1) in rows]
    if not pairs:
        return ""

    def gains(side: str) -> list[float]:
        return [one["sides"][side]["median"] / two["sides"][side]["median"] for one, two in pairs]

    def text(side: str) -> str:
        found = gains(side)
        return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}, {enough:g} and more on " + (
            f"{sum(gain >= enough for gain in found)} of {len(found)} lines)"
        )

    return (
        "\nWhat a second thread gives, of products with all sides from 256 on, median and range: miaobi "
        f"{text('miaobi')},\nNumPy {text('numpy')},\nPyTorch {text('torch')}. One thread and two are measured one "
        "after the other, on a clock that moves.\n"
    )


def above_peak(cases: Sequence[Row], threads: int, factor: float, peak: float | None) -> str:
    """How many of the lines would need more than the peak, in GFLOP/s, to be `factor` times as fast as the better peer.

    The share of the peak that the peers reach is that of the better one of each line.
    """
    peers = [row["gflops"][row["best_peer"]] for row in cases if row["threads"] == threads and "best_peer" in row]
    if peak is None or not peers:
        return ""
    beyond = sum(factor * speed > peak for speed in peers)
    return (
        f"- {threads_text(threads)}: the better peer runs at {min(peers) / peak:.0%} to {max(peers) / peak:.0%} of the "
        f"peak of {peak:.0f} GFLOP/s. {factor:g} times as fast would be above the peak on {beyond} of {len(peers)} "
        "lines.\n"
    )


def saved_by_fusion(cases: Sequence[Row], threads: int, bandwidth: float | None) -> str:
    """What not writing and reading f(X) can save at most: its bytes, both ways, at `bandwidth` in GB/s.

    Only of forward passes: their product is all that is computed beside it.
    """
    rows = [row for row in cases if row["threads"] == threads and row["pass"] == "forward"]
    if bandwidth is None or not rows:
        return ""
    shares = []
    for row in rows:
        count, inputs, _ = map(int, row["shape"].split("x"))
        moved = 2 * 4 * count * inputs / (bandwidth * 1e9)
        shares.append(moved / row["sides"]["miaobi"]["median"])
    return (
        f"- {threads_text(threads)}: writing f(X) and reading it again, which fusion saves, takes {min(shares):.1%} to "
        f"{max(shares):.1%} of the time of a forward pass, even if all of it went to memory at {bandwidth:.0f} GB/s. "
        "1.15 times as fast would need 13%.\n"
    )

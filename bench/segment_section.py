# SPDX-License-Identifier: MIT
"""The part of docs/performance.md about the segmenter, the tokenizer and its cache, from compare_segment.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def mode(row: dict[str, Any]) -> str:
    return "HMM" if row["hmm"] else "no HMM"


def segment_section(found: dict[str, Any], table: Callable[..., str], short: Callable[[float], str]) -> str:
    text = (
        f"### Cutting text\n\n`python bench/compare_segment.py`, {found['machine']}, jieba {found['jieba']}. "
        "Million characters a second, line by line, on one\nthread; the ratio is to rjieba (jieba-rs); encode is "
        "text to ids without the cache.\n\n"
    )
    text += table(
        ["file", "mode", "jieba", "rjieba", "miaobi", "ratio", "encode"],
        (
            [
                row["file"],
                mode(row),
                *(f"{row[side]:.2f}" for side in ("jieba", "rjieba", "miaobi", "ratio", "encode")),
            ]
            for row in found["speed"]
        ),
    )
    if "agreement" in found:
        text += "\nLines whose cut differs from jieba's:\n\n" + table(
            ["file", "mode", "lines", "miaobi", "rjieba"],
            (
                [row["file"], mode(row), f"{row['lines']:,}", row["differ"], f"{row['rjieba']:,}"]
                for row in found["agreement"]
            ),
        )
    if "linear" in found:
        text += "\nOne text, with the list of its words:\n\n" + table(
            ["text", "mode", "1 MB", "10 MB"],
            ([row["text"], mode(row), short(row["1 MB"]), short(row["10 MB"])] for row in found["linear"]),
        )
    load = found["loading_ms"]
    text += (
        f"\nThe first cut of a process takes {load['miaobi, first cut']:.0f} ms (jieba without its cache file "
        f"{load['jieba, first cut']:.0f} ms), dictionary and tables {found['memory_mb']:.0f} MB.\n"
    )
    if "threads" in found:
        gains = ", ".join(f"{name} {value:.2f}" for name, value in found["threads"].items())
        text += f"On two threads, times as fast as on one: {gains}.\n"
    if "cache" in found:
        cache = found["cache"]
        text += (
            f"\nThe cache, for 30 characters: a hit takes {cache['hit']:.2f} us, our own cold encode "
            f"{cache['cold']:.2f} us, jieba's {cache['jieba']:.0f} us; 10,000 sentences hold "
            f"{cache['bytes of 10,000'] / 1e6:.1f} MB.\n\n"
        )
        text += table(
            ["texts that come again", "over jieba", "over ours uncached"],
            (
                [share, *(f"{cache[f'{share} repeated, over {side}']:.2f}" for side in ("jieba", "ours uncached"))]
                for share in ("0%", "50%", "90%")
            ),
        )
    return text

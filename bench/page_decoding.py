# SPDX-License-Identifier: MIT
"""What the page of results says of decoding: by context and batch, beside llama.cpp, and what the cache saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from page_tables import Row, short, table


def sections(files: Mapping[str, Any], native: Mapping[str, Row], plot: str) -> str:
    """All of it, of the results of one machine; `native` are those of bench_kv_cache, `plot` a picture or ""."""

    def cases(script: str) -> list[Row]:
        found: list[Row] = files.get(script, {}).get("cases", [])
        return found

    parts = (
        contexts(native, plot),
        batches(native),
        llama_cpp(cases("compare_llama_cpp")),
        generate(cases("compare_generate")),
        cache(cases("compare_cache")),
    )
    return "\n".join(part for part in parts if part)


def contexts(found: Mapping[str, Row], plot: str) -> str:
    """By the length of the context, with the picture `plot`."""
    if not found:
        return ""
    keys = list(dict.fromkeys(tuple(name.split("/")[2:]) for name in found if name.startswith("kv_cache/step/")))

    def time_of(what: str, key: tuple[str, ...]) -> str:
        row = found.get("/".join(("kv_cache", what, *key)))
        return short(row["real_time"] * 1e-6) if row and "real_time" in row else "-"

    return (
        (
            "### Decoding with the KV cache\n\nOne token more by the length of the context, all layers "
            "(`bench_kv_cache`): writing its keys and values, attention\nover the cached ones, and the whole step "
            "with all matrix products and logits.\n\n"
        )
        + table(
            ["model, context", "threads", "append", "attend", "whole step", "tokens/s"],
            (
                [
                    f"{key[0]}, {key[1].split(':')[1]}",
                    key[2].split(":")[1],
                    *(time_of(what, key) for what in ("append", "attend", "step")),
                    f"{found['/'.join(('kv_cache', 'step', *key))].get('items_per_second', 0):,.0f}",
                ]
                for key in keys
            ),
        )
        + plot
    )


def batches(found: Mapping[str, Row]) -> str:
    """By the kind of the weights and the number of sequences."""
    steps = {tuple(name.split("/")[2:]): row for name, row in found.items() if name.startswith("kv_cache/batch/")}
    if not steps:
        return ""
    one = {key: row["real_time"] for key, row in steps.items() if key[1] == "1"}
    return (
        "Whole steps by the kind of the weights and the number of sequences that decode together "
        "(`bench_kv_cache\n--benchmark_filter=batch`), each behind 16 tokens. The gain is against one after "
        "the other.\n\n"
    ) + table(
        ["model, weights", "threads", "sequences", "step", "tokens/s", "gain", "of peak"],
        (
            [
                f"{key[2]}, {key[0]}",
                key[4].split(":")[1],
                key[1],
                short(row["real_time"] * 1e-6),
                f"{row['items_per_second']:,.0f}",
                f"{int(key[1]) * one[(key[0], '1', *key[2:])] / row['real_time']:.2f}",
                f"{row['of_peak']:.0%}" if "of_peak" in row else "-",
            ]
            for key, row in steps.items()
        ),
    )


def llama_cpp(cases: Sequence[Row]) -> str:
    if not cases:
        return ""

    def bandwidth(row: Row) -> str:
        if "gigabytes_per_second" not in row:
            return "-"
        return f"{row['gigabytes_per_second']} GB/s, {row['share_of_reading']:.0%}"

    return (
        "### Decoding and prefill beside llama.cpp\n\nThe same random weights, tokens/s of one sequence "
        "(`python bench/compare_llama_cpp.py`): decoding one by one, and a\nprompt of 128 at once. The last column "
        "is the rate at which decoding reads the weights, and its share of the rate at which a\nsingle product of "
        "a row and a matrix reads as many bytes, in the same turns.\n\n"
    ) + table(
        ["model, weights, threads", "what", "miaobi", "llama.cpp", "ratio", "weights read"],
        (
            [
                f"{row['preset']}, {row['dtype']}, {row['threads']}",
                row["what"],
                *(f"{row['tokens_per_second'][side]:,.0f}" for side in ("miaobi", "llama.cpp")),
                f"{row['ratios']['llama.cpp']:.2f}",
                bandwidth(row),
            ]
            for row in cases
        ),
    )


def generate(cases: Sequence[Row]) -> str:
    if not cases:
        return ""
    sides = ("engine", "generate", "greedy", "batch of 8")
    return (
        "### Writing\n\n`LLM.generate` beside the model's steps alone, and 8 texts together beside one after the "
        "other\n(`python bench/compare_generate.py`), tokens/s.\n\n"
    ) + table(
        ["model, weights, threads", *sides, "gain of the batch"],
        (
            [
                f"{row['preset']}, {row['dtype']}, {row['threads']}",
                *(f"{row['tokens_per_second'][f'miaobi {side}']:,.0f}" for side in sides),
                f"{row['batch_gain']:.2f}",
            ]
            for row in cases
        ),
    )


def cache(cases: Sequence[Row]) -> str:
    if not cases:
        return ""
    return (
        "### What the KV cache saves\n\nWriting tokens one by one, ours with the cache and ours without it "
        "(`python bench/compare_cache.py`), tokens/s; the last\ncolumn is what the project that we started from "
        "claimed for its cache.\n\n"
    ) + table(
        ["model, tokens", "threads", "with cache", "without", "ratio", "claimed there"],
        (
            [
                f"{row['preset']}, {row['tokens']}",
                row["threads"],
                f"{row['miaobi, tokens/s']:,.0f}",
                f"{row['miaobi, no cache, tokens/s']:,.0f}",
                f"{row['ratios']['miaobi, no cache']:.1f}",
                row.get("published_ratio_of_the_original", "-"),
            ]
            for row in cases
        ),
    )

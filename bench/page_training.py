# SPDX-License-Identifier: MIT
"""What the page of results says of training: speed, memory, and precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from page_tables import Row, table, threads_text

LOSSES = ("training", "validation")  # of a comparison of precisions


def sections(files: Mapping[str, Any]) -> str:
    """All of it, of the results of one machine."""

    def cases(script: str) -> list[Row]:
        found: list[Row] = files.get(script, {}).get("cases", [])
        return found

    parts = (
        train(cases("compare_train")),
        vocabulary(cases("train_vocabulary")),
        precision(files.get("compare_precision", {})),
    )
    return "\n".join(part for part in parts if part)


def train(cases: Sequence[Row]) -> str:
    if not cases:
        return ""
    sides = list(dict.fromkeys(name for row in cases for name in row["sides"]))
    rows, notes = [], []
    for row in cases:
        best = row["like_for_like"].get("float32", {})
        half = row["like_for_like"].get("bf16", {})
        few = min(values["n"] for values in row["sides"].values())
        name = f"{row['preset']}, {row['batch']} x {row['context']}, {threads_text(row['threads'])}"
        rows.append(
            [
                name + (f" (n={few})" if few < 20 else ""),
                *(f"{row['tokens_per_second'][s]:,.0f}" if s in row["tokens_per_second"] else "-" for s in sides),
                *(f"{value['ratio']:.2f}" if value else "-" for value in (best, half)),
            ]
        )
        for why in dict.fromkeys(row["left_out"].values()):
            sides_out = ", ".join(side for side, reason in row["left_out"].items() if reason == why)
            notes.append(f"- {row['preset']}, left out: {sides_out}; {why}.\n")
    text = (
        "### Training\n\nTokens/s of a whole step: loss, gradients, clipping, AdamW "
        "(`python bench/compare_train.py`); ratios to the faster\nPyTorch side of the same precision.\n\n"
    )
    text += table(["model, batch", *sides, "float32 ratio", "bf16 ratio"], rows)
    text += "\n" + "".join(notes) if notes else ""
    memory = [
        [
            row["preset"],
            *(f"{values[key] / 2**20:,.0f} MB" for values in row["memory"].values() for key in ("peak", "before")),
        ]
        for row in cases
        if row.get("memory")
    ]
    if memory:
        measured = next(row["memory"] for row in cases if row.get("memory"))
        text += "\nPeak memory of a process that trains for some steps, and what it had before the model was made:\n\n"
        text += table(["model", *(f"{name}{what}" for name in measured for what in (", peak", ", before"))], memory)
        text += "".join(why_not_half(row) for row in cases if row.get("memory"))
    return text


def why_not_half(row: Row) -> str:
    """The arithmetic, where half of the peer's memory is less than what both have to keep."""
    ours, peer = (row["memory"][name]["peak"] for name in ("miaobi", "torch eager"))
    kept = 16 * row["parameters"]
    if kept + row["memory"]["miaobi"]["before"] <= peer / 2:
        return ""
    rest = {name: (values["peak"] - kept - values["before"]) / 2**20 for name, values in row["memory"].items()}
    return (
        f"\n{row['preset']}: {ours / peer:.0%} of PyTorch's. Weights, gradients and both moments in float32 are 16 "
        f"bytes a parameter,\n{kept / 2**20:,.0f} MB on either side, and half of PyTorch's peak is {peer / 2**21:,.0f} "
        "MB: that cannot be reached with all of them in float32.\nBeside them and what there was before, ours takes "
        f"{rest['miaobi']:,.0f} MB (activations, a chunk of logits, packed panels), "
        f"PyTorch {rest['torch eager']:,.0f} MB.\n"
    )


def vocabulary(cases: Sequence[Row]) -> str:
    rows = [
        [
            f"{row['preset']}, {threads_text(row['threads'])}",
            f"{row['vocabulary']:,}",
            f"{row['tokens_per_second']:,.0f}" + (f" (n={n})" if (n := row["sides"]["miaobi"]["n"]) < 20 else ""),
            f"{row['gflops']:,.0f}",
            f"{row['original']:,.0f}" if "original" in row else "-",
            f"{row['times_original']:.2f}" if "original" in row else "-",
        ]
        for row in cases
    ]
    if not rows:
        return ""
    return (
        "Ours by vocabulary and threads, beside what the original program, in Rust, was reported to reach on one "
        "thread of another\nmachine (`python bench/train_vocabulary.py`).\n\n"
        + table(["model", "vocabulary", "tokens/s", "GFLOP/s", "original", "ratio"], rows)
        + "\nEight times the original would be "
        + " and ".join(
            f"{8 * row['original'] / row['tokens_per_second'] * row['gflops']:,.0f} GFLOP/s at {row['vocabulary']:,}"
            for row in cases
            if "original" in row and row["threads"] == 1
        )
        + ", on one thread.\n"
    )


def precision(found: Row) -> str:
    if not found:
        return ""
    rows = [
        [run["seed"], *(f"{run[side][loss]:.4f}" for loss in LOSSES for side in ("float32", "bf16"))]
        for run in found["runs"]
    ]
    text = (
        f"### Training in bf16\n\n{found['preset']}, {found['steps']} steps of {found['batch_tokens']:,} tokens "
        "of poems, both precisions on the same batches; loss in nats per token\n"
        "(`python bench/compare_precision.py`).\n\n"
    )
    text += table(["seed", *(f"{loss}, {side}" for loss in LOSSES for side in ("float32", "bf16"))], rows) + "\n"
    for loss in LOSSES:
        values = found["summary"][loss]
        text += (
            f"- {loss}: bf16 - float32 is {values['difference']:+.4f} in the mean, {values['largest']:+.4f} at "
            f"most; seeds deviate by {values['seeds_deviation']:.4f}.\n"
        )
    return text

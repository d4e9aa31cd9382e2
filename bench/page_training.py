# SPDX-License-Identifier: MIT
"""What the performance page says of training: speed, time to quality, and what the recipe is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from page_tables import Row, table, threads_text

ROOT = Path(__file__).resolve().parents[1]
LOSSES = ("training", "validation")  # of a comparison of precisions


class TrainingSections:
    """The sections; the results come from the class that inherits."""

    folder: Path
    files: dict[str, Any]

    def cases(self, script: str) -> list[Row]:
        """The cases of a script's results."""
        raise NotImplementedError

    def train(self) -> str:
        cases = self.cases("compare_train")
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
            text += (
                "\nPeak memory of a process that trains for some steps, and what it had before the model was made:\n\n"
            )
            text += table(["model", *(f"{name}{what}" for name in measured for what in (", peak", ", before"))], memory)
        return text

    def vocabulary(self) -> str:
        rows = [
            [
                f"{row['preset']}, {threads_text(row['threads'])}",
                f"{row['vocabulary']:,}",
                f"{row['tokens_per_second']:,.0f}" + (f" (n={n})" if (n := row["sides"]["miaobi"]["n"]) < 20 else ""),
                f"{row['original']:,.0f}" if "original" in row else "-",
                f"{row['times_original']:.2f}" if "original" in row else "-",
            ]
            for row in self.cases("train_vocabulary")
        ]
        if not rows:
            return ""
        return (
            "Ours by vocabulary and threads, beside what the original program, in Rust, was reported to reach on one "
            "thread of another\nmachine (`python bench/train_vocabulary.py`).\n\n"
            + table(["model", "vocabulary", "tokens/s", "original", "ratio"], rows)
        )

    def precision(self) -> str:
        found = self.files.get("compare_precision")
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

    def quality(self) -> str:
        found = self.files.get("compare_quality")
        if found is None or "torch_last" not in found:
            return ""
        minutes, (batch, context) = found["minutes"], found["batch"]
        rows = []
        for name, curve in found["curves"].items():
            reached = found["seconds_to_torch_last"].get(name)
            rows.append(
                [
                    name,
                    f"{found['learning_rates'][name]:g}",
                    *(f"{curve[-1][key]:,.0f}" for key in ("seconds", "tokens")),
                    f"{curve[-1]['bits_per_character']:.3f}",
                    f"{reached:.0f} s" if reached is not None else "-",
                    f"{reached / (60 * minutes):.2f}" if reached is not None else "-",
                ]
            )
        text = (
            f"### Time to quality\n\n{found['preset']} with {found['vocabulary']:,} tokens on {found['text']}, "
            f"batches of {batch} x {context}, {threads_text(found['threads'])}: PyTorch for {minutes:g} minutes, ours\n"
            "with the same random weights, ours as `miaobi train` begins (`bigram_init` on its clock), and that with\n"
            "a third of the time for the whole run (`python bench/compare_quality.py`). All are scored on the same\n"
            "held-out text; the last two columns are the time in which ours come to PyTorch's last figure, and its\n"
            "share.\n\n"
        )
        text += table(["side", "rate", "seconds", "tokens", "bits per character", "reached in", "share"], rows)
        plot = self.folder / "compare_quality.png"
        if plot.exists():
            text += f"\n![bits per character over time](../{plot.relative_to(ROOT).as_posix()})\n"
        return text

    def ablation(self) -> str:
        cases = self.cases("ablate_training")
        if not cases:
            return ""
        found = self.files["ablate_training"]
        points = range(len(cases[0]["curve"]))
        return (
            f"### What the recipe is worth\n\n{found['preset']} on {found['text']}, held-out bits per character after "
            "so many tokens of a run of as many as the last column says\n(`python bench/ablate_training.py`): the "
            "weights to begin with, contexts in a batch, the highest learning rate.\n\n"
        ) + table(
            ["begins with", "batch", "rate", "seed", *(f"{round(cases[0]['curve'][i][0], -3):,}" for i in points)],
            (
                [
                    row["init"],
                    row["batch"],
                    f"{row['rate']:g}",
                    row["seed"],
                    *(f"{row['curve'][i][1]:.3f}" for i in points),
                ]
                for row in cases
            ),
        )

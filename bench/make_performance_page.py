# SPDX-License-Identifier: MIT
"""Writes docs/performance.md and the table of training in the READMEs from the results in bench/results.

    python bench/make_performance_page.py [--check]

With --check it writes nothing and fails where they are not what the results give.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import page_decoding
import page_limits
import page_training
from page_tables import Row, better, by_threads, sample, short, table, threads_text
from segment_section import segment_section

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "performance.md"

INTRODUCTION = """\
# Performance

<!-- Written by bench/make_performance_page.py from bench/results; not to be edited by hand. -->

What miaobi does on the machines it was measured on, beside NumPy (with the OpenBLAS of its wheel) and PyTorch. Your own
machine: `miaobi bench` in a minute, or everything on this page with `python bench/run_all.py`.

How it is measured: the sides take turns in one process, with the same numbers, results checked before; threads of one
side have time to fall asleep before the next one begins. A figure is the median of at least 20 calls unless its number
of calls stands beside it. A ratio says how many times as fast miaobi is, turn by turn, the median over the turns; above
1 miaobi is faster. "Better of" compares with the faster peer of each line. All is float32 unless it says bf16.
"""


class Machine:
    """The results of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Any] = {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}

    def cases(self, script: str) -> list[Row]:
        cases: list[Row] = self.files.get(script, {}).get("cases", [])
        return cases

    def native(self, program: str) -> dict[str, Row]:
        """Benchmarks of a native program by name."""
        rows: list[Row] = self.files.get(program, {}).get("benchmarks", [])
        return {row["name"].removesuffix("/real_time"): row for row in rows}

    def peak(self, kind: str, threads: int) -> float | None:
        """GFLOP/s or GB/s, as the native programs measured them."""
        value = self.files.get("bench_gemm", {}).get("context", {}).get(f"peak_{kind}_threads_{threads}")
        return float(value.split()[0]) if value else None

    def sections(self) -> Iterable[str]:
        yield from (
            part()
            for part in (
                self.title,
                self.gemm,
                self.few_rows,
                self.bf16,
                self.fused,
                self.attention,
                lambda: page_training.sections(self.files),
                self.quality,
                self.ablation,
                lambda: page_decoding.sections(
                    self.files,
                    self.native("bench_kv_cache"),
                    self.plot("plot_decode", "time per token, by its place in the text"),
                ),
                self.busy,
                self.text,
            )
        )

    def title(self) -> str:
        heads = [result["head"] for result in self.files.values() if "head" in result]
        if not heads:
            raise SystemExit("a folder of results has none of a compare_*.py")
        first = heads[0]

        def all_of(name: str) -> str:
            return ", ".join(sorted({str(head[name]) for head in heads if name in head}))

        text = f"## {first['cpu']}, {first['isa']}\n\n"
        text += f"- {first['processors']} processors, {all_of('backend')} backend, measured {all_of('date')}\n"
        text += f"- miaobi {all_of('miaobi')}, {all_of('compiler')}, commit {all_of('commit')}\n"
        text += f"- NumPy {all_of('numpy')}\n- PyTorch {all_of('torch')}\n"
        peaks = []
        for threads in (1, first["processors"]):
            if (flops := self.peak("float32", threads)) is not None:
                speeds = ", ".join(f"{level} {self.peak(level, threads):.0f}" for level in ("L1", "L2", "L3", "memory"))
                peaks.append([threads_text(threads), f"{flops:.0f} GFLOP/s", f"{speeds} GB/s"])
        if peaks:
            text += "\nPeaks of the machine, measured by `bench_gemm` when it starts:\n\n"
            text += table(["", "float32 multiply-adds", "reading from"], dict.fromkeys(map(tuple, peaks)))
        return text

    def gemm(self) -> str:
        cases = [row for row in self.cases("compare_gemm") if row["precision"] == "float32" and not is_skinny(row)]
        if not cases:
            return ""
        text = "### Matrix products\n\n`python bench/compare_gemm.py`, GFLOP/s, and the share of the peak.\n"
        for threads in by_threads(cases):
            peak = self.peak("float32", threads)
            text += f"\n{threads_text(threads).capitalize()}:\n\n" + table(
                ["M x K x N", "product", "miaobi", "of peak", "NumPy", "PyTorch", "better of"],
                (
                    [
                        row["shape"].replace("x", " x "),
                        row["form"],
                        f"{row['gflops']['miaobi']:.0f}",
                        f"{row['gflops']['miaobi'] / peak:.0%}" if peak else "-",
                        f"{row['gflops']['numpy']:.0f}",
                        f"{row['gflops']['torch']:.0f}",
                        better(row),
                    ]
                    for row in cases
                    if row["threads"] == threads
                ),
            )
        return text + page_limits.two_threads(cases) + page_limits.section(cases, {1: 1.8}, self.peak)

    def few_rows(self) -> str:
        cases = [row for row in self.cases("compare_gemm") if row["precision"] == "float32" and is_skinny(row)]
        if not cases:
            return ""
        native = self.native("bench_gemm")

        def bandwidth(row: Row) -> str:
            found = native.get(f"gemm_few_rows/{row['shape']}/threads:{row['threads']}")
            return f"{found['of_bandwidth']:.0%}" if found and "of_bandwidth" in found else "-"

        text = (
            "### Few rows\n\nDecoding and small batches, `python bench/compare_gemm.py`; the share of the bandwidth "
            "at which the weights can be\nread is that of `bench_gemm`, which has no Python around the call.\n"
        )
        for threads in by_threads(cases):
            text += f"\n{threads_text(threads).capitalize()}:\n\n" + table(
                ["M x K x N", "miaobi", "NumPy", "PyTorch", "better of", "of bandwidth"],
                (
                    [
                        row["shape"].replace("x", " x "),
                        sample(row, "miaobi"),
                        sample(row, "numpy"),
                        sample(row, "torch"),
                        better(row),
                        bandwidth(row),
                    ]
                    for row in cases
                    if row["threads"] == threads
                ),
            )
        return text

    def bf16(self) -> str:
        cases = [row for row in self.cases("compare_gemm") if row["precision"] == "bf16"]
        if not cases:
            return ""
        return (
            '### bf16\n\n`set_matmul_precision("bf16")` on float32 operands, against our float32, and PyTorch on '
            "operands that are bf16\nalready (`python bench/compare_gemm.py`, GFLOP/s).\n\n"
        ) + table(
            ["M x K x N", "threads", "miaobi bf16", "miaobi float32", "ratio", "PyTorch bf16"],
            (
                [
                    row["shape"].replace("x", " x "),
                    row["threads"],
                    f"{row['gflops']['miaobi bf16']:.0f}",
                    f"{row['gflops']['miaobi']:.0f}",
                    f"{row['ratios']['miaobi']:.2f}",
                    f"{row['gflops']['torch bf16']:.0f}",
                ]
                for row in cases
            ),
        )

    def against_torch(self, title: str, cases: Sequence[Row], label: Callable[[Row], str]) -> str:
        """A table with our time and the ratios to all others, the thread counts beside each other."""
        threads = by_threads(cases)
        peers = list(dict.fromkeys(name for row in cases for name in row["ratios"]))
        names = {"miaobi unfused": "unfused", "torch eager": "eager", "torch compile": "compile"}
        found = {(label(row), row["threads"]): row for row in cases}
        head = [title] + [
            text for n in threads for text in (threads_text(n), *(f"x {names.get(peer, peer)}" for peer in peers))
        ]
        rows = []
        for key in dict.fromkeys(label(row) for row in cases):
            cells = [key]
            for n in threads:
                row = found.get((key, n))
                cells += (
                    [sample(row, "miaobi"), *(f"{row['ratios'][p]:.2f}" for p in peers)]
                    if row
                    else (["-"] * (len(peers) + 1))
                )
            rows.append(cells)
        return table(head, rows)

    def fused(self) -> str:
        cases = self.cases("compare_fused_ops")
        if not cases:
            return ""
        text = (
            "### Fused ops\n\n`python bench/compare_fused_ops.py`: our time, and how many times as fast that is as "
            "our own ops one after the other,\nPyTorch eager and torch.compile.\n"
        )
        for op in dict.fromkeys(row["op"] for row in cases):
            for kind in ("forward", "forward + backward"):
                chosen = [row for row in cases if row["op"] == op and row["pass"] == kind]
                chosen.sort(key=lambda row: ([r["preset"] for r in cases].index(row["preset"]), row["rows"]))
                if chosen:
                    text += f"\n{op}, {kind}:\n\n" + self.against_torch(
                        "rows x in x out", chosen, lambda row: row["shape"].replace("x", " x ")
                    )
        many = [row for row in cases if row["rows"] > 1]
        text += page_limits.section(many, {1: 2.5, 2: 2.0}, self.peak)
        return text + "".join(page_limits.saved_by_fusion(many, n, self.peak("memory", n)) for n in by_threads(cases))

    def attention(self) -> str:
        cases = self.cases("compare_attention")
        if not cases:
            return ""
        return (
            "### Attention\n\nCausal, against scaled_dot_product_attention (`python bench/compare_attention.py`).\n\n"
            + self.against_torch(
                "B x H x T x D, pass", cases, lambda row: f"{row['shape'].replace('x', ' x ')}, {row['pass']}"
            )
            + page_limits.section(cases, dict.fromkeys(by_threads(cases), 3.0), self.peak)
        )

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
            f"batches of {batch} x {context}, {threads_text(found['threads'])}: PyTorch for {minutes:g} minutes\n"
            "from random weights; ours as `miaobi train` begins, `bigram_init` on its clock (random: with PyTorch's\n"
            "weights; a third: in a third of the time). `python bench/compare_quality.py`. All are scored on the same\n"
            "held-out text; the last two columns are the time in which ours come to PyTorch's last figure, and its\n"
            "share.\n\n"
        )
        text += table(["side", "rate", "seconds", "tokens", "bits per character", "reached in", "share"], rows)
        return text + self.plot("compare_quality", "bits per character over time")

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

    def plot(self, name: str, what: str) -> str:
        """A line that shows the picture of that name, if there is one."""
        path = self.folder / f"{name}.png"
        return f"\n![{what}](../{path.relative_to(ROOT).as_posix()})\n" if path.exists() else ""

    def busy(self) -> str:
        cases = self.cases("busy_machine")
        if not cases:
            return ""
        return (
            "### On a busy machine\n\nSteps of nano in a second while one foreign process for each processor sleeps, "
            "and while it computes\n(`python bench/busy_machine.py`). A fair share is a half.\n\n"
        ) + table(
            ["step", "side", "threads", "quiet", "busy", "kept"],
            (
                [
                    row["step"],
                    row["side"],
                    row["threads"],
                    f"{row['quiet']:.1f}",
                    f"{row['busy']:.1f}",
                    f"{row['kept']:.0%}",
                ]
                for row in cases
            ),
        )

    def text(self) -> str:
        found = self.files.get("compare_segment")
        return segment_section(found, table, short) if found else ""


def is_skinny(row: Row) -> bool:
    return int(row["shape"].split("x")[0]) < 32


README_TRAIN = {  # the head of the table and what stands under it
    "README.md": (
        ["model, batch, threads", "miaobi, tokens/s", "PyTorch, tokens/s", "ratio"],
        "On {cpu} ({isa}), {processors} processors.",
    ),
    "README.zh-CN.md": (
        ["模型、批次、线程", "妙笔，词元/秒", "PyTorch，词元/秒", "比值"],
        "测于 {cpu}（{isa}，{processors} 核）。",
    ),
}


def readme(name: str, machines: Sequence[Machine]) -> str:
    """A README with the table of training in float32 as the results give it."""
    head, place = README_TRAIN[name]
    text = (ROOT / name).read_text("utf-8")
    filled = ""
    for machine in machines:
        rows = []
        for row in machine.cases("compare_train"):
            if (best := row["like_for_like"].get("float32")) is not None:
                speeds = (f"{row['tokens_per_second'][side]:,.0f}" for side in ("miaobi", best["against"]))
                title = f"{row['preset']}, {row['batch']} x {row['context']}, {row['threads']}"
                rows.append([title, *speeds, f"{best['ratio']:.2f}"])
        if rows:
            filled += table(head, rows) + "\n" + place.format(**machine.files["compare_train"]["head"]) + "\n"
    before, rest = text.split("<!-- table:train -->\n")
    return f"{before}<!-- table:train -->\n{filled}<!-- /table:train -->" + rest.split("<!-- /table:train -->")[1]


def documents() -> dict[Path, str]:
    """Everything that the results give, by file."""
    machines = [Machine(path) for path in sorted(RESULTS.iterdir()) if path.is_dir()]
    texts = {ROOT / name: readme(name, machines) for name in README_TRAIN}
    sections = [section for machine in machines for section in machine.sections() if section]
    return {PAGE: "\n".join([INTRODUCTION, *sections]), **texts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where they are out of date")
    check = parser.parse_args().check
    for path, text in documents().items():
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text("utf-8") != text:
            sys.exit(f"{path.name} is not what bench/results gives: run python bench/make_performance_page.py")


if __name__ == "__main__":
    main()

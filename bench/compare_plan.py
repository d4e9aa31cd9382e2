# SPDX-License-Identifier: MIT
"""What `miaobi plan` foretells of a text, and what `miaobi train` then takes: speed and peak memory of each preset.

    python bench/compare_plan.py TEXT [--presets tiny nano mini small] [--steps 12] [--threads 2] [--json FILE]

Each run is a process of its own, of few steps from the beginning: reading, vocabulary, weights, steps, validation,
samples, checkpoints. Its speed is the median of its steps but the first two. The machine is measured before each run,
so that a change of its speed meanwhile does not count. `base` computes one part of its batches instead of four.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import side_by_side as bench

import miaobi
from miaobi.files import write_atomic
from miaobi.plan import Machine, plans
from miaobi.presets import PRESETS

VOCABULARY = 8000
UNITS = {"MB": 1e6, "GB": 1e9}


def run(text: Path, name: str, steps: int, threads: int) -> dict[str, float]:
    """Tokens per second, peak memory and tokens of the text of a short run."""
    preset = PRESETS[name]
    options: list[Any] = ["--steps", steps, "--evaluations", 1, "--vocab-size", VOCABULARY, "--threads", threads]
    options += ["--batch-size", preset.batch_size // preset.gradient_accumulation, "--gradient-accumulation", 1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        command = [sys.executable, "-m", "miaobi", "train", text, "--preset", name, "--out", out, *options]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
        log = [json.loads(line) for line in (out / "train_log.jsonl").read_text("utf-8").splitlines()]
    entries = [entry for entry in log if entry["event"] == "step"]
    speeds = [(b["tokens"] - a["tokens"]) / (b["elapsed"] - a["elapsed"]) for a, b in pairwise(entries[1:])]
    number, unit = re.findall(r"([\d.]+) (MB|GB) of memory at most", done.stdout)[0]
    return {
        "tokens_per_second": statistics.median(speeds),
        "memory": float(number) * UNITS[unit],
        "text_tokens": log[0]["train_tokens"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=["tiny", "nano", "mini", "small"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=miaobi.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bench.use_threads(args.threads)
    cases: list[dict[str, Any]] = []
    result = {"script": "compare_plan", "head": bench.head(), "text": args.text.name, "cases": cases}
    for name in args.presets:
        machine = Machine.measure()
        real = run(args.text, name, args.steps, args.threads)
        plan = next(p for p in plans(machine, VOCABULARY, int(real["text_tokens"]), 10.0) if p.name == name)
        foretold = {"tokens_per_second": plan.tokens_per_second, "memory": plan.memory}
        case: dict[str, Any] = {"preset": name, "threads": args.threads, "steps": args.steps}
        for what, value in foretold.items():
            case[what] = {"plan": round(value, 1), "run": round(real[what], 1), "ratio": round(value / real[what], 3)}
        cases.append(case)
        speed, memory = case["tokens_per_second"], case["memory"]
        print(
            f"{name:<7} tokens/s: plan {speed['plan']:8,.0f}, run {speed['run']:8,.0f}, {speed['ratio']:.2f}; "
            f"memory: plan {memory['plan'] / 1e6:6,.0f} MB, run {memory['run'] / 1e6:6,.0f} MB, {memory['ratio']:.2f}",
            flush=True,
        )
        if args.json:
            write_atomic(args.json, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result))


if __name__ == "__main__":
    main()

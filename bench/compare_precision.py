# SPDX-License-Identifier: MIT
"""Does training in bf16 learn as well as in float32? Both train the same model on the same batches, on some seeds.

    python bench/compare_precision.py TEXT [--val TEXT] [--preset tiny] [--steps 300] [--seeds 0 1 2] [--threads 2]
                                      [--json FILE]

A seed is that of the weights and of the order of the documents, and the same for both precisions. Training loss is the
mean over the last tenth of the steps; both losses are in nats per token. What bf16 changes is to be less than what
another seed changes. Where a machine has no instructions for bf16, operands are rounded all the same, so the losses are
right there, too, and only the time is not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import side_by_side as sbs

import miaobi
from miaobi.batches import TokenData
from miaobi.corpus import read_corpus
from miaobi.files import write_atomic
from miaobi.model import GPT
from miaobi.presets import PRESETS
from miaobi.train_config import TrainConfig
from miaobi.train_events import EvaluationEvent, StepEvent, TrainEvent
from miaobi.trainer import Trainer

VOCAB_SIZE = 4000
POINTS = 10  # of each curve


def train(
    tokenizer: miaobi.JiebaTokenizer,
    data: tuple[TokenData, TokenData],
    preset_name: str,
    steps: int,
    seed: int,
    precision: Literal["float32", "bf16"],
) -> dict[str, Any]:
    """The curve of one run and where it ends."""
    preset = PRESETS[preset_name]
    settings = TrainConfig(
        steps=steps,
        batch_size=preset.batch_size,
        learning_rate=preset.learning_rate,
        precision=precision,
        evaluations=1,
        seed=seed,
    )
    losses: list[float] = []
    validation: list[float] = []

    def listen(event: TrainEvent) -> None:
        if isinstance(event, StepEvent):
            losses.append(event.loss)
        elif isinstance(event, EvaluationEvent):
            validation.append(event.loss)

    model = GPT(preset.model_config(tokenizer.vocab_size), seed=seed)
    Trainer(model, tokenizer, settings, listener=listen).fit(*data)
    part = max(steps // POINTS, 1)
    curve = [round(statistics.fmean(losses[i : i + part]), 4) for i in range(0, len(losses), part)]
    return {
        "training": round(statistics.fmean(losses[-max(steps // 10, 1) :]), 5),
        "validation": round(validation[-1], 5),
        "curve": curve,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each loss: bf16 - float32 in the mean and at most, and the deviation of float32 over seeds."""
    result = {}
    for name in ("training", "validation"):
        differences = [run["bf16"][name] - run["float32"][name] for run in runs]
        exact = [run["float32"][name] for run in runs]
        result[name] = {
            "difference": round(statistics.fmean(differences), 5),
            "largest": round(max(differences, key=abs), 5),
            "seeds_deviation": round(statistics.stdev(exact), 5) if len(exact) > 1 else 0.0,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--val", type=Path, help="default: a part of TEXT")
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=miaobi.build_info()["processors"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results here")
    args = parser.parse_args()
    miaobi.set_num_threads(args.threads)
    learnt, held_out = (
        (read_corpus(args.text), read_corpus(args.val)) if args.val else read_corpus(args.text).hold_out()
    )
    tokenizer = miaobi.JiebaTokenizer.train(learnt, VOCAB_SIZE, shrink=True)
    data = TokenData.from_texts(learnt, tokenizer), TokenData.from_texts(held_out, tokenizer)
    result = {
        "script": Path(__file__).stem,
        "head": sbs.head(),
        "preset": args.preset,
        "steps": args.steps,
        "batch_tokens": PRESETS[args.preset].batch_size * PRESETS[args.preset].n_positions,
        "text": args.text.name,
    }
    print(f"{args.text.name}, {args.preset}, {args.steps} steps; losses in nats per token")
    print("  seed   float32: training, validation      bf16: training, validation      seconds")
    runs = []
    for seed in args.seeds:
        begin = time.perf_counter()
        run = {name: train(tokenizer, data, args.preset, args.steps, seed, name) for name in ("float32", "bf16")}
        runs.append({"seed": seed, **run})
        a, b = run["float32"], run["bf16"]
        print(
            f"  {seed:4}   {a['training']:17.4f}  {a['validation']:10.4f} {b['training']:19.4f}  "
            f"{b['validation']:10.4f} {time.perf_counter() - begin:12.0f}",
            flush=True,
        )
    result |= {"runs": runs, "summary": summary(runs)}
    for name, values in result["summary"].items():
        print(
            f"  {name}: bf16 - float32 is {values['difference']:+.4f} in the mean, {values['largest']:+.4f} at most; "
            f"seeds deviate by {values['seeds_deviation']:.4f}"
        )
    if args.json:
        write_atomic(args.json, (json.dumps(result, ensure_ascii=False, indent=1) + "\n").encode())
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()

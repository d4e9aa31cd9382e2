# SPDX-License-Identifier: MIT
"""Quality against time: ours and PyTorch train the same model on the same text, and are validated by one measure.

    python bench/compare_quality.py TEXT [--val TEXT] [--preset nano] [--minutes 10] [--threads 2] [--sides ...]
                                    [--learning-rate R] [--peer-learning-rate R] [--json FILE] [--plot FILE]

The sides:

- eager: PyTorch, torch_gpt.py, written for speed; compiled: with torch.compile, whose compiling is on its clock.
- random: ours with the same weights to begin with, and all else the same: what raw speed alone gives.
- bigrams: what `miaobi train` does, which is to begin with `bigram_init`; that is on its clock.
- third: the same in a third of the time, for a rate that falls with the clock has not fallen by then.
- planned: ours with the preset that `miaobi plan` proposes for the text and time.

All have the tokenizer, documents, batch size in tokens, AdamW, warm-up, cosine and clipping in common. --learning-rate
is that of ours with bigrams, --peer-learning-rate that of random weights, PyTorch's among them: ablate_training.py
tells which are best. Ours packs documents without padding; PyTorch reads blocks of the documents laid end to end in
random order, as is common there. The sides take turns of some seconds, so that a busy machine slows all alike; only
their own work is on their clocks. All weights are scored by the same code on the same documents. Prints the curves
and the time in which ours reach PyTorch's last figure; keeps the results as they come. Needs PyTorch, and matplotlib
for the plot.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import side_by_side as bench

import miaobi

import numpy as np  # isort: skip - after side_by_side, which sets up its BLAS
import torch
from torch_gpt import TorchGPT

from miaobi.batches import Batches, TokenData
from miaobi.bigram_init import bigram_init
from miaobi.corpus import read_corpus
from miaobi.files import write_atomic
from miaobi.model import GPT
from miaobi.plan import Machine, best_plan
from miaobi.presets import PRESETS, Preset
from miaobi.scoring import Score, score_documents
from miaobi.shuffle import permutation
from miaobi.train_config import TrainConfig

SEED = 1
POINTS = 20  # of each curve
TURN_SECONDS = 10.0
EVAL_TOKENS = 20_000
BETAS = TrainConfig().betas

PEERS = ("eager", "compiled")
SIDES = (*PEERS, "random", "bigrams", "third", "planned")

Step = Callable[[int, float], int]  # (step number, learning rate) -> tokens


class Side:
    """One way to train: a step, its clock, and the curve so far."""

    def __init__(self, name: str, step: Step, weights: Callable[[], GPT], minutes: float, learning_rate: float) -> None:
        self.name = name
        self.settings = TrainConfig(minutes=minutes, learning_rate=learning_rate)
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []
        self._weights = weights
        self._step = step
        self._steps = self._tokens = 0
        self._total = 60 * minutes

    @property
    def is_over(self) -> bool:
        return len(self.curve) > POINTS

    def turn(self, validation: TokenData) -> None:
        """Trains for some seconds, to the next point of the curve at most; there it is validated, off the clock."""
        point = self._total * len(self.curve) / POINTS
        until = min(self.seconds + TURN_SECONDS, point)
        while self.seconds < until:
            begun = time.perf_counter()
            rate = self.settings.learning_rate_at(min((self.seconds + 0.1) / self._total, 1.0))
            self._tokens += self._step(self._steps, rate)
            self._steps += 1
            self.seconds += time.perf_counter() - begun
        if self.seconds >= point:
            self.validate(validation)

    def validate(self, validation: TokenData) -> None:
        """Adds a point to the curve."""
        score = sum(score_documents(self._weights(), validation.documents()), Score(0.0, 0, 0))
        bits = round(score.bits_per_character, 4)
        self.curve.append(
            {
                "seconds": round(self.seconds, 1),
                "steps": self._steps,
                "tokens": self._tokens,
                "bits_per_character": bits,
            }
        )
        print(
            f"{self.name:<20} {self.seconds:6.0f} s {self._steps:6,} steps {self._tokens:10,} tokens "
            f"{bits:7.3f} bits/char",
            flush=True,
        )


def our_step(model: GPT, data: TokenData, batch_size: int, seed: int) -> Step:
    """A step of ours on packed documents."""
    context = model.config.n_positions
    optimizer = miaobi.AdamW(model, lr=1e-3, betas=BETAS, weight_decay=0.0)
    batches = Batches(data, context, batch_size * context, seed=seed)

    def step(i: int, rate: float) -> int:
        batch = batches.batch(*divmod(i, batches.batches_per_epoch))
        model.zero_grad()
        model.loss_backward(batch.ids, batch.targets, batch.offsets)
        optimizer.step(lr=rate, max_grad_norm=1.0)
        return len(batch.ids)

    return step


def our_side(name: str, preset: Preset, data: TokenData, vocab: int, minutes: float, rate: float, init: str) -> Side:
    model = GPT(preset.model_config(vocab), seed=SEED)
    begun = time.perf_counter()
    if init == "bigrams":
        bigram_init(model, data)
    side = Side(name, our_step(model, data, preset.batch_size, SEED), lambda: model, minutes, rate)
    side.seconds = time.perf_counter() - begun
    return side


def torch_side(
    name: str, preset: Preset, data: TokenData, vocab: int, minutes: float, rate: float, compiled: bool
) -> Side:
    start = GPT(preset.model_config(vocab), seed=SEED)
    peer: Any = TorchGPT(start).train()
    parameters = list(peer.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=BETAS, weight_decay=0.0, fused=True)
    run = torch.compile(peer, dynamic=False) if compiled else peer
    context, batch = preset.n_positions, preset.batch_size
    documents = list(data.documents())
    blocks: dict[int, Any] = {}

    def blocks_of(epoch: int) -> Any:
        if epoch not in blocks:
            blocks.clear()
            stream = np.concatenate([documents[d].ids for d in permutation(len(documents), SEED, epoch)])
            count = (len(stream) - 1) // context
            at = (permutation(count, SEED, epoch, 1) * context)[:, None] + np.arange(context + 1)
            blocks[epoch] = torch.from_numpy(np.asarray(stream, np.int64)[at])
        return blocks[epoch]

    per_epoch = max((len(data.tokens) - 1) // context // batch, 1)

    def step(i: int, rate: float) -> int:
        epoch, place = divmod(i, per_epoch)
        ids = blocks_of(epoch)[place * batch : (place + 1) * batch]
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        run(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        return int(ids.shape[0]) * context

    def weights() -> GPT:
        views = start.parameters()
        with torch.no_grad():
            for key, parameter in peer.named_parameters():
                value = parameter.numpy()
                linear = key.endswith("weight") and ("attn." in key or "mlp." in key)
                views["transformer." + key][...] = value.T if linear else value
        return start

    blocks_of(0)  # laying out the text is not training; compiling is
    return Side(name, step, weights, minutes, rate)


def planned_side(data: TokenData, vocab_size: int, minutes: float) -> Side:
    best = best_plan(Machine.measure(), vocab_size, data.learned, minutes)
    rate = best.preset.learning_rate
    return our_side(f"miaobi, planned {best.name}", best.preset, data, vocab_size, minutes, rate, "bigrams")


def time_to(curve: list[dict[str, float]], bits: float) -> float | None:
    """Seconds until a curve reaches `bits`, interpolated between its points; None if it does not."""
    if curve[0]["bits_per_character"] <= bits:
        return curve[0]["seconds"]
    for before, after in pairwise(curve):
        if after["bits_per_character"] <= bits:
            drop = before["bits_per_character"] - after["bits_per_character"]
            share = (before["bits_per_character"] - bits) / drop if drop > 0 else 1.0
            return before["seconds"] + max(share, 0.0) * (after["seconds"] - before["seconds"])
    return None


def plot(result: dict[str, Any], path: Path) -> None:
    """The curves of a result, and how soon ours reach what PyTorch ends with."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for name, curve in result["curves"].items():
        points = [point for point in curve if point["steps"] or point["seconds"]]  # random weights are far above
        axes.plot(
            [point["seconds"] / 60 for point in points],
            [point["bits_per_character"] for point in points],
            marker="o",
            markersize=3,
            label=name.replace("a third", "told to end after a third of the time"),
        )
    last = result.get("torch_last")
    if last is not None:
        axes.axhline(last, color="gray", linestyle="--", linewidth=1)
        for seconds in filter(None, result["seconds_to_torch_last"].values()):
            axes.annotate(
                f"what PyTorch ends with, after {seconds:.0f} s",
                (seconds / 60, last),
                xytext=(8, 10),
                textcoords="offset points",
                arrowprops={"arrowstyle": "->", "color": "gray"},
            )
    axes.set(
        xlabel="minutes of training",
        ylabel="held-out bits per character",
        title=f"{result['preset']} on {result['text']}, {result['threads']} threads",
        xlim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="or the --json of a run before, to draw its --plot again")
    parser.add_argument("--val", type=Path)
    parser.add_argument("--preset", choices=list(PRESETS), default="nano")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each side's own clock")
    parser.add_argument("--threads", type=int, default=miaobi.get_num_threads())
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--learning-rate", type=float, help="of ours (default: of the preset)")
    parser.add_argument("--peer-learning-rate", type=float, help="of the random weights (default: of the preset)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["eager", "random", "bigrams", "third"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.plot and args.text.suffix == ".json":
        plot(json.loads(args.text.read_text("utf-8")), args.plot)
        return

    bench.use_threads(args.threads)
    corpus = read_corpus(args.text)
    train, held_out = (corpus, read_corpus(args.val)) if args.val else corpus.hold_out(seed=SEED)
    tokenizer = miaobi.JiebaTokenizer.train((str(text) for text in train), args.vocab_size, shrink=True)
    data = TokenData.from_texts(train, tokenizer)
    validation = TokenData.from_texts(held_out, tokenizer).spread(EVAL_TOKENS)
    size, preset, minutes = tokenizer.vocab_size, PRESETS[args.preset], args.minutes
    rate = args.learning_rate or preset.learning_rate
    peer_rate = args.peer_learning_rate or preset.learning_rate
    makers: dict[str, Callable[[], Side]] = {
        "eager": lambda: torch_side("PyTorch", preset, data, size, minutes, peer_rate, compiled=False),
        "compiled": lambda: torch_side("PyTorch compiled", preset, data, size, minutes, peer_rate, compiled=True),
        "random": lambda: our_side("miaobi, random", preset, data, size, minutes, peer_rate, "random"),
        "bigrams": lambda: our_side("miaobi", preset, data, size, minutes, rate, "bigrams"),
        "third": lambda: our_side("miaobi, a third", preset, data, size, minutes / 3, rate, "bigrams"),
        "planned": lambda: planned_side(data, size, minutes),
    }
    peers = [makers[name]() for name in PEERS if name in args.sides]
    ours = [makers[name]() for name in SIDES if name not in PEERS and name in args.sides]
    if not peers:
        parser.error(f"expected one of {', '.join(PEERS)} among --sides, got {' '.join(args.sides)}")
    sides = peers + ours
    result: dict[str, Any] = {
        "script": "compare_quality",
        "head": bench.head(),
        "text": args.text.name,
        "preset": args.preset,
        "vocabulary": size,
        "batch": [preset.batch_size, preset.n_positions],
        "minutes": minutes,
        "threads": args.threads,
        "learning_rates": {side.name: side.settings.learning_rate for side in sides},
        "curves": {side.name: side.curve for side in sides},
    }

    def save() -> None:
        if args.json:
            write_atomic(args.json, (json.dumps(result, ensure_ascii=False, indent=1) + "\n").encode())

    facts = result["head"]
    print(f"{facts['cpu']}, isa {facts['isa']}, {args.threads} threads, torch {facts['torch']}, {args.text.name}")
    for side in sides:
        side.validate(validation)
    while not all(side.is_over for side in sides):
        for side in sides:
            if not side.is_over:
                side.turn(validation)
        save()

    last = min(side.curve[-1]["bits_per_character"] for side in peers)
    seconds = {side.name: time_to(side.curve, last) for side in ours}
    result["torch_last"] = last
    result["seconds_to_torch_last"] = seconds
    for name, found in seconds.items():
        reached = "not reached" if found is None else f"{found:.0f} s, {found / (60 * minutes):.2f} of its time"
        print(f"{name}: PyTorch's {last:.3f} bits/char after {minutes:g} minutes: {reached}")
    save()
    if args.plot:
        plot(result, args.plot)
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()

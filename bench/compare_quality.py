# SPDX-License-Identifier: MIT
"""Quality against time: ours and PyTorch train the same model on the same tokens, and are validated by one measure.

    python bench/compare_quality.py TEXT [--val TEXT] [--preset nano] [--minutes 10] [--threads 2] [--planned]
                                    [--compiled] [--json FILE] [--plot FILE]

The sides take turns of some seconds, so that a busy machine slows all alike; only their own training steps are on their
clocks. Same tokenizer, documents, weights to begin with, batch size in tokens, AdamW, clipping, and learning rate,
which follows each side's clock. Ours packs documents without padding, as `miaobi train` does; PyTorch (torch_gpt.py,
written for speed) reads blocks of the documents laid end to end in random order, as is common there. `--planned` adds
a third side: ours with the preset that `miaobi plan` proposes for the text and time. All weights are scored by the same
code on the same validation documents. Prints the curves and the time in which we reach PyTorch's last figure; needs
PyTorch, and matplotlib for the plot.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_gpt import TorchGPT

import miaobi
from miaobi.batches import Batches, TokenData
from miaobi.corpus import read_corpus
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


class Side:
    """One way to train: a step, its clock, and the curve so far."""

    def __init__(
        self, name: str, preset: Preset, step: Callable[[int, float], int], weights: Callable[[], GPT]
    ) -> None:
        self.name = name
        self.preset = preset
        self.weights = weights
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []
        self._step = step
        self._steps = self._tokens = 0

    def train(self, until: float, minutes: float) -> None:
        """Makes steps until its clock says `until`."""
        settings = TrainConfig(minutes=minutes, learning_rate=self.preset.learning_rate)
        while self.seconds < until:
            begun = time.perf_counter()
            rate = settings.learning_rate_at(min((self.seconds + 0.1) / (60 * minutes), 1.0))
            self._tokens += self._step(self._steps, rate)
            self._steps += 1
            self.seconds += time.perf_counter() - begun

    def validate(self, validation: TokenData) -> None:
        """Adds a point to the curve; not on the clock."""
        score = sum(score_documents(self.weights(), validation.documents()), Score(0.0, 0, 0))
        point = {"seconds": self.seconds, "steps": self._steps, "tokens": self._tokens}
        self.curve.append({**point, "bits_per_character": score.bits_per_character})
        print(
            f"{self.name:<22} {self.seconds:6.0f} s {self._steps:6,} steps {self._tokens:10,} tokens "
            f"{score.bits_per_character:7.3f} bits/char",
            flush=True,
        )


def our_side(name: str, preset: Preset, data: TokenData, vocab_size: int) -> Side:
    model = GPT(preset.model_config(vocab_size), seed=SEED)
    optimizer = miaobi.AdamW(model, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    batches = Batches(data, preset.n_positions, preset.batch_size * preset.n_positions, seed=SEED)

    def step(i: int, rate: float) -> int:
        batch = batches.batch(*divmod(i, batches.batches_per_epoch))
        model.zero_grad()
        model.loss_backward(batch.ids, batch.targets, batch.offsets)
        optimizer.step(lr=rate, max_grad_norm=1.0)
        return len(batch.ids)

    return Side(name, preset, step, lambda: model)


def torch_side(name: str, preset: Preset, data: TokenData, vocab_size: int, compiled: bool) -> Side:
    start = GPT(preset.model_config(vocab_size), seed=SEED)
    peer: Any = TorchGPT(start).train()
    parameters = list(peer.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
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
    return Side(name, preset, step, weights)


def time_to(curve: list[dict[str, float]], bits: float) -> float | None:
    """Seconds until a curve reaches `bits`, interpolated between its points; None if it does not."""
    for before, after in pairwise(curve):
        if after["bits_per_character"] <= bits:
            drop = before["bits_per_character"] - after["bits_per_character"]
            share = (before["bits_per_character"] - bits) / drop if drop > 0 else 1.0
            return before["seconds"] + max(share, 0.0) * (after["seconds"] - before["seconds"])
    return None


def plot(sides: list[Side], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for side in sides:
        points = side.curve[1:]  # the first is before any step, far above all others
        axes.plot(
            [point["seconds"] / 60 for point in points],
            [point["bits_per_character"] for point in points],
            marker="o",
            markersize=3,
            label=side.name,
        )
    axes.set(xlabel="minutes of training", ylabel="validation, bits per character")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--val", type=Path)
    parser.add_argument("--preset", choices=list(PRESETS), default="nano")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each side's own clock")
    parser.add_argument("--threads", type=int, default=miaobi.get_num_threads())
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--planned", action="store_true")
    parser.add_argument("--compiled", action="store_true", help="torch.compile for PyTorch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()

    miaobi.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    corpus = read_corpus(args.text)
    train, held_out = (corpus, read_corpus(args.val)) if args.val else corpus.hold_out(seed=SEED)
    tokenizer = miaobi.JiebaTokenizer.train((str(text) for text in train), args.vocab_size, shrink=True)
    data = TokenData.from_texts(train, tokenizer)
    validation = TokenData.from_texts(held_out, tokenizer).spread(EVAL_TOKENS)
    size = tokenizer.vocab_size
    sides = [our_side(f"miaobi {args.preset}", PRESETS[args.preset], data, size)]
    torch_name = f"torch {args.preset}" + (" compiled" if args.compiled else "")
    sides.append(torch_side(torch_name, PRESETS[args.preset], data, size, args.compiled))
    if args.planned:
        best = best_plan(Machine.measure(), size, data.learned, args.minutes)
        if best.name != args.preset:
            sides.append(our_side(f"miaobi {best.name} (plan)", best.preset, data, size))
    info = miaobi.build_info()
    print(f"{info['cpu']}, isa {info['isa']}, {args.threads} threads, torch {torch.__version__}, {args.text.name}")

    total = 60 * args.minutes
    for side in sides:
        side.validate(validation)
    for point in range(1, POINTS + 1):
        end = total * point / POINTS
        while any(side.seconds < end for side in sides):
            for side in sides:
                side.train(min(side.seconds + TURN_SECONDS, end), args.minutes)
        for side in sides:
            side.validate(validation)

    last = sides[1].curve[-1]["bits_per_character"]
    result: dict[str, Any] = {
        "text": args.text.name,
        "minutes": args.minutes,
        "threads": args.threads,
        "isa": info["isa"],
        "torch": torch.__version__,
        "curves": {side.name: side.curve for side in sides},
        "torch_last": last,
        "seconds_to_torch_last": {},
    }
    for side in sides:
        if side is not sides[1]:
            seconds = time_to(side.curve, last)
            result["seconds_to_torch_last"][side.name] = seconds
            reached = "not reached" if seconds is None else f"{seconds:.0f} s, {seconds / total:.2f} of its time"
            print(f"{side.name}: PyTorch's {last:.3f} bits/char after {args.minutes:g} minutes: {reached}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if args.plot:
        plot(sides, args.plot)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

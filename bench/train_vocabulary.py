# SPDX-License-Identifier: MIT
"""Training speed by the size of the vocabulary and the number of threads, beside what the original program reached.

    python bench/train_vocabulary.py [--vocabularies 4000 10000] [--threads 1 2] [--seconds 40] [--json FILE]

A whole step (loss, gradients, clipping, AdamW) of the model nano, whose width of 256 and inner width of 512 are those
of the original; batch 16 x 128. The original, in Rust, was reported to train at 2750 and 1340 tokens/s, on one thread
of another machine, so its ratio says what a user of it would see, and not how good the code is. GFLOP/s are those of
`miaobi.plan.flops_per_token`, six for each weight and what attention takes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import compare_train
import numpy as np
import side_by_side as sbs

import miaobi
from miaobi.plan import flops_per_token

PRESET = "nano"
ORIGINAL = {4000: 2750.0, 10_000: 1340.0}  # tokens/s


def train_step(model: miaobi.GPT, optimizer: miaobi.AdamW, ids: Any, targets: Any) -> None:
    model.zero_grad()
    model.loss_backward(ids, targets)
    optimizer.step(max_grad_norm=1.0)


def main() -> None:
    parser = sbs.parser_for(__doc__, 40.0)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=list(ORIGINAL))
    report = sbs.Report(parser)
    for threads, size, seconds in sbs.product(report, report.args.vocabularies):
        config, batch = compare_train.config_of(PRESET)
        model = miaobi.GPT(replace(config, vocab_size=size), seed=1)
        ids, targets = np.random.default_rng(1).integers(0, size, (2, batch, config.n_positions), dtype=np.int32)
        optimizer = miaobi.AdamW(model, lr=1e-4)

        samples = sbs.alternate({"miaobi": partial(train_step, model, optimizer, ids, targets)}, 0.9 * seconds)
        speed = ids.size / samples["miaobi"].median
        case = {"preset": PRESET, "vocabulary": size, "parameters": model.num_parameters, "threads": threads}
        gflops = round(speed * flops_per_token(model.config) / 1e9, 1)
        original = ORIGINAL.get(size)
        times = {} if original is None else {"original": original, "times_original": round(speed / original, 2)}
        report.add(case, samples, tokens_per_second=round(speed, 1), gflops=gflops, **times)
        print(
            f"  {speed:,.0f} tokens/s, {gflops:.0f} GFLOP/s"
            + (f", {speed / original:.2f} times the original" if original else "")
        )
    report.finish()


if __name__ == "__main__":
    main()

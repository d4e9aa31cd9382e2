# SPDX-License-Identifier: MIT
"""Time per token from token 10 to token 1000 of a text, as a plot and as figures.

    python bench/plot_decode.py --out decode.png [--preset nano|small] [--threads 1 2] [--tokens 1000] [--texts 7]

Needs matplotlib (pip install '.[plot]'). Writes the plot, with weights in float32 and bf16, and, beside it, FILE.json
with the median over the texts of each token's time. With a cache that costs the same at any length, the time grows only
by what attention reads.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import side_by_side as bench

import miaobi

import numpy as np  # isort: skip - after side_by_side, which sets up its BLAS

from miaobi._core import Sampler
from miaobi.decoding import Decoder, advance
from miaobi.files import write_atomic
from miaobi.presets import PRESETS

VOCAB_SIZE = 8000
FIRST = 10  # the first tokens also pay for memory that is touched for the first time
SMOOTHED = 20  # tokens of which the plot shows the median


def token_times(model: miaobi.GPT, tokens: int) -> list[float]:
    """Seconds for each token of a text: one step of the model and one of the sampler."""
    decoder = Decoder(model, tokens, model.new_cache(tokens))
    sampler = Sampler(temperature=0.8, top_p=0.95, seed=1)
    new = np.asarray([2], np.int32)
    times = []
    for _ in range(tokens):
        start = time.perf_counter()
        new = np.asarray([sampler.sample(advance([decoder], [new])[0])], np.int32)
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = bench.parser_for(__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="nano")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--texts", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("decode.png"))
    args = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    model = miaobi.GPT(replace(PRESETS[args.preset].model_config(VOCAB_SIZE), n_positions=args.tokens), seed=1)
    facts = bench.head()
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    lines = []
    for threads, dtype in product(args.threads, ("float32", "bf16")):
        bench.use_threads(threads)
        model.pack(dtype)
        token_times(model, args.tokens)
        median = np.median([token_times(model, args.tokens) for _ in range(args.texts)], axis=0)[FIRST - 1 :] * 1e6
        places = np.arange(FIRST, args.tokens + 1)
        slope, start = np.polyfit(places, median, 1)
        size = len(median) // SMOOTHED * SMOOTHED
        smooth = np.median(median[:size].reshape(-1, SMOOTHED), axis=1)
        axes.plot(
            places[:size:SMOOTHED] + SMOOTHED / 2, smooth, label=f"{dtype}, {threads} thread{'s' * (threads > 1)}"
        )
        lines.append(
            {
                "threads": threads,
                "dtype": dtype,
                "first_us": round(float(smooth[0]), 1),
                "last_us": round(float(smooth[-1]), 1),
                "us_per_token_of_context": round(float(slope), 5),
                "us_at_0": round(float(start), 1),
                "median_us": [round(float(value), 1) for value in median],
            }
        )
        print(
            f"{threads} threads, {dtype}: {smooth[0]:.0f} us around token {FIRST + SMOOTHED // 2}, {smooth[-1]:.0f} us "
            f"around token {args.tokens - SMOOTHED // 2}; {slope * 1000:.1f} us more for each 1000 tokens before it"
        )
    axes.set(xlabel="token", ylabel="time per token, µs", ylim=(0, None), xlim=(0, args.tokens))
    axes.set_title(f"{args.preset} with {VOCAB_SIZE:,} tokens ({facts['cpu']}, {facts['isa']})", fontsize=10)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(args.out, dpi=150)
    result = {"script": "plot_decode", "head": facts, "preset": args.preset, "first_token": FIRST, "lines": lines}
    write_atomic(args.out.with_suffix(".json"), (json.dumps(result, ensure_ascii=False, indent=1) + "\n").encode())
    brief = [{name: value for name, value in line.items() if name != "median_us"} for line in lines]
    print(json.dumps({**result, "lines": brief}, ensure_ascii=False))


if __name__ == "__main__":
    main()

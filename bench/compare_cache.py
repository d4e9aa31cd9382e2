# SPDX-License-Identifier: MIT
"""What the KV cache saves: writing T tokens with it, and without it computing everything again for each token.

    python bench/compare_cache.py [--preset nano|small] [--threads 1 2] [--tokens 10 20 50 100 500] [--json FILE]

Both sides are ours, greedy, from one token of prompt, and must write the same tokens. The side without cache forms no
more logits than are needed either, those after the last token, so the ratio is what the cache alone saves. Beside it
stand the ratios that the project we started from published for 10, 50 and 100 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import side_by_side as bench

import miaobi

import numpy as np  # isort: skip - after side_by_side, which sets up its BLAS

from miaobi._core import Sampler
from miaobi.decoding import Decoder, advance
from miaobi.presets import PRESETS

VOCAB_SIZE = 8000
PUBLISHED = {10: 4, 50: 20, 100: 50}


def writer(model: miaobi.GPT, tokens: int, cached: bool) -> Callable[[], list[int]]:
    """A function that writes `tokens` tokens."""

    def write() -> list[int]:
        decoder = Decoder(model, tokens, model.new_cache(tokens) if cached else None)
        sampler = Sampler(do_sample=False)
        new, written = np.asarray([2], np.int32), []
        for _ in range(tokens):
            written.append(sampler.sample(advance([decoder], [new])[0]))
            new = np.asarray(written[-1:], np.int32)
        return written

    return write


def main() -> None:
    parser = bench.parser_for(__doc__, seconds=90)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="nano")
    parser.add_argument("--tokens", type=int, nargs="+", default=[10, 20, 50, 100, 500])
    report = bench.Report(parser)
    args = report.args
    config = PRESETS[args.preset].model_config(VOCAB_SIZE)
    model = miaobi.GPT(replace(config, n_positions=max(args.tokens)), seed=1)
    model.pack()  # as LLM does
    for threads, tokens, seconds in bench.product(report, args.tokens):
        sides = {"miaobi": writer(model, tokens, True), "miaobi, no cache": writer(model, tokens, False)}
        if sides["miaobi"]() != sides["miaobi, no cache"]():
            raise SystemExit(f"{tokens} tokens with and without cache differ; nothing is timed")
        samples = bench.alternate(sides, seconds, warm=tokens >= 100)
        rates = {f"{name}, tokens/s": round(tokens / values.median, 1) for name, values in samples.items()}
        published = {"published_ratio_of_the_original": PUBLISHED[tokens]} if tokens in PUBLISHED else {}
        case = {"preset": args.preset, "threads": threads, "tokens": tokens}
        report.add(case, samples, **rates, **published)
    print_table(report)
    report.finish()  # its last line is the JSON


def print_table(report: bench.Report) -> None:
    """The cases as a table."""
    print(f"\n{'tokens':>7}{'threads':>9}{'cache':>12}{'no cache':>12}{'ratio':>8}{'original':>10}   tokens/s")
    for case in report.result["cases"]:
        published = case.get("published_ratio_of_the_original")
        print(
            f"{case['tokens']:>7}{case['threads']:>9}{case['miaobi, tokens/s']:>12,.0f}"
            f"{case['miaobi, no cache, tokens/s']:>12,.0f}{case['ratios']['miaobi, no cache']:>7.1f}x"
            f"{f'{published}x' if published else '-':>10}"
        )


if __name__ == "__main__":
    main()

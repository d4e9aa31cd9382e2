# SPDX-License-Identifier: MIT
"""What writing text costs beyond the model, and what writing 8 texts together gains.

    python bench/compare_generate.py [--preset nano|small] [--dtypes float32 bf16] [--threads 1 2] [--json FILE]

"engine" is the model's step alone, the same tokens at the same lengths, for one text and for 8; the others are
`LLM.generate` with its defaults (temperature 0.8, top-p 0.95), greedy, and `LLM.generate_batch` of 8 prompts, whose
texts must be those of 8 single calls. The weights are random, but the last norm is scaled so that the distributions
have the entropy of a trained model's, 4.5 nats, for a flat one would let the sampler do what it never has to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import side_by_side as bench

import miaobi

import numpy as np  # isort: skip - after side_by_side, which sets up its BLAS

from miaobi.presets import PRESETS

VOCAB_SIZE = 8000
FIXED_TOKENS = 263  # special tokens and bytes
TOKENS = 96
PROMPTS = ["春风", "夏日", "秋月", "冬雪", "江南", "塞北", "明月", "故人"]
SHARPNESS = 6.0


def make_model(preset: str) -> tuple[miaobi.GPT, miaobi.JiebaTokenizer]:
    """A model that writes Chinese characters at random."""
    tokenizer = miaobi.JiebaTokenizer([chr(0x4E00 + i) for i in range(VOCAB_SIZE - FIXED_TOKENS)])
    model = miaobi.GPT(PRESETS[preset].model_config(tokenizer.vocab_size), seed=1)
    model.parameters()["transformer.ln_f.weight"][:] = SHARPNESS
    return model, tokenizer


def engine(model: miaobi.GPT, texts: int) -> Callable[[], object]:
    """The steps of some texts of TOKENS tokens behind their prompts."""
    cache = model.new_cache(model.config.n_positions * texts)
    sequences = [cache.add_sequence() for _ in range(texts)]
    ids = np.arange(300, 300 + texts * (TOKENS + 3), dtype=np.int32)
    prompts, ones = np.arange(0, 3 * texts + 1, 3, np.int64), np.arange(texts + 1, dtype=np.int64)

    def run() -> None:
        for sequence in sequences:
            cache.truncate(sequence, 0)
        model.forward_cached(cache, sequences, ids[: 3 * texts], prompts)
        for i in range(3, TOKENS + 2):
            model.forward_cached(cache, sequences, ids[i * texts : (i + 1) * texts], ones)

    return run


def main() -> None:
    parser = bench.parser_for(__doc__, seconds=60)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="nano")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    report = bench.Report(parser)
    preset = report.args.preset
    models = {dtype: make_model(preset) for dtype in report.args.dtypes}
    for threads, dtype, seconds in bench.product(report, report.args.dtypes):
        model, tokenizer = models[dtype]
        llm = miaobi.LLM(model, tokenizer, dtype=dtype)
        options: dict[str, Any] = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
        single = [llm.generate(prompt, **options, seed=1 + i) for i, prompt in enumerate(PROMPTS)]
        if llm.generate_batch(PROMPTS, **options, seed=1) != single:
            raise SystemExit("the texts of a batch are not those of single calls; nothing is timed")
        turn = iter(range(10**9))
        sides: dict[str, Callable[[], object]] = {
            "miaobi engine": engine(model, 1),
            "miaobi engine, batch of 8": engine(model, 8),
            "miaobi generate": lambda llm=llm, o=options, t=turn: llm.generate(PROMPTS[next(t) % 8], **o, seed=1),
            "miaobi greedy": lambda llm=llm, o=options: llm.generate(PROMPTS[0], **o, do_sample=False),
            "miaobi batch of 8": lambda llm=llm, o=options: llm.generate_batch(PROMPTS, **o, seed=1),
        }
        samples = bench.alternate(sides, seconds)
        texts = {name: 8 if "batch" in name else 1 for name in sides}
        rates = {name: round(texts[name] * TOKENS / values.median, 1) for name, values in samples.items()}
        gain = bench.ratio(samples["miaobi batch of 8"], samples["miaobi generate"]) * 8
        report.add(
            {"preset": preset, "dtype": dtype, "threads": threads},
            samples,
            "miaobi generate",
            tokens_per_second=rates,
            batch_gain=round(gain, 2),
        )
        print("  tokens/s: " + ", ".join(f"{name.removeprefix('miaobi ')} {rate:,.0f}" for name, rate in rates.items()))
        print(f"  a batch of 8 has {gain:.2f} times the throughput of one after the other")
    report.finish()


if __name__ == "__main__":
    main()

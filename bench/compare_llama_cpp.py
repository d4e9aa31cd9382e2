# SPDX-License-Identifier: MIT
"""Decoding and prefill side by side with llama.cpp: the same random weights as GGUF, alternated in one process.

    python bench/compare_llama_cpp.py [--presets nano small base] [--dtypes float32 bf16] [--threads 1 2] [--json FILE]

Decoding is one sequence, token by token, behind a prompt of 16 tokens; prefill is 128 tokens at once with the logits
of the last. Both sides form the logits of every step, are given the same ids and are called through the cheapest
interface that they have: llama.cpp's batches are made before. Its keys and values have 16 bits, for it is slower with
32; ours have the precision of the weights. It rounds activations to bf16 beside bf16 weights, and has GELU in a table
of 16 bits, so logits are compared within 1% of the largest in float32 and 3% in bf16. Needs llama-cpp-python and gguf.

What memory gives is measured in the same turns, for it is not the same from one minute to the next on a shared machine:
one product of a row with one matrix of as many bytes as the weights, which is nothing but reading. (It comes to what
`bench_gemm` measures for memory; NumPy's dot product reads more slowly.)
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path

import side_by_side as bench

import miaobi

import numpy as np  # isort: skip - after side_by_side, which sets up its BLAS

from llama_cpp_gpt import LlamaCpp, write_gguf

POSITIONS = 256
PROMPT = 16
PREFILL = 128
SAMPLE_WEIGHTS = 2.5e8  # that the tokens of a sample read together: some tens of milliseconds
TOLERANCE = {"float32": 0.01, "bf16": 0.03}


class Model:
    """One model on both sides, with the ids of a prompt and what comes after it."""

    def __init__(self, preset: str, dtype: str, folder: Path) -> None:
        _, layers, heads, width, inner, vocabulary, *_ = next(r for r in bench.shapes("kModels") if r[0] == preset)
        self.ours = miaobi.GPT(miaobi.GPTConfig(vocabulary, POSITIONS, width, layers, heads, inner), seed=1)
        rng = np.random.default_rng(1)
        for value in self.ours.parameters().values():
            if value.ndim == 1:  # neither norms nor biases are to be without effect
                value += 0.1 * rng.standard_normal(value.shape, np.float32)
        path = folder / f"{preset}-{dtype}.gguf"
        write_gguf(self.ours, path, dtype)
        self.theirs = LlamaCpp(path, POSITIONS)
        path.unlink()  # it is mapped
        self.ours.pack(dtype)
        self._cache = self.ours.new_cache(POSITIONS, dtype)
        self._sequence = self._cache.add_sequence()
        # A row of the embeddings is read for each token, and the whole of them as the head.
        self.weights = vocabulary * width + layers * (4 * width + 2 * inner) * width
        self.bytes = self.weights * (2 if dtype == "bf16" else 4)
        self._row = np.ones((1, 1024), np.float32)
        self._matrix = np.ones((1024, self.bytes // 4096), np.float32)
        self.tokens = int(max(4, min(SAMPLE_WEIGHTS / self.weights, POSITIONS - PROMPT)))
        self._ids = rng.integers(0, vocabulary, POSITIONS, dtype=np.int32)
        self._ours_tokens = [self._ids[i : i + 1] for i in range(PROMPT, PROMPT + self.tokens)]
        self._their_tokens = [self.theirs.batch([self._ids[i]], i) for i in range(PROMPT, PROMPT + self.tokens)]
        self._their_prefill = self.theirs.batch(self._ids[:PREFILL].tolist(), 0)
        self._one, self._all = np.asarray([0, 1], np.int64), np.asarray([0, PREFILL], np.int64)
        self._check(dtype)

    def ours_prefill(self) -> object:
        self._cache.truncate(self._sequence, 0)
        return self.ours.forward_cached(self._cache, [self._sequence], self._ids[:PREFILL], self._all)

    def their_prefill(self) -> None:
        self.theirs.truncate(0)
        self.theirs.decode(self._their_prefill)

    def ours_decode(self) -> object:
        self._cache.truncate(self._sequence, PROMPT)
        logits = None
        for ids in self._ours_tokens:
            logits = self.ours.forward_cached(self._cache, [self._sequence], ids, self._one)
        return logits

    def their_decode(self) -> None:
        self.theirs.truncate(PROMPT)
        for batch in self._their_tokens:
            self.theirs.decode(batch)

    def reading(self) -> None:
        for _ in range(self.tokens):
            miaobi.ops.matmul(self._row, self._matrix)

    def _check(self, dtype: str) -> None:
        """The logits after a prefill, and those after the tokens of a sample."""
        self.theirs.use_threads(1)
        for what in ("prefill", "decode"):
            ours: Callable[[], object] = getattr(self, f"ours_{what}")
            getattr(self, f"their_{what}")()
            bench.expect_equal(f"{what}, {dtype}", ours(), self.theirs.logits()[None], TOLERANCE[dtype])


def main() -> None:
    parser = bench.parser_for(__doc__, seconds=150)
    parser.add_argument("--presets", nargs="+", choices=["nano", "small", "base"], default=["nano", "small", "base"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    report = bench.Report(parser)
    args = report.args
    report.start(2 * len(args.presets) * len(args.dtypes) * len(args.threads))
    with tempfile.TemporaryDirectory() as folder:
        for preset in args.presets:
            for dtype in args.dtypes:
                model = Model(preset, dtype, Path(folder))
                for threads in args.threads:
                    bench.use_threads(threads)
                    model.theirs.use_threads(threads)
                    for what, tokens in (("decode", model.tokens), ("prefill", PREFILL)):
                        if (seconds := report.turn()) is not None:
                            measure(
                                report,
                                model,
                                {"preset": preset, "dtype": dtype, "threads": threads, "what": what},
                                tokens,
                                seconds,
                            )
                model.theirs.close()
                del model
                gc.collect()
    report.finish()


def measure(report: bench.Report, model: Model, case: dict[str, object], tokens: int, seconds: float) -> None:
    """One line: tokens/s of both, and for decoding the rate at which ours reads the weights, in GB/s and of reading."""
    what = case["what"]
    sides: dict[str, Callable[[], object]] = {
        "miaobi": getattr(model, f"ours_{what}"),
        "llama.cpp": getattr(model, f"their_{what}"),
    }
    if what == "decode":
        model.ours_prefill()
        model.their_prefill()
        sides["reading"] = model.reading
    samples = bench.alternate(sides, seconds)
    read = {}
    if (reading := samples.pop("reading", None)) is not None:
        read = {
            "gigabytes_per_second": round(model.bytes * tokens / samples["miaobi"].median / 1e9, 1),
            "share_of_reading": round(bench.ratio(samples["miaobi"], reading), 3),
        }
    rates = {name: round(tokens / values.median, 1) for name, values in samples.items()}
    report.add(case, samples, tokens_per_second=rates, **read)
    print("  " + ", ".join(f"{name} {rate:,.0f} tokens/s" for name, rate in rates.items()), *read.values())


if __name__ == "__main__":
    main()

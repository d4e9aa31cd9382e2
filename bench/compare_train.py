# SPDX-License-Identifier: MIT
"""Training speed side by side with PyTorch: same weights, batch, clipping and AdamW, alternated in one process.

    python bench/compare_train.py [--presets nano small base] [--threads 2] [--seconds 300] [--json FILE]

The peer is a GPT-2 written for speed (torch_gpt.py), eager and compiled, in float32 and under bf16 autocast; ours runs
in float32 and with bf16 matrix products. All sides must give the same first loss. A side that is more than three times
as slow as another of PyTorch's, and all bf16 where no instructions help it, are left out, with a note. Memory is the
peak of a process of its own for each side: two steps, and how much of it was there before the model. Needs PyTorch, a
C++ compiler for torch.compile, and threadpoolctl.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable

import side_by_side as sbs

import numpy as np  # isort: skip

import miaobi
from miaobi.peak_memory import peak_memory

SEED = 1
LEARNING_RATE = 1e-4
SIDES = ("miaobi", "miaobi bf16", "torch eager", "torch compile", "torch eager bf16", "torch compile bf16")
LOSS_TOLERANCE = {False: 1e-4, True: 0.05}  # a bf16 number has 8 bits
MEMORY_STEPS = 2
HOPELESS = 3.0  # times the time of another side: left out, with a note, because its steps would take all of the time


def config_of(preset: str) -> tuple[miaobi.GPTConfig, int]:
    """The model and its batch."""
    _, layers, heads, width, inner, vocabulary, batch, context = next(
        row for row in sbs.shapes("kModels") if row[0] == preset
    )
    return miaobi.GPTConfig(vocabulary, context, width, layers, heads, inner), batch


def make_side(name: str, preset: str) -> tuple[Callable[[], float], int, int]:
    """A function that makes one step and gives its loss; tokens of a step; parameters."""
    config, batch = config_of(preset)
    rng = np.random.default_rng(SEED)
    ids, targets = rng.integers(0, config.vocab_size, (2, batch, config.n_positions), dtype=np.int32)
    model = miaobi.GPT(config, seed=SEED)
    bf16 = name.endswith("bf16")
    if name.startswith("torch"):
        from torch_gpt import training_step

        step = training_step(model, ids, targets, lr=LEARNING_RATE, compiled="compile" in name, bf16=bf16)
        return step, ids.size, model.num_parameters
    optimizer = miaobi.AdamW(model, lr=LEARNING_RATE)

    def ours() -> float:
        miaobi.set_matmul_precision("bf16" if bf16 else "highest")
        model.zero_grad()
        total, count = model.loss_backward(ids, targets)
        optimizer.step(max_grad_norm=1.0)
        return total / count

    return ours, ids.size, model.num_parameters


def bf16_slowdown() -> float:
    """The time of PyTorch's matrix product in bf16 over that in float32; large where no instruction helps."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(256, 256, dtype=dtype)
        torch.mm(a, a)
        start = time.perf_counter()
        torch.mm(a, a)
        return time.perf_counter() - start

    return seconds(torch.bfloat16) / seconds(torch.float32)


def measure_memory(name: str, preset: str, threads: int) -> None:
    """In a process of its own: prints the peak before and after some steps of one side."""
    if name.startswith("torch"):
        import torch_gpt  # noqa: F401
    sbs.use_threads(threads)
    before = peak_memory()
    step, *_ = make_side(name, preset)
    for _ in range(MEMORY_STEPS):
        step()
    print(json.dumps({"peak": peak_memory(), "before": before}))


def memory_of(name: str, preset: str, threads: int) -> dict[str, int]:
    command = [sys.executable, __file__, "--memory-of", name, "--presets", preset, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    values: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return values


def measure(report: sbs.Report, preset: str, threads: int, wanted: list[str], seconds: float, memory: bool) -> None:
    begin = time.perf_counter()
    sides: dict[str, Callable[[], float]] = {}
    left_out = {name: "not measured (--sides)" for name in SIDES if name not in wanted}
    first = fastest = None
    slowdown = bf16_slowdown() if any(name.startswith("torch") for name in wanted) else 1.0
    for name in wanted:
        if name.endswith("bf16") and slowdown > HOPELESS:
            left_out[name] = "this machine has no instructions for bf16, in which PyTorch's matrix product takes "
            left_out[name] += f"{slowdown:.0f} times as long as in float32"
            continue
        step, tokens, parameters = make_side(name, preset)
        loss = step()  # compiles, too
        first = loss if first is None else first
        if not abs(loss - first) <= LOSS_TOLERANCE["bf16" in name]:
            raise SystemExit(f"{preset}, {name}: the first loss is {loss}, and {first} that of {wanted[0]}")
        if name.startswith("torch"):
            start = time.perf_counter()
            step()
            took = time.perf_counter() - start
            if fastest is not None and took > HOPELESS * fastest:
                left_out[name] = f"{tokens / took:.0f} tokens/s in one step"
                del step
                gc.collect()
                continue
            fastest = took if fastest is None else min(fastest, took)
        sides[name] = step
    samples = sbs.alternate(sides, max(seconds - (time.perf_counter() - begin), 0) * 0.9, warm=True)
    about = {
        "preset": preset,
        "parameters": parameters,
        "batch": config_of(preset)[1],
        "context": config_of(preset)[0].n_positions,
        "threads": threads,
    }
    ratios = {}
    for precision in ("float32", "bf16"):
        ours = "miaobi bf16" if precision == "bf16" else "miaobi"
        theirs = [n for n in samples if n.startswith("torch") and n.endswith("bf16") == (precision == "bf16")]
        if ours in samples and theirs:
            best = min(theirs, key=lambda name: samples[name].median)
            ratios[precision] = {"ratio": round(sbs.ratio(samples[ours], samples[best]), 3), "against": best}
    speeds = {name: round(tokens / values.median, 1) for name, values in samples.items()}
    sides.clear()
    gc.collect()
    peaks = {name: memory_of(name, preset, threads) for name in ("miaobi", "torch eager") if memory and name in samples}
    report.add(
        about,
        samples,
        next(iter(samples)),
        tokens_per_second=speeds,
        like_for_like=ratios,
        memory=peaks,
        left_out=left_out,
    )
    for name, speed in speeds.items():
        print(f"  {name:<18} {speed:10,.0f} tokens/s")
    for precision, value in ratios.items():
        print(f"  {precision}: {value['ratio']:.2f} times {value['against']}")
    for name, why in left_out.items():
        print(f"  {name} is left out: {why}")
    for name, bytes_ in peaks.items():
        print(f"  {name:<18} {bytes_['peak'] / 2**20:8.0f} MB peak, {bytes_['before'] / 2**20:.0f} MB before the model")


def main() -> None:
    parser = sbs.parser_for(__doc__, 300.0)
    parser.add_argument("--presets", nargs="+", choices=["nano", "small", "base"], default=["nano", "small", "base"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="default: all")
    parser.add_argument("--no-memory", action="store_true", help="leave the measurement of memory out")
    parser.add_argument("--memory-of", choices=SIDES, help="print the peak memory of this side and end")
    parser.set_defaults(threads=[miaobi.build_info()["processors"]])
    report = sbs.Report(parser)
    args = report.args
    if args.memory_of:
        measure_memory(args.memory_of, args.presets[0], args.threads[0])
        return
    if any(name.startswith("torch") for name in args.sides):
        import torch_gpt  # noqa: F401
    for threads, preset, seconds in sbs.product(report, args.presets):
        measure(report, preset, threads, args.sides, seconds, not args.no_memory)
    report.finish()


if __name__ == "__main__":
    main()

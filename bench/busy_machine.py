# SPDX-License-Identifier: MIT
"""What is left of the speed when another program computes on every processor.

    python bench/busy_machine.py [--threads 2] [--seconds 60] [--json FILE]

Starts one process for each processor that does nothing but compute, and lets them run and sleep in turns. Prints the
speed of a training step and of a decoding step of nano, ours and PyTorch's, while they sleep and while they run. A fair
share is then a half; whose threads wait for each other by spinning gets less. Ours decodes with packed weights, as LLM
does; PyTorch's decoding step is a pass of one token through the model, without a cache. Needs PyTorch and
threadpoolctl; Linux or macOS.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import side_by_side as sbs

import numpy as np  # isort: skip
import torch
from compare_train import make_side

import miaobi

CONTEXT = 64  # tokens in the cache when the next one comes
ROUNDS = 5


@contextmanager
def foreign_processes(count: int) -> Iterator[list[int]]:
    """Ids of processes that compute, stopped at first."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        send(pids := [process.pid for process in processes], signal.SIGSTOP)
        yield pids
    finally:
        for process in processes:
            process.kill()
            process.wait()


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def our_decoding() -> sbs.Run:
    config = miaobi.GPTConfig(*_nano())
    model = miaobi.GPT(config)
    model.pack()  # as LLM does before it writes
    cache = model.new_cache(2 * CONTEXT)
    sequence = cache.add_sequence()
    model.forward_cached(cache, [sequence], np.arange(CONTEXT, dtype=np.int32), np.array([0, CONTEXT]))
    token, offsets = np.array([7], np.int32), np.array([0, 1])

    def step() -> None:
        model.forward_cached(cache, [sequence], token, offsets)
        cache.truncate(sequence, CONTEXT)

    return step


def torch_decoding() -> sbs.Run:
    from torch_gpt import TorchGPT

    model = TorchGPT(miaobi.GPT(miaobi.GPTConfig(*_nano()))).eval()
    token = torch.tensor([[7]])

    def step() -> None:
        with torch.inference_mode():
            model.logits(token)

    return step


def _nano() -> list[int]:
    _, layers, heads, width, inner, vocabulary, _, context = sbs.shapes("kModels")[0]
    return [vocabulary, context, width, layers, heads, inner]


def speed(run: sbs.Run, seconds: float) -> float:
    """Calls in a second, over `seconds` and at least one call."""
    begin = time.perf_counter()
    calls = 0
    while (spent := time.perf_counter() - begin) < seconds or calls == 0:
        run()
        calls += 1
    return calls / spent


def main() -> None:
    parser = sbs.parser_for(__doc__, 60.0)
    parser.set_defaults(threads=[miaobi.build_info()["processors"]])
    report = sbs.Report(parser)
    threads = report.args.threads[0]
    steps: dict[tuple[str, str], sbs.Run] = {
        ("training step", "miaobi"): make_side("miaobi", "nano")[0],
        ("training step", "torch eager"): make_side("torch eager", "nano")[0],
        ("decoding step", "miaobi"): our_decoding(),
        ("decoding step", "torch eager"): torch_decoding(),
    }
    report.start(len(steps))
    sbs.use_threads(threads)
    seconds = report.args.seconds / len(steps) / ROUNDS / 2
    processors = miaobi.build_info()["processors"]
    print(f"\n{'':28}{'quiet':>14}{'busy':>14}{'kept':>8}   ({processors} foreign processes, {threads} threads)")
    with foreign_processes(processors) as pids:
        for (step, side), run in steps.items():
            speed(run, 0.2)
            quiet, busy = [], []
            for _ in range(ROUNDS):
                quiet.append(speed(run, seconds))
                send(pids, signal.SIGCONT)
                try:
                    busy.append(speed(run, seconds))
                finally:
                    send(pids, signal.SIGSTOP)
            kept = statistics.median(b / q for b, q in zip(busy, quiet, strict=True))
            row = {"step": step, "side": side, "threads": threads, "foreign_processes": processors}
            medians = {"quiet": statistics.median(quiet), "busy": statistics.median(busy)}
            report.result["cases"].append(
                {**row, **{k: round(v, 2) for k, v in medians.items()}, "kept": round(kept, 3)}
            )
            report.save()
            print(f"{step:<16}{side:<12}{medians['quiet']:10.1f} /s{medians['busy']:12.1f} /s{kept:8.0%}", flush=True)
    report.finish()


if __name__ == "__main__":
    main()

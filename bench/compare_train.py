# SPDX-License-Identifier: MIT
"""Training speed side by side with PyTorch: same model, batch, loss, clipping and AdamW, alternated in one process.

    python bench/compare_train.py [--preset nano|small] [--threads 2] [--seconds 30]

Needs PyTorch and transformers. The peer is transformers' GPT-2 in eager float32 with its fastest attention (sdpa).
Before timing, both start from the same weights and must give the same loss. Prints medians, spread and the ratio; the
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import miaobi
from miaobi.presets import PRESETS

VOCAB_SIZE = 8000
SEED = 1


def make_ours(config: miaobi.GPTConfig, ids: Any, targets: Any) -> tuple[miaobi.GPT, Callable[[], float]]:
    model = miaobi.GPT(config, seed=SEED)
    optimizer = miaobi.AdamW(model, lr=1e-3)

    def step() -> float:
        model.zero_grad()
        total, count = model.loss_backward(ids, targets)
        optimizer.step(max_grad_norm=1.0)
        return total / count

    return model, step


def make_peer(model: miaobi.GPT, ids: Any, targets: Any) -> Callable[[], float]:
    config = model.config
    transformers.logging.set_verbosity_error()
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_inner=config.inner_size,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.copy_(torch.from_numpy(model.parameters()[name].copy()))
    peer.train()
    decayed = [p for p in peer.parameters() if p.dim() > 1]
    plain = [p for p in peer.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95)
    )
    x, y = torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = peer(x).logits
        loss = torch.nn.functional.cross_entropy(logits.view(-1, config.vocab_size), y.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def timed(step: Callable[[], float]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["nano", "small"], default="nano")
    parser.add_argument("--threads", type=int, default=miaobi.get_num_threads())
    parser.add_argument("--seconds", type=float, default=30.0)
    args = parser.parse_args()

    miaobi.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    batch, context = {"nano": (16, 128), "small": (8, 256)}[args.preset]
    preset = PRESETS[args.preset]
    config = miaobi.GPTConfig(VOCAB_SIZE, context, preset.n_embd, preset.n_layer, preset.n_head, preset.n_inner)
    rng = np.random.default_rng(SEED)
    ids = rng.integers(0, VOCAB_SIZE, (batch, context)).astype(np.int32)
    targets = rng.integers(0, VOCAB_SIZE, (batch, context)).astype(np.int32)
    model, ours = make_ours(config, ids, targets)
    peer = make_peer(model, ids, targets)
    first = ours(), peer()
    if abs(first[0] - first[1]) > 1e-4:
        raise SystemExit(f"the two models disagree: loss {first[0]} and {first[1]}")
    for _ in range(2):  # warm-up
        ours()
        peer()

    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + args.seconds
    while time.perf_counter() < end or len(times[0]) < 20:
        times[0].append(timed(ours))
        times[1].append(timed(peer))

    info = miaobi.build_info()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    ).stdout.strip()
    tokens = batch * context
    print(f"{info['cpu']}, isa {info['isa']}, backend {info['backend']}, {args.threads} threads, commit {commit}")
    print(f"{args.preset}: {model.num_parameters:,} parameters, batch {batch} x {context}, float32")
    result: dict[str, Any] = {"preset": args.preset, "threads": args.threads, "isa": info["isa"], "commit": commit}
    for name, values in (("miaobi", times[0]), (f"torch {torch.__version__}", times[1])):
        median = statistics.median(values)
        spread = statistics.quantiles(values, n=10)
        print(
            f"  {name:<16} {tokens / median:8.0f} tokens/s   median {median * 1e3:7.1f} ms, "
            f"best {min(values) * 1e3:.1f}, 10-90% {spread[0] * 1e3:.1f}-{spread[-1] * 1e3:.1f}, n={len(values)}"
        )
        result[name.split()[0]] = round(tokens / median, 1)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    print(f"  ratio {ratio:.2f} (median of pairs)")
    print(json.dumps({**result, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()

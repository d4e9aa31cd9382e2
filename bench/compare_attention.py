# SPDX-License-Identifier: MIT
"""Causal attention side by side with PyTorch's scaled_dot_product_attention, alternated in one process.

    python bench/compare_attention.py [--threads 1 2] [--seconds 60] [--json FILE]

Each side has its own best layout: ours (tokens, heads * head size), PyTorch's (batch, heads, tokens, head size).
PyTorch runs eagerly and compiled. Forward alone, and forward with the gradients of queries, keys and values. Results
are checked before they are timed. Needs PyTorch, a C++ compiler for torch.compile, and threadpoolctl.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import side_by_side as sbs

import numpy as np  # isort: skip
import torch

from miaobi import _core

Case = tuple[list[Any], bool]


def checked_sides(case: Case) -> dict[str, sbs.Run]:
    (_, batch, heads, length, size), backward = case
    rng = np.random.default_rng(0)
    heads_apart = [rng.standard_normal((batch, heads, length, size), dtype=np.float32) for _ in range(4)]
    q, k, v, dy = (np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(batch * length, -1) for x in heads_apart)
    offsets = np.arange(batch + 1, dtype=np.int64) * length
    tensors = [torch.from_numpy(x).requires_grad_(backward) for x in heads_apart[:3]]
    torch_dy = torch.from_numpy(heads_apart[3])

    def ours() -> list[Any]:
        o, lse = _core.attention(q, k, v, offsets, heads, True)
        if not backward:
            return [o]
        return [o, *_core.attention_backward(dy, q, k, v, o, lse, offsets, heads, True)]

    def op(q: Any, k: Any, v: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def side(op: Callable[..., Any]) -> Callable[[], list[Any]]:
        def run() -> list[Any]:
            if not backward:
                with torch.inference_mode():
                    return [op(*tensors)]
            y = op(*tensors)
            return [y, *torch.autograd.grad(y, tensors, torch_dy)]

        return run

    sides: dict[str, Callable[[], list[Any]]] = {
        "miaobi": ours,
        "torch eager": side(op),
        "torch compile": side(torch.compile(op, dynamic=False)),
    }
    expected = [x.detach().numpy().transpose(0, 2, 1, 3).reshape(q.shape) for x in sides["torch eager"]()]
    for what, got, want in zip(("o", "dq", "dk", "dv"), ours(), expected, strict=False):
        sbs.expect_equal(f"{case}, {what}", got, want, 1e-4)
    return sides


def main() -> None:
    report = sbs.Report(sbs.parser_for(__doc__, 60.0))
    cases: list[Case] = [(shape, backward) for shape in sbs.shapes("kAttentions") for backward in (False, True)]
    for threads, case, seconds in sbs.product(report, cases):
        samples = sbs.alternate(checked_sides(case), seconds)
        torch._dynamo.reset()
        (name, batch, heads, length, size), backward = case
        # Half of the T x T products is visible; forward has two of that size, backward five.
        flops = batch * heads * length * length * size * (7 if backward else 2)
        about = {
            "name": name,
            "shape": f"{batch}x{heads}x{length}x{size}",
            "pass": "forward + backward" if backward else "forward",
            "threads": threads,
        }
        report.add(about, samples, gflops={name: round(flops / v.median * 1e-9, 1) for name, v in samples.items()})
    report.finish()


if __name__ == "__main__":
    main()

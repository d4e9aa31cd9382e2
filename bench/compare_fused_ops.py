# SPDX-License-Identifier: MIT
"""LayerNorm + linear and GELU + linear: fused, against our own ops one after the other and PyTorch, in one process.

    python bench/compare_fused_ops.py [--threads 1 2] [--rows 1 32] [--seconds 240] [--json FILE]

PyTorch runs eagerly and compiled (torch.compile, one compilation for each shape), forward alone without autograd, and
forward with the gradients of input, weight, bias and norm. All results are checked before they are timed. Needs
PyTorch, a C++ compiler for torch.compile, and threadpoolctl.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import side_by_side as sbs

import numpy as np  # isort: skip
import torch

import miaobi
from miaobi import _core


class Case(NamedTuple):
    """f(X) W + b with X (rows, inputs), at the widths of a preset."""

    op: str
    preset: str
    rows: int
    inputs: int
    outputs: int
    backward: bool


def all_cases() -> list[Case]:
    """The large ones last, so that they get the time that small ones leave."""
    cases = [
        Case(op, name, rows, *((width, inner) if op == "LayerNorm + linear" else (inner, width)), backward)
        for name, _, _, width, inner, *_ in sbs.shapes("kModels")
        for rows in sbs.shapes("kFusedRows")
        for op in ("LayerNorm + linear", "GELU + linear")
        for backward in (False, True)
    ]
    return sorted(cases, key=lambda c: c.rows * c.inputs * c.outputs)


class Operands:
    """The same numbers for every side."""

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(0)
        self.x, self.dy = (rng.standard_normal((case.rows, n), dtype=np.float32) for n in (case.inputs, case.outputs))
        self.parameters = {
            "weight": rng.standard_normal((case.inputs, case.outputs), dtype=np.float32) / np.float32(case.inputs**0.5),
            "bias": rng.standard_normal(case.outputs, dtype=np.float32),
            "gamma": rng.standard_normal(case.inputs, dtype=np.float32),
            "beta": rng.standard_normal(case.inputs, dtype=np.float32),
        }

    def load(self, layer: Any) -> Any:
        for name, view in layer.parameters().items():
            view[:] = self.parameters[name]
        return layer


def our_sides(case: Case, operands: Operands) -> dict[str, Callable[[], tuple[Any, Any, Any]]]:
    """Functions that give y and, with backward, dx and the weight's gradient."""
    x, dy, ends = operands.x, operands.dy, (case.inputs, case.outputs)
    normalises = case.op == "LayerNorm + linear"
    fused = operands.load((miaobi.FusedLayerNormLinear if normalises else miaobi.FusedGELULinear)(*ends))
    linear = operands.load(miaobi.Linear(*ends))
    norm = operands.load(miaobi.LayerNorm(case.inputs))

    def run_fused() -> tuple[Any, Any, Any]:
        y = fused.forward(x)
        return (y, fused.backward(dy), fused.gradients()["weight"]) if case.backward else (y, None, None)

    def run_unfused() -> tuple[Any, Any, Any]:
        y = linear.forward(norm.forward(x) if normalises else _core.gelu(x))
        if not case.backward:
            return y, None, None
        df = linear.backward(dy)
        return y, norm.backward(df) if normalises else _core.gelu_backward(df, x), linear.gradients()["weight"]

    return {"miaobi": run_fused, "miaobi unfused": run_unfused}


def torch_sides(case: Case, operands: Operands) -> dict[str, Callable[[], tuple[Any, Any, Any]]]:
    linear = torch.nn.Linear(case.inputs, case.outputs)
    norm = torch.nn.LayerNorm(case.inputs)
    with torch.no_grad():
        for name, target in (
            ("weight", linear.weight),
            ("bias", linear.bias),
            ("gamma", norm.weight),
            ("beta", norm.bias),
        ):
            target.copy_(torch.from_numpy(operands.parameters[name].T))
    normalises = case.op == "LayerNorm + linear"
    x = torch.from_numpy(operands.x).requires_grad_(case.backward)
    dy = torch.from_numpy(operands.dy)
    wanted = [x, linear.weight, linear.bias, *([norm.weight, norm.bias] if normalises else [])]

    def op(x: Any) -> Any:
        return linear(norm(x) if normalises else torch.nn.functional.gelu(x, approximate="tanh"))

    def side(op: Callable[[Any], Any]) -> Callable[[], tuple[Any, Any, Any]]:
        def run() -> tuple[Any, Any, Any]:
            if not case.backward:
                with torch.inference_mode():
                    return op(x), None, None
            y = op(x)
            dx, dw, *_ = torch.autograd.grad(y, wanted, dy)
            return y, dx, dw

        return run

    # A forward without autograd has code of its own.
    return {"torch eager": side(op), "torch compile": side(torch.compile(op, dynamic=False))}


def checked_sides(case: Case) -> dict[str, sbs.Run]:
    operands = Operands(case)
    ours, theirs = our_sides(case, operands), torch_sides(case, operands)
    expected = [None if part is None else part.detach().numpy() for part in theirs["torch eager"]()]
    for name, run in {**ours, **theirs}.items():
        for what, got, want in zip(("y", "dx", "dw"), run(), expected, strict=True):
            if want is not None:
                got = got.detach().numpy() if isinstance(got, torch.Tensor) else got
                # PyTorch stores the weight transposed. Our gradients accumulate, but this was the first.
                transposed = what == "dw" and name.startswith("torch") is False
                sbs.expect_equal(f"{case}, {name}, {what}", got.T if transposed else got, want, 1e-4)
    return {**ours, **theirs}


def main() -> None:
    parser = sbs.parser_for(__doc__, 240.0)
    rows = sbs.shapes("kFusedRows")
    parser.add_argument("--rows", type=int, nargs="+", choices=rows, default=rows, help="these numbers of rows alone")
    report = sbs.Report(parser)
    cases = [case for case in all_cases() if case.rows in report.args.rows]
    for threads, case, seconds in sbs.product(report, cases):
        samples = sbs.alternate(checked_sides(case), seconds)
        torch._dynamo.reset()  # the next shape is a program of its own, not another shape of this one
        flops = 2 * case.rows * case.inputs * case.outputs * (3 if case.backward else 1)
        about = {
            "op": case.op,
            "preset": case.preset,
            "rows": case.rows,
            "shape": f"{case.rows}x{case.inputs}x{case.outputs}",
            "pass": "forward + backward" if case.backward else "forward",
            "threads": threads,
        }
        report.add(about, samples, gflops={name: round(flops / v.median * 1e-9, 1) for name, v in samples.items()})
    report.finish()


if __name__ == "__main__":
    main()

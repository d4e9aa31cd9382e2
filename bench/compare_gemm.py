# SPDX-License-Identifier: MIT
"""Matrix products side by side with NumPy and PyTorch, alternated in one process.

    python bench/compare_gemm.py [--threads 1 2] [--precision float32 bf16] [--seconds 120] [--json FILE]

Float32 products of a layer (Y = X W, dW = X^T dY, dX = dY W^T), a few rows against each weight, and our bf16 precision
against our float32. All write into an array that is there. Results are checked before they are timed. Needs PyTorch
and threadpoolctl.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import side_by_side as sbs

import numpy as np  # isort: skip
import torch

import miaobi


class Case(NamedTuple):
    """An (m, k) x (k, n) product; `form` says which operand is stored transposed."""

    name: str
    form: str
    m: int
    k: int
    n: int
    bf16: bool = False


FORMS = {"Y = X W": (False, False), "dW = X^T dY": (True, False), "dX = dY W^T": (False, True)}
SQUARE_FORM = "Y = X W"


def all_cases() -> list[Case]:
    cases = [Case(name, form, m, k, n) for name, m, k, n in sbs.shapes("kGemms") for form in FORMS]
    cases += [
        Case(name, SQUARE_FORM, m, k, n)
        for name, k, n in sbs.shapes("kSkinnyWeights")
        for m in sbs.shapes("kSkinnyRows")
    ]
    return cases + [Case(name, SQUARE_FORM, m, k, n, True) for name, m, k, n in sbs.shapes("kGemms")[2:]]


def sides_of(case: Case) -> dict[str, sbs.Run]:
    rng = np.random.default_rng(0)
    ta, tb = FORMS[case.form]
    a = rng.standard_normal((case.k, case.m) if ta else (case.m, case.k), dtype=np.float32)
    b = rng.standard_normal((case.n, case.k) if tb else (case.k, case.n), dtype=np.float32)
    outs = [np.empty((case.m, case.n), np.float32) for _ in range(3)]
    left, right = (a.T if ta else a), (b.T if tb else b)
    tensors = [torch.from_numpy(x) for x in (a, b, outs[2])]
    torch_left, torch_right = (tensors[0].T if ta else tensors[0]), (tensors[1].T if tb else tensors[1])

    def ours() -> Any:
        return miaobi.ops.matmul(a, b, transpose_a=ta, transpose_b=tb, out=outs[0])

    if case.bf16:
        # The precision is a setting of the process; setting it costs nothing that could be measured.
        def half() -> None:
            miaobi.set_matmul_precision("bf16")
            miaobi.ops.matmul(a, b, transpose_a=ta, transpose_b=tb, out=outs[1])
            miaobi.set_matmul_precision("highest")

        ours()
        half()
        sbs.expect_equal(f"{case}", outs[1], outs[0], 2e-2)  # operands have 8 bits
        torch_half = [x.to(torch.bfloat16) for x in (torch_left, torch_right)]
        # PyTorch's operands are bf16 already, ours are float32.
        return {"miaobi bf16": half, "miaobi": ours, "torch bf16": lambda: torch.mm(*torch_half)}
    sides: dict[str, sbs.Run] = {
        "miaobi": ours,
        "numpy": lambda: np.matmul(left, right, out=outs[1]),
        "torch": lambda: torch.mm(torch_left, torch_right, out=tensors[2]),
    }
    for run in sides.values():
        run()
    for name, out in zip(list(sides)[1:], outs[1:], strict=True):
        sbs.expect_equal(f"{case}, {name}", outs[0], out, 1e-5)
    return sides


def main() -> None:
    parser = sbs.parser_for(__doc__)
    precisions = ["float32", "bf16"]
    parser.add_argument("--precision", nargs="+", choices=precisions, default=precisions, help="which products")
    report = sbs.Report(parser)
    cases = [case for case in all_cases() if ("bf16" if case.bf16 else "float32") in report.args.precision]
    with torch.no_grad():
        for threads, case, seconds in sbs.product(report, cases):
            samples = sbs.alternate(sides_of(case), seconds)
            ours = next(iter(samples))
            gflops = 2e-9 * case.m * case.k * case.n
            about = {
                "name": case.name,
                "form": case.form,
                "shape": f"{case.m}x{case.k}x{case.n}",
                "precision": "bf16" if case.bf16 else "float32",
                "threads": threads,
            }
            speeds = {name: round(gflops / values.median, 2) for name, values in samples.items()}
            report.add(about, samples, ours, gflops=speeds)
    report.finish()


if __name__ == "__main__":
    main()

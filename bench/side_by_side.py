# SPDX-License-Identifier: MIT
"""What the comparisons share: sides that take turns in one process, statistics, the head of a report and its file.

Import this before NumPy, because it unsets variables that would slow NumPy's BLAS down.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Settings of the machine's owner that make OpenBLAS use another kernel or block size than it would take by itself.
for _name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_name, None)
# Its threads spin for 2**n cycles after a product, by default some 50 ms, which slow down whoever has the next turn.
# 2**20 are half a millisecond: never reached between the calls of one sample, so that NumPy is as fast as before.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

import numpy as np  # noqa: E402
import threadpoolctl  # noqa: E402

import miaobi  # noqa: E402
from miaobi.files import write_atomic  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
MIN_SAMPLES = 20
FEWEST_SAMPLES = 5  # of a case that would otherwise take far more than its time
_PAUSE = 0.005  # threads of OpenMP and OpenBLAS go on spinning for less than that after a call; nobody is to pay for it
_SAMPLE_SECONDS = 1e-3  # a shorter call is repeated within a sample, so that the clock does not count
_AWAKE_SECONDS = 2e-2  # before a shorter call threads are woken by another, untimed: sleep is no part of a product

Run = Callable[[], object]


def shapes(name: str) -> list[list[Any]]:
    """The rows of a table in shapes.h."""
    text = (ROOT / "bench" / "shapes.h").read_text(encoding="utf-8")
    table = re.search(rf"constexpr \w+ {name}\[\] = \{{(.*?)\}};", text, re.DOTALL)
    if table is None:
        raise ValueError(f"there is no table {name} in bench/shapes.h")
    values: list[Any] = json.loads("[" + table[1].replace("{", "[").replace("}", "]").rstrip(", \n") + "]")
    return values


def use_threads(threads: int) -> None:
    """The same number for miaobi, NumPy's BLAS and, where it is loaded, PyTorch."""
    miaobi.set_num_threads(threads)
    threadpoolctl.threadpool_limits(limits=threads, user_api="blas")
    if (torch := _torch()) is not None:
        torch.set_num_threads(threads)
        torch._dynamo.reset()  # compiled code is for the number of threads it was compiled with


def _torch() -> Any:
    import sys

    return sys.modules.get("torch")


def head() -> dict[str, Any]:
    """The facts that a figure depends on."""
    info = miaobi.build_info()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[call-overload]
    loaded = [pool for pool in threadpoolctl.threadpool_info() if "numpy" in pool["filepath"]]
    facts: dict[str, Any] = {
        "cpu": info["cpu"],
        "processors": info["processors"],
        "isa": info["isa"],
        "backend": info["backend"],
        "compiler": info["compiler"],
        "commit": _output("git", "describe", "--always", "--dirty", "--exclude=*"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load": round(os.getloadavg()[0], 2),
        "miaobi": info["version"],
        "numpy": f"{np.__version__}, {blas['name']} {blas['version']}",
    }
    if loaded and "architecture" in loaded[0]:
        facts["numpy"] += f", {loaded[0]['architecture']} kernels"
    if (torch := _torch()) is not None:
        facts["torch"] = f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    return facts


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip() or "unknown"


@dataclass
class Samples:
    """Seconds of one call, in the order in which they were measured."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def summary(self) -> dict[str, float]:
        """Median, best, the 10% and 90% quantiles, and how many."""
        ordered = sorted(self.seconds)

        def quantile(share: float) -> float:
            return ordered[round(share * (len(ordered) - 1))]

        values = {"median": self.median, "best": ordered[0], "p10": quantile(0.1), "p90": quantile(0.9)}
        return {**{name: float(f"{value:.4g}") for name, value in values.items()}, "n": len(ordered)}


def alternate(sides: Mapping[str, Run], seconds: float, *, warm: bool = False) -> dict[str, Samples]:
    """Times of the sides, in turns, for about `seconds` together.

    Each is called once before unless all are `warm`, long calls that have been made; a short one is repeated within a
    sample, and called once more untimed before it. At least 20 samples, unless those would take more than twice the
    time; then at least 5.
    """
    repeats = dict.fromkeys(sides, 1)
    wake = False
    for name, run in sides.items():
        if warm:
            continue
        run()
        start = time.perf_counter()
        run()
        took = max(time.perf_counter() - start, 1e-9)
        repeats[name] = max(1, int(_SAMPLE_SECONDS / took))
        wake = wake or took < _AWAKE_SECONDS  # all or none
    pause = _PAUSE if miaobi.get_num_threads() > 1 else 0.0
    samples = {name: Samples() for name in sides}
    order = list(sides)
    begin = time.perf_counter()
    for done in range(1_000_000):
        spent = time.perf_counter() - begin
        if (done >= MIN_SAMPLES and spent >= seconds) or (done >= FEWEST_SAMPLES and spent >= 2 * seconds):
            break
        for turn in range(len(order)):
            name = order[(done + turn) % len(order)]  # each follows each other one, and none is always the last
            run, repeat = sides[name], repeats[name]
            if pause:
                time.sleep(pause)
            if wake:
                run()
            start = time.perf_counter()
            for _ in range(repeat):
                run()
            samples[name].seconds.append((time.perf_counter() - start) / repeat)
    return samples


def ratio(ours: Samples, theirs: Samples) -> float:
    """How many times as fast we are: the median over the turns, so that what slows both down cancels."""
    return statistics.median(b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True))


def expect_equal(what: str, ours: Any, theirs: Any, relative: float) -> None:
    """Ends the program unless all elements agree within `relative` of the largest expected one."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    error = np.max(np.abs(ours - theirs), initial=0.0) / max(np.max(np.abs(theirs), initial=0.0), 1e-30)
    if ours.shape != theirs.shape or not error <= relative:
        raise SystemExit(
            f"{what}: the results differ by {error:.2g} of the largest element, shapes {ours.shape}, "
            f"{theirs.shape}; nothing is timed"
        )


class Report:
    """Prints cases as they are measured, keeps them in a file, and shares the time out among those that are left."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.name = Path(parser.prog).stem
        self.args = parser.parse_args()
        self.result: dict[str, Any] = {}
        self._left = 0
        self._end = 0.0

    def start(self, cases: int) -> None:
        """Prints the head. `cases` are to come."""
        facts = head()
        self.result = {"script": self.name, "head": facts, "cases": self._earlier(facts) if self.args.add else []}
        self._left, self._end = cases, time.perf_counter() + self.args.seconds
        print(
            f"{facts['cpu']}, isa {facts['isa']}, backend {facts['backend']}, threads {self.args.threads}, "
            f"commit {facts['commit']}, load {facts['load']}"
        )
        print(f"against numpy {facts['numpy']}" + (f"; torch {facts['torch']}" if "torch" in facts else ""), flush=True)

    def _earlier(self, facts: Mapping[str, Any]) -> list[Any]:
        """The cases that --json holds already, if they are of this commit and machine."""
        if self.args.json is None or not self.args.json.exists():
            return []
        found = json.loads(self.args.json.read_text("utf-8"))
        for name in ("cpu", "isa", "commit", "numpy", "torch"):
            if found["head"].get(name) != facts.get(name):
                raise SystemExit(
                    f"{self.args.json} is of {name} {found['head'].get(name)}, this is {facts.get(name)}; "
                    "measure all of it again, without --add"
                )
        cases: list[Any] = found["cases"]
        return cases

    def turn(self) -> float | None:
        """Seconds for the next case; None where the time is up, and the case is left out."""
        left = self._end - time.perf_counter()
        seconds = max(left, 0) / max(self._left, 1)
        self._left -= 1
        if left > 0:
            return seconds
        self.result["left_out"] = self.result.get("left_out", 0) + 1
        return None

    def add(self, case: Mapping[str, Any], samples: Mapping[str, Samples], ours: str = "miaobi", **more: Any) -> None:
        """A case: `case` tells which; the first of `samples` is `ours`, the others are what it is compared with."""
        peers = {name: ratio(samples[ours], samples[name]) for name in samples if name != ours}
        others = [name for name in peers if not name.startswith("miaobi")]
        best = min(others, key=lambda name: samples[name].median, default=None)
        row = {
            **case,
            "sides": {name: values.summary() for name, values in samples.items()},
            "ratios": {name: round(value, 3) for name, value in peers.items()},
            **({"best_peer": best} if best else {}),
            **more,
        }
        # With --add, a case that was measured before is replaced.
        kept = [other for other in self.result["cases"] if any(other.get(key) != value for key, value in case.items())]
        self.result["cases"] = [*kept, row]
        title = ", ".join(f"{name} {value}" if not isinstance(value, str) else value for name, value in case.items())
        print(f"\n{title}")
        for name, values in row["sides"].items():
            compared = f"   {peers[name]:6.2f}x{' best peer' if name == best else ''}" if name in peers else ""
            print(
                f"  {name:<18} median {_time(values['median'])}  best {_time(values['best'])}  10-90% "
                f"{_time(values['p10'])} to {_time(values['p90'])}  n={values['n']}{compared}",
                flush=True,
            )
        self.save()

    def save(self) -> None:
        """Writes what there is to --json."""
        if self.args.json is not None:
            write_atomic(self.args.json, (json.dumps(self.result, ensure_ascii=False, indent=1) + "\n").encode())

    def finish(self) -> None:
        """Prints everything as one line of JSON."""
        if self.result.get("left_out"):
            print(f"\n{self.result['left_out']} cases were left out: the time was up (--seconds)")
        self.save()
        print(json.dumps(self.result, ensure_ascii=False))


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:8.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:8.2f} us"


def parser_for(description: str | None, seconds: float = 120.0) -> argparse.ArgumentParser:
    """The options that all comparisons have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    counts = sorted({1, miaobi.build_info()["processors"]})
    parser.add_argument(
        "--threads", type=int, nargs="+", default=counts, help="numbers of threads, one after the other"
    )
    parser.add_argument("--seconds", type=float, default=seconds, help="for everything, about (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results here as they come")
    parser.add_argument("--add", action="store_true", help="keep what --json holds of other cases, of the same commit")
    return parser


def product(report: Report, cases: Sequence[Any]) -> Iterator[tuple[int, Any, float]]:
    """(threads, case, seconds) for all of them, as long as there is time; sets the threads."""
    report.start(len(cases) * len(report.args.threads))
    for threads in report.args.threads:
        use_threads(threads)
        for case in cases:
            seconds = report.turn()
            if seconds is not None:
                yield threads, case, seconds

# SPDX-License-Identifier: MIT
"""Measures everything that docs/performance.md shows, and writes the page. Leave the machine alone meanwhile.

    python bench/run_all.py [--minutes 15] [--only gemm train] [--out bench/results/NAME]

Each part is a process of its own that gets a share of the time and is ended where it takes far more; its results are
saved as they come, in a folder for this machine. Needs what the comparisons need (pip install '.[bench]'; '.[llama]'
for the one with llama.cpp) and, for the native part, CMake, Ninja and google-benchmark; without them that part is left
out with a note.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import miaobi

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "build" / "bench" / "bench"


@dataclass(frozen=True)
class Part:
    """A script or a native benchmark with its share of the time."""

    name: str
    share: float
    arguments: tuple[str, ...] = ()

    @property
    def native(self) -> bool:
        return self.name.startswith("bench_")

    def command(self, seconds: float, file: Path) -> list[str]:
        if self.native:
            out = [f"--benchmark_out={file}", "--benchmark_out_format=json"]
            return [str(NATIVE / self.name), *self.arguments, *out]
        script = str(ROOT / "bench" / f"{self.name}.py")
        return [sys.executable, script, *self.arguments, "--seconds", f"{seconds:.0f}", "--json", str(file)]


# What matters most comes first.
PARTS = (
    Part("compare_gemm", 0.15),
    Part("compare_train", 0.27),
    Part("train_vocabulary", 0.04),
    Part("compare_attention", 0.09),
    Part("compare_fused_ops", 0.3),
    Part("busy_machine", 0.04),
    Part("compare_cache", 0.05),
    Part("compare_generate", 0.03),
    Part("compare_llama_cpp", 0.1),
    Part("bench_gemm", 0.05, ("--benchmark_min_time=0.05",)),
    # Making base, whose weights are drawn again for each line, would take longer than all others together.
    Part("bench_kv_cache", 0.05, ("--benchmark_min_time=0.05", "--benchmark_filter=nano|small")),
)


# Seconds beyond the shares: compiling base, and the least number of its steps.
OVERRUN = 180


def build_native() -> bool:
    """Builds the native benchmarks; False, with a note, where that is not possible here."""
    for command in (["cmake", "--preset", "bench"], ["cmake", "--build", "--preset", "bench"]):
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            print("The native benchmarks are left out: there is no cmake.")
            return False
        if done.returncode:
            print(f"The native benchmarks are left out: {' '.join(command)} failed.\n{done.stderr or done.stdout}")
            return False
    return True


def run(part: Part, seconds: float, file: Path) -> bool:
    """Runs a part, for at most twice its time and two minutes; True where it came to its end."""
    begin = time.perf_counter()
    with open(file.with_suffix(".log"), "w", encoding="utf-8") as log:
        process = subprocess.Popen(part.command(seconds, file), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            code: int | str = process.wait(timeout=2 * seconds + 120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = "it took too long"
    took = time.perf_counter() - begin
    if code == 0 and part.native:
        _forget_place(file)
    print(
        f"{part.name:<20}{took:6.0f} s   " + ("done" if code == 0 else f"NOT DONE ({code}), see {log.name}"), flush=True
    )
    return code == 0


def _forget_place(file: Path) -> None:
    """Takes out of google-benchmark's results where they were made: a name and a path that mean nothing elsewhere."""
    results = json.loads(file.read_text(encoding="utf-8"))
    for name in ("host_name", "executable"):
        results["context"].pop(name, None)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="for everything, about (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="these parts alone")
    info = miaobi.build_info()
    machine = re.sub(r"[^a-z0-9]+", "-", f"{info['cpu']} {info['isa']}".lower()).strip("-")
    folder = ROOT / "bench" / "results" / machine
    parser.add_argument("--out", type=Path, default=folder, help="folder for the results (default: %(default)s)")
    args = parser.parse_args()

    parts = [part for part in PARTS if args.only is None or part.name in args.only]
    args.out.mkdir(parents=True, exist_ok=True)
    if any(part.native for part in parts) and not build_native():
        parts = [part for part in parts if not part.native]
    if importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("gguf") is None:
        print("The comparison with llama.cpp is left out: pip install '.[llama]'.")
        parts = [part for part in parts if part.name != "compare_llama_cpp"]
    scale = max(60 * args.minutes - OVERRUN, 60) / sum(part.share for part in PARTS)
    complete = [run(part, part.share * scale, args.out / f"{part.name}.json") for part in parts]
    subprocess.run([sys.executable, str(ROOT / "bench" / "make_performance_page.py")], check=True)
    if not all(complete):
        sys.exit(1)


if __name__ == "__main__":
    main()

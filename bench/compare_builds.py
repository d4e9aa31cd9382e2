# SPDX-License-Identifier: MIT
"""The native benchmarks of two builds side by side, alternated in one process: what a change gained or lost.

    git worktree add ../before HEAD~1 && cmake --preset bench -S ../before && cmake --build ../before/build/bench
    python bench/compare_builds.py ../before/build/bench build/bench --filter 'batch/.*/nano' [--threads 1 2]
                                   [--seconds 60] [--json FILE]

Turns of some milliseconds tell differences of one or two percent on a machine where whole runs differ by twenty. Each
build's first result of a case is checked. Linux, for both builds' libraries have functions of the same names.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import side_by_side as sbs


class Build:
    """The cases of all benchmarks of a build."""

    def __init__(self, folder: Path) -> None:
        self._library_of: dict[str, ctypes.CDLL] = {}
        for path in sorted((folder / "bench").glob("libbench_*_cases.so")):
            library = ctypes.CDLL(str(path.resolve()), mode=os.RTLD_LOCAL | os.RTLD_DEEPBIND)
            library.miaobi_bench_names.restype = library.miaobi_bench_choose.restype = ctypes.c_char_p
            for name in library.miaobi_bench_names().decode().split():
                self._library_of[name] = library
        if not self._library_of:
            raise SystemExit(f"{folder} has no bench/libbench_*_cases.so: expected a build folder of the preset bench")

    @property
    def names(self) -> list[str]:
        return list(self._library_of)

    def case(self, name: str) -> sbs.Run:
        library = self._library_of[name]
        if (wrong := library.miaobi_bench_choose(name.encode())) is not None:
            raise SystemExit(f"{name}: {wrong.decode()}")
        run: sbs.Run = library.miaobi_bench_run
        return run


def main() -> None:
    parser = sbs.parser_for(__doc__, 60.0)
    parser.add_argument("old", type=Path, help="build folder to compare with")
    parser.add_argument("new", type=Path, help="build folder whose gain is wanted")
    parser.add_argument("--filter", default="", help="regular expression; of the cases with a match in their names")
    report = sbs.Report(parser)
    args = report.args
    old, new = Build(args.old), Build(args.new)
    names = [name for name in new.names if name in set(old.names) and re.search(args.filter, name)]
    names = [name for name in names if int(name.rsplit(":", 1)[1]) in args.threads]
    if not names:
        raise SystemExit(f"no case of both builds matches {args.filter!r} with {args.threads} threads")
    report.start(len(names))
    for name in names:
        seconds = report.turn()
        if seconds is None:
            continue
        sbs.use_threads(int(name.rsplit(":", 1)[1]))
        sides = {"miaobi": new.case(name), "miaobi, old": old.case(name)}
        report.add({"case": name}, sbs.alternate(sides, seconds))
    report.finish()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: MIT
"""Writes python/miaobi/_core.pyi from the built extension; with --check, fails where the committed one differs.

Needs pybind11-stubgen and ruff beside an installed miaobi.
"""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

STUB = Path(__file__).resolve().parents[1] / "miaobi" / "_core.pyi"
HEADER = "# SPDX-License-Identifier: MIT\n"


def generate() -> str:
    """The stub of the extension that this interpreter imports, formatted."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pybind11_stubgen", "miaobi._core", "-o", folder, "--exit-code"],
            check=True,
            stderr=subprocess.PIPE,
        )
        lines = (Path(folder) / "miaobi" / "_core.pyi").read_text(encoding="utf-8").splitlines()
    # The version is written in pyproject.toml alone.
    lines = ["__version__: str" if line.startswith("__version__") else line for line in lines]
    text = HEADER + "\n".join(lines) + "\n"
    # What strict type checking wants and pybind11 does not say.
    for old, new in (("os.PathLike |", "os.PathLike[str] |"), ("self, *args)", "self, *args: object)")):
        text = text.replace(old, new)
    for command in (["check", "--fix", "--select", "I,F401,UP,E3", "--quiet"], ["format", "--quiet"]):
        text = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(STUB), "-"],
            input=text,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        ).stdout
    return text


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed stub instead of writing it")
    check = parser.parse_args().check
    new = generate()
    if not check:
        STUB.write_text(new, encoding="utf-8")
        return 0
    old = STUB.read_text(encoding="utf-8") if STUB.exists() else ""
    difference = list(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "committed", "generated"))
    sys.stderr.writelines(difference)
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())

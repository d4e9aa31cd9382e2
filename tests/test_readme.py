# SPDX-License-Identifier: MIT
"""The READMEs: their Python runs, their commands parse, their links lead somewhere, and the two are twins."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

from miaobi.cli import app

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh-CN.md")
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


class Block(NamedTuple):
    """A fenced block of code, and the lines of its file before it."""

    language: str
    code: str
    line: int


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks_of(name: str, language: str | None = None) -> list[Block]:
    text = text_of(name)
    found = [
        Block(match[1], match[2], text.count("\n", 0, match.start(2)))
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]
    return [block for block in found if language in (None, block.language)]


def prose_of(name: str) -> str:
    return re.sub(r"^```.*?^```$", "", text_of(name), flags=re.MULTILINE | re.DOTALL)


def commands_of(name: str) -> list[str]:
    """What is typed in the console blocks."""
    lines = "".join(block.code for block in blocks_of(name, "console")).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def headings_of(name: str) -> list[str]:
    return re.findall(r"^(#+ .+)$", prose_of(name), re.MULTILINE)


def anchor_of(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


@pytest.mark.parametrize("name", READMES)
def test_python_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(name, "python")
    assert len(blocks) >= 3
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        # The empty lines make a traceback name the line of the README.
        exec(compile("\n" * block.line + block.code, str(ROOT / name), "exec"), namespace)
        printed = capsys.readouterr().out
        for expected in re.findall(r"^print\(.*\)  # (.+)$", block.code, re.MULTILINE):
            assert expected in printed


@pytest.mark.parametrize("name", READMES)
def test_commands_parse(name: str) -> None:
    commands = [shlex.split(line) for line in commands_of(name)]
    ours = [words[1:] for words in commands if words[0] == "miaobi"]
    assert {words[0] for words in ours} >= {"demo", "train", "generate", "chat"}
    for words in ours:
        COMMANDS[words[0]].make_context(words[0], words[1:])  # raises for an unknown option or a missing argument


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_that_are_named_exist(name: str) -> None:
    assert set(re.findall(r"`miaobi (\w+)[^`]*`", prose_of(name))) <= set(COMMANDS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(name)):
        if link.startswith("https://"):
            continue
        path, _, fragment = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists(), f"{name}: {link}"
        if fragment:
            headings = headings_of(str(target.relative_to(ROOT)))
            assert fragment in map(anchor_of, headings), f"{name}: {link}"


def test_readmes_are_twins() -> None:
    english, chinese = READMES
    assert [heading.count("#") for heading in headings_of(english)] == [
        heading.count("#") for heading in headings_of(chinese)
    ]
    assert [block.language for block in blocks_of(english)] == [block.language for block in blocks_of(chinese)]
    assert commands_of(english) == commands_of(chinese)
    assert re.findall(r"<!-- .+? -->", text_of(english)) == re.findall(r"<!-- .+? -->", text_of(chinese))
    assert chinese in text_of(english)
    assert english in text_of(chinese)


def test_performance_page_is_what_the_results_give() -> None:
    script = ROOT / "bench" / "make_performance_page.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

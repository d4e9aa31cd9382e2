# SPDX-License-Identifier: MIT
"""`miaobi train` and `miaobi demo` from end to end, as a person runs them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from miaobi.cli import main

POEMS = [
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "红豆生南国，春来发几枝。愿君多采撷，此物最相思。",
    "空山不见人，但闻人语响。返景入深林，复照青苔上。",
]
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}


class Miaobi:
    """Runs the command line within this process, which has read jieba's dictionary already."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """The exit code and what was written to stdout and stderr."""
        self._capsys.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["miaobi", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        code = caught.value.code
        assert isinstance(code, int | None)
        return code or 0, *self._capsys.readouterr()

    def good(self, *arguments: object) -> str:
        """The output of a command that has to succeed and to say nothing on stderr."""
        code, out, err = self(*arguments)
        assert (code, err) == (0, ""), out
        return out

    def refused(self, *arguments: object) -> str:
        """The one line on stderr of a command that has to end with exit code 2."""
        code, _, err = self(*arguments)
        assert code == 2, err
        return one_line(err)


def one_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    return line


@pytest.fixture
def miaobi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Miaobi:
    monkeypatch.setenv("COLUMNS", "100")
    return Miaobi(monkeypatch, capsys)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def poems(tmp_path: Path) -> Path:
    path = tmp_path / "poems.txt"
    path.write_text("\n".join(POEMS * 3) + "\n", encoding="utf-8")
    return path


SMALL = ("--batch-size", 1)  # nano on some lines of text: a step takes a few hundredths of a second


def test_training_from_a_file_to_a_model(tmp_path: Path, poems: Path, miaobi: Miaobi) -> None:
    out = tmp_path / "my poet"
    text = miaobi.good("train", poems, "--out", out, "--steps", 4, "--evaluations", 2, "--seed", 3, *SMALL)
    assert "15 documents, 360 characters" in text
    assert "to validate with" in text
    assert re.search(r"vocabulary +[\d,]+ tokens \(all that the text supports\)", text)
    assert re.search(r"[\d.]+ for a character; 0\.00% of its characters are spelt in bytes", text)
    assert re.search(r"model +[\d,]+ parameters: 2 layers, 8 heads, 256 wide, context 128; \d+ MB", text)
    assert re.search(r"run +4 steps of 1 x 128 tokens, learning rate \S+, seed 3", text)
    rows = re.findall(r"^ +(\d+) +[\d.]+ +([\d.]+) +([\d.]+) +([\d.]+) +[\d,]+ +\S+ +\d:\d\d$", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["2", "4"]
    assert "Done: 4 steps" in text
    command = shlex.split(text.strip().splitlines()[-1])
    assert command[:3] == ["miaobi", "generate", str(out)]
    assert all(ord(character) >= 32 for line in text.splitlines() for character in line)  # no escapes in a pipe
    miaobi.good(*command[1:], "--max-new-tokens", 4, "--seed", 1)
    model = ["config.json", "generation_config.json", "miaobi_tokenizer.json", "model.safetensors"]
    others = ["checkpoints", "data", "report.html", "train_log.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*model, *others])
    for name in ("best", "last"):
        files = files_in(out / "checkpoints" / name)
        assert files == sorted([*model, "manifest.json", "optimizer.safetensors", "trainer_state.json"])
    again = tmp_path / "again"
    miaobi.good("train", poems, "--out", again, "--steps", 4, "--evaluations", 2, "--seed", 3, *SMALL)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_new_model_begins_with_bigrams_or_at_random(tmp_path: Path, poems: Path, miaobi: Miaobi) -> None:
    losses = {}
    for init in ("bigrams", "random"):
        out = tmp_path / init
        text = miaobi.good("train", poems, "--out", out, "--steps", 1, "--init", init, *SMALL)
        assert ("predict each token from the one before it" in text) == (init == "bigrams")
        log = [json.loads(line) for line in (out / "train_log.jsonl").read_text("utf-8").splitlines()]
        losses[init] = next(entry["loss"] for entry in log if entry["event"] == "step")
    assert losses["bigrams"] < losses["random"] - 0.3
    assert "--init bigrams or random" in miaobi.refused("train", poems, "--out", tmp_path / "c", "--init", "zero")
    refused = miaobi.refused("train", poems, "--out", tmp_path / "c", "--from", out, "--init", "random")
    assert "--from, a model with weights, or --init" in refused


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_command_that_is_shown_goes_on(
    tmp_path: Path, poems: Path, miaobi: Miaobi, number: signal.Signals, code: int
) -> None:
    arguments = ["train", poems, "--out", tmp_path / "out", "--steps", 12, "--evaluations", 12, *SMALL]
    miaobi.good(*arguments[:3], tmp_path / "whole", *arguments[4:])
    command = [sys.executable, "-m", "miaobi", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=ENVIRONMENT) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if re.match(r" +3 ", line):
                process.send_signal(number)
    assert process.returncode == code, lines
    assert "Stopped and saved at step" in "".join(lines)
    resume = shlex.split(lines[-1])
    assert sorted(resume) == sorted(["miaobi", *map(str, arguments), "--resume"])
    log = (tmp_path / "out/train_log.jsonl").read_text("utf-8").splitlines()
    assert json.loads(log[-1])["reason"] == "stopped"
    assert 3 <= json.loads(log[-1])["step"] < 12
    assert "going on at step" in miaobi.good(*resume[1:])
    for file in ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors"):
        whole, stopped = (tmp_path / name / "checkpoints" / file for name in ("whole", "out"))
        assert whole.read_bytes() == stopped.read_bytes(), file
    assert "the run is complete: 12 steps" in miaobi.refused(*resume[1:])


IN_NATIVE_CODE = """
import hashlib
from miaobi.cli.signals import stop_on_signals
say = lambda text: print(text, flush=True)
with stop_on_signals(lambda: say("stop"), lambda: say("quit")):
    say("ready")
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes without returning to Python
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_second_ctrl_c_quits_at_once_even_within_a_step() -> None:
    with subprocess.Popen([sys.executable, "-c", IN_NATIVE_CODE], stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line.strip())
            if said[-1] in ("ready", "stop"):
                process.send_signal(signal.SIGINT)
    assert said == ["ready", "stop", "quit"]
    assert process.returncode == 130


def test_a_validation_file_and_dialogues(tmp_path: Path, poems: Path, miaobi: Miaobi) -> None:
    chats = tmp_path / "chats.jsonl"
    with open(chats, "w", encoding="utf-8") as file:
        for poem in POEMS * 8:
            messages = [{"role": "user", "content": poem[:11]}, {"role": "assistant", "content": poem[12:]}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    out = tmp_path / "out"
    text = miaobi.good(
        "train", chats, poems, "--val", poems, "--out", out, "--steps", 1, "--vocab-size", 300,
        "--prompt", "用户：白日依山尽\n助手：", *SMALL,
    )  # fmt: skip
    assert "40 documents (dialogues)" in text
    assert re.search(r"validation +\S+poems.txt: 15 documents", text)
    assert "vocabulary  300 tokens;" in text
    assert "用户：白日依山尽 ↵ 助手：" in text
    assert text.strip().splitlines()[-1].strip() == f"miaobi chat {out}"


def test_other_encodings_are_read_and_said(tmp_path: Path, miaobi: Miaobi) -> None:
    path = tmp_path / "gb.txt"
    path.write_bytes("\n".join(POEMS).encode("gb18030"))
    assert "it is in GB18030" in miaobi.good("train", path, "--out", tmp_path / "out", "--steps", 1, *SMALL)
    assert "月" in json.loads((tmp_path / "out/miaobi_tokenizer.json").read_text("utf-8"))["tokens"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "no text in it"),
        (b"\x89PNG\r\n\x1a\n\0\0", "binary"),
        (POEMS[0].encode() * 20 + b"\xfe", "broken character"),
        (b"x" * 10_000_000, "a line of 10,000,000 characters"),
    ],
    ids=["empty", "blank", "binary", "damaged", "long line"],
)
def test_a_bad_file_is_refused(tmp_path: Path, miaobi: Miaobi, content: bytes, words: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    message = miaobi.refused("train", path, "--out", tmp_path / "out", "--steps", 1)
    assert words in message
    assert str(path) in message
    assert files_in(tmp_path) == ["bad.txt"]


def test_bad_options_are_refused(tmp_path: Path, poems: Path, miaobi: Miaobi) -> None:
    out = ("--out", tmp_path / "out")
    for arguments, words in [
        ((tmp_path / "none.txt", *out), "there is no such file"),
        ((tmp_path, *out), "this is a folder"),
        ((poems, *out, "--vocab-size", 5000), "vocab_size=5000 is more than the text"),
        ((poems, *out, "--vocab-size", 10), "vocab_size of at least 264"),
        ((poems, *out, "--minutes", 1, "--steps", 1), "got --minutes and --steps"),
        ((poems, *out, "--minutes", 0), "minutes"),
        ((poems, *out, "--preset", "huge"), "--preset tiny, nano, mini, small, medium, base"),
        ((poems, *out, "--resume"), "there is no run to go on with"),
        ((poems, *out, "--resume", "--overwrite"), "got both"),
        ((poems, *out, "--val", poems, "--val-fraction", 0.1), "got both"),
        ((poems, *out, "--val-fraction", 1), "validation fraction"),
        ((poems, *out, "--document-separator", "page"), "line or blank"),
        ((poems, *out, "--threads", 0), "thread"),
        ((poems, "--out", poems), "this is a file"),
        ((poems, "--out", poems / "below"), "this is a file"),
        ((poems, "--out", "/proc/none"), "/proc"),
    ]:
        message = miaobi.refused("train", *arguments)
        assert words in message, message
        assert files_in(tmp_path) == ["poems.txt"], arguments


def test_a_model_is_not_overwritten_by_chance(tmp_path: Path, poems: Path, miaobi: Miaobi) -> None:
    out = tmp_path / "out"
    miaobi.good("train", poems, "--out", out, "--steps", 1, *SMALL)
    before = {name: (out / name).stat().st_mtime_ns for name in files_in(out)}
    assert "--overwrite" in miaobi.refused("train", poems, "--out", out, "--steps", 1)
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"")
    miaobi.refused("train", bad, "--out", out, "--overwrite")
    assert {name: (out / name).stat().st_mtime_ns for name in files_in(out)} == before
    (out / "notes.txt").write_text("mine")
    miaobi.good("train", poems, "--out", out, "--steps", 2, "--overwrite", "--val-fraction", 0, *SMALL)
    assert (out / "notes.txt").read_text() == "mine"
    assert os.listdir(out / "checkpoints") == ["last"]  # nothing of the old run is left, not even its best
    go_on = ("train", poems, "--out", out, "--resume", "--steps", 3, "--val-fraction", 0)
    assert "--preset small" in miaobi.refused(*go_on, "--preset", "small")
    assert "--vocab-size" in miaobi.refused(*go_on, "--vocab-size", 300)
    assert "not those" in miaobi.refused("train", poems, poems, *go_on[2:])
    miaobi.good(*go_on)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE")
def test_a_full_disk(tmp_path: Path, poems: Path) -> None:
    def set_limit() -> None:  # the system then refuses to let a file grow, as if there were no room
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "miaobi", "train", str(poems), "--out", str(tmp_path / "out"), "--steps", "1"]
    result = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=ENVIRONMENT, preexec_fn=set_limit, check=False
    )
    assert result.returncode == 2
    assert "large" in one_line(result.stderr)
    assert files_in(tmp_path) == ["poems.txt"]


def test_the_demo(tmp_path: Path, miaobi: Miaobi) -> None:
    out = tmp_path / "demo"
    text = miaobi.good("demo", "--minutes", 0.02, "--out", out)
    assert "statements and" in text
    assert "续写" in text
    assert "没读过的问题" in text
    assert f"miaobi chat {out}" in text
    miaobi.good("generate", out, "春天", "--max-new-tokens", 3)
    assert "--overwrite" in miaobi.refused("demo", "--minutes", 0.02, "--out", out)


@pytest.mark.parametrize("command", ["train", "demo"])
def test_help_shows_an_example(miaobi: Miaobi, command: str) -> None:
    assert f"Example: miaobi {command}" in miaobi.good(command, "--help")

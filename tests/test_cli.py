# SPDX-License-Identifier: MIT
"""The command line end to end: what each command prints, and how it says that something is wrong."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import miaobi
from miaobi.chat import ChatTemplate
from miaobi.cli import main
from miaobi.cli.options import count, generation_options, open_llm, printable
from miaobi.generation import GenerationConfig
from miaobi.llm import LLM
from miaobi.model import GPT, GPTConfig
from miaobi.tokenizer import JiebaTokenizer

TEXTS = ["床前明月光，疑是地上霜。举头望明月，低头思故乡。", "用户：你好\n助手：你好！", "春眠不觉晓，处处闻啼鸟。"]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
COMMANDS = ["demo", "train", "plan", "report", "generate", "chat", "eval", "explain", "info", "bench"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends a text by itself."""
    tokenizer = JiebaTokenizer.train(TEXTS, 400, shrink=True)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=64, n_embd=16, n_layer=1, n_head=2), seed=1)
    model.arena[:] *= 8
    model.parameters()["transformer.wte.weight"][tokenizer.eos_token_id] = 0
    path = tmp_path_factory.mktemp("models") / "model"
    LLM(model, tokenizer, GenerationConfig(seed=5, max_new_tokens=12)).save_pretrained(path)
    return path


def run(*arguments: str | Path, stdin: str | bytes = b"", code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs `miaobi` as a process of its own, as a shell does."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [sys.executable, "-m", "miaobi", *map(str, arguments)], input=data, capture_output=True, timeout=60, check=False
    )
    result = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in result.stderr
    assert result.returncode == code, result.stderr
    return result


def call(monkeypatch: Patch, *arguments: str | Path) -> int:
    """Runs `miaobi` in this process, which is faster; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["miaobi", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code if isinstance(left.value.code, int) else 0


# --- each command as a person runs it


def test_an_instruction_set_that_is_not_there_is_one_sentence(monkeypatch: Patch) -> None:
    monkeypatch.setenv("MIAOBI_ISA", "sse9")
    message = run("info", code=2).stderr
    assert "MIAOBI_ISA=sse9" in message
    assert "generic" in message
    assert message.count("\n") == 1


def test_generate_writes_the_continuation(folder: Path, monkeypatch: Patch, capsys: Capture) -> None:
    llm = LLM.from_pretrained(folder)
    piped = run("generate", folder, "-", "--max-new-tokens", "5", "--greedy", "--no-cache", stdin="床前\n").stdout
    assert piped == llm.generate("床前", max_new_tokens=5, do_sample=False) + "\n"
    assert call(monkeypatch, "generate", folder, "床前") == 0
    assert capsys.readouterr().out == llm.generate("床前") + "\n"
    assert call(monkeypatch, "generate", folder, "--num-beams", "2", "--window", "9") == 0
    llm.enable_kv_cache(window=9)
    assert capsys.readouterr().out == llm.generate(num_beams=2, do_sample=False) + "\n"


def test_generate_says_what_it_sees_and_when_there_is_nothing_to_add(
    folder: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    text = "床前明月光，" * 30
    written = LLM.from_pretrained(folder).generate(text)
    assert call(monkeypatch, "generate", folder, text, "--stop", written[0]) == 0
    captured = capsys.readouterr()
    assert captured.out == "\n"
    assert re.search(r"the text has \d+ tokens, the model sees 64", captured.err)
    assert "the model ends the text here" in captured.err


def test_generate_keeps_the_form_it_is_given(folder: Path, monkeypatch: Patch, capsys: Capture) -> None:
    def written(*options: str) -> str:
        assert call(monkeypatch, "generate", folder, "咏", *options) == 0
        return capsys.readouterr().out.removesuffix("\n")

    poem = written("--acrostic", "春夏秋冬", "--line-length", "5").split("\n")
    assert [(line[0], len(line), line[5]) for line in poem] == [
        (c, 6, e) for c, e in zip("春夏秋冬", "，。，。", strict=True)
    ]
    assert [len(line) for line in written("--line-length", "3", "--lines", "2", "--line-ends", "；").split("\n")] == [
        4,
        4,
    ]
    text = written("--characters", "20", "--sentence-end")
    assert (len(text), text[-1] in "。！？…!?") == (20, True)
    assert written("--sentence-end", "--window", "auto").rstrip()
    texts = written("-k", "3", "--bad-word", "月", "--typical-p", "0.9").split("\n\n")
    llm = LLM.from_pretrained(folder)
    assert "\n\n".join(texts) == "\n\n".join(
        llm.generate_batch(["咏"], num_return_sequences=3, bad_words="月", typical_p=0.9)
    )


def test_chat_says_that_a_model_has_read_no_dialogues(folder: Path, tmp_path: Path) -> None:
    done = run("chat", folder, stdin="你好\n")
    assert done.stdout.strip()
    assert "has read no dialogues" in done.stderr
    assert f"--from {folder}" in done.stderr
    taught = tmp_path / "taught"
    shutil.copytree(folder, taught)
    ChatTemplate().save(taught)
    assert run("chat", taught, stdin="你好\n").stderr == ""


def test_chat_keeps_the_dialogue_and_obeys_commands(folder: Path) -> None:
    llm = LLM.from_pretrained(folder)
    first = llm.chat([{"role": "user", "content": "你好"}])
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": first.strip()}]
    second = llm.chat([*messages, {"role": "user", "content": "好"}])
    assert second not in (first, llm.chat([{"role": "user", "content": "好"}]))
    done = run("chat", folder, stdin="你好\n\n好\n/clear\n你好\n/help\n/what\n/exit\n你好\n")
    assert done.stdout == f"{first}\n{second}\n{first}\n"
    assert "no command /what" in done.stderr


def test_eval_measures_documents_as_in_training(
    folder: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(line.replace("\n", " ") for line in TEXTS))
    llm = LLM.from_pretrained(folder)
    scores = [llm.score(document) for document in TEXTS]
    nats = sum(score.nats for score in scores)
    result = json.loads(run("eval", folder, text, "--json").stdout)
    assert result["documents"] == 3
    assert result["tokens"] == sum(score.tokens for score in scores)
    assert result["nats"] == pytest.approx(nats, rel=1e-6)
    assert result["bits_per_character"] == pytest.approx(nats / math.log(2) / result["characters"])
    assert call(monkeypatch, "eval", folder, text, text) == 0
    shown = capsys.readouterr().out
    assert result["accuracy"] == sum(score.correct for score in scores) / result["tokens"]
    ranked = sorted(range(3), key=lambda i: -scores[i].bits_per_character)
    assert [entry["document"] - 1 for entry in result["worst"]] == ranked
    assert result["worst"][0]["text"] == TEXTS[ranked[0]].replace("\n", " ")
    assert f"next token right    {result['accuracy']:.1%}" in shown
    assert shown.count("  document ") == 5
    assert "documents           6\n" in shown
    assert f"perplexity          {result['perplexity']:.2f}" in shown
    assert f"bits per character  {result['bits_per_character']:.3f}" in shown


def test_info_shows_the_model_or_the_machine(folder: Path, monkeypatch: Patch, capsys: Capture) -> None:
    shown = run("info", folder).stdout
    llm = LLM.from_pretrained(folder)
    for fact in (f"{llm.model.num_parameters:,} ", "64 tokens", "max_new_tokens=12", llm.tokenizer.hash[:12]):
        assert fact in shown
    assert call(monkeypatch, "info") == 0
    machine = capsys.readouterr().out
    build = miaobi.build_info()
    for fact in (build["version"], build["isa"], build["compiler"], build["backend"], build["cpu"]):
        assert fact in machine


def test_bench_measures_and_writes_its_figures(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr("miaobi.cli.bench._alternate", lambda functions, seconds, pause=0: [[0.001]] * len(functions))
    monkeypatch.setattr("miaobi.cli.bench._WRITTEN_TOKENS", (4,))
    assert call(monkeypatch, "bench", "--json", tmp_path / "bench.json") == 0
    shown = capsys.readouterr().out
    assert miaobi.build_info()["isa"] in shown
    results = json.loads((tmp_path / "bench.json").read_text())
    assert set(results) == {"build", "load_before", "matmul", "fused", "tokenizer", "decode", "train"}
    assert all(row["miaobi_gflops"] > 0 for row in results["matmul"])
    assert len(results["fused"]) == 6
    assert results["tokenizer"]["cache_hits"] == results["tokenizer"]["cache_misses"] > 0


def test_help_and_version() -> None:
    shown = run("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", shown)
    assert run("--version").stdout == f"miaobi {miaobi.build_info()['version']}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(command: str, monkeypatch: Patch, capsys: Capture) -> None:
    assert call(monkeypatch, command, "--help") == 0
    assert f"Example: miaobi {command}" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, miaobi.cli; print([m for m in ('numpy', 'jieba', 'miaobi._core') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- what is wrong is said in a sentence


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["generate", "MISSING", "床"], "no such folder"),
        (["generate", "EMPTY", "床"], r"has no config\.json"),
        (["generate", "MODEL", "床", "--temperature", "0"], "expected temperature to be a number above 0, got 0.0"),
        (["generate", "MODEL", "床", "--top-p", "2"], "expected top_p"),
        (["generate", "MODEL", "床", "--seed", "-1"], "expected seed"),
        (["generate", "MODEL", "床", "--window", "0"], "expected window"),
        (["generate", "MODEL", "床", "--window", "big"], "a number of tokens or auto, got 'big'"),
        (["generate", "MODEL", "床", "--presence-penalty", "3"], "expected presence_penalty .* from -2 to 2"),
        (["generate", "MODEL", "床", "--acrostic", "春夏", "--lines", "3"], "expected --lines 2 with --acrostic 春夏"),
        (["generate", "MODEL", "床", "--lines", "3"], "expected --line-length with --lines"),
        (["generate", "MODEL", "床", "--characters", "0"], "expected characters of ExactLength"),
        (["generate", "MODEL", "床", "-k", "2", "--greedy"], "num_return_sequences of at most num_beams=1"),
        (["generate", "MODEL", "床", "--threads", "0"], "threads"),
        (["generate", "MODEL", "床", "--num-beams", "2", "--sample"], "do_sample=False with num_beams=2"),
        (["generate", "MODEL", "\udcff"], "UTF-8"),
        (["generate", "MODEL", "床", "--nonsense"], "No such option"),
        (["generate"], "Missing argument"),
        (["nonsense"], "No such command"),
        (["chat", "MODEL", "--min-p", "7"], "expected min_p"),
        (["eval", "MODEL", "MISSING"], "no such file"),
        (["eval", "MODEL", "MODEL"], "this is a folder"),
        (["eval", "MODEL", "MODEL/model.safetensors"], "binary file"),
        (["eval", "MODEL", "MODEL/config.json", "--document-separator", "word"], "line or blank"),
        (["info", "MISSING"], "no such folder"),
        (["bench", "--threads", "-3"], "threads"),
    ],
)
def test_wrong_use_is_one_sentence_and_code_2(
    folder: Path,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: Capture,
    arguments: list[str],
    reason: str,
) -> None:
    for name, path in (("MODEL", folder), ("MISSING", tmp_path / "missing"), ("EMPTY", tmp_path)):
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(reason, captured.err), captured.err
    assert "Traceback" not in captured.err
    assert "[" not in captured.err.partition(":")[2][:3]  # the library's own tags are not for people


def test_another_tokenizer_is_code_2(folder: Path, tmp_path: Path) -> None:
    llm = LLM.from_pretrained(folder)
    llm.save_pretrained(tmp_path / "model")
    JiebaTokenizer([*llm.tokenizer.tokens[264:], llm.tokenizer.tokens[263]]).save(tmp_path / "model")
    done = run("generate", tmp_path / "model", "床", code=2)
    assert done.stdout == ""
    assert re.fullmatch(r"miaobi: .*config\.json: the model was trained with the tokenizer .*\n", done.stderr)


def test_stdin_that_is_no_utf8_is_code_2(folder: Path, monkeypatch: Patch, capsys: Capture) -> None:
    for command in (["generate", folder, "-"], ["chat", folder]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("床前".encode("gb18030"))))
        assert call(monkeypatch, *command) == 2
        last = capsys.readouterr().err.splitlines()[-1]  # chat says first that the model has read no dialogues
        assert re.fullmatch(r"miaobi: stdin: expected UTF-8 text, got byte 0x..( at \d+)?", last)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_a_text_with_code_130(folder: Path) -> None:
    command = [sys.executable, "-m", "miaobi", "generate", str(folder), "床前", "--max-new-tokens", "100000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(30)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"Traceback" not in err


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals of POSIX")
def test_chat_on_a_terminal(folder: Path) -> None:
    import pty

    parent, child = pty.openpty()
    command = [sys.executable, "-m", "miaobi", "chat", str(folder), "--max-new-tokens", "100000000"]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, start_new_session=True) as process:
        os.close(child)
        try:
            _expect(parent, "/help shows the commands")
            os.write(parent, "你好\n".encode())
            _expect(parent, "助手：")
            process.send_signal(signal.SIGINT)
            _expect(parent, "(stopped)")
            os.write(parent, b"/help\n")
            _expect(parent, "begin a new dialogue")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
            os.close(parent)


def _expect(terminal: int, text: str) -> None:
    """Reads from a terminal until `text` has come, and a moment longer."""
    shown = b""
    deadline = time.monotonic() + 30
    while text not in shown.decode(errors="replace"):
        assert time.monotonic() < deadline, shown.decode(errors="replace")
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the process is gone
            pytest.fail(shown.decode(errors="replace"))
    time.sleep(0.3)


# --- parts


def test_options_become_those_of_generate() -> None:
    given = {"max_new_tokens": 3, "stop": [], "seed": None, "num_beams": None, "model": "a folder"}
    assert generation_options({**given, "greedy": None}) == {"max_new_tokens": 3}
    assert generation_options({"greedy": True, "top_k": 0}) == {"do_sample": False, "top_k": 0}
    assert generation_options({"greedy": False}) == {"do_sample": True}
    assert generation_options({"greedy": None, "num_beams": 2}) == {"num_beams": 2, "do_sample": False}
    assert generation_options({"stop": ["。"]}) == {"stop": ["。"]}


@pytest.mark.parametrize("no_cache", [False, True])
def test_the_cache_and_window_asked_for_are_used(folder: Path, no_cache: bool) -> None:
    llm = open_llm(folder, window="9", no_cache=no_cache)
    llm.generate("床前")
    assert llm.context == 9
    assert (llm.cache_info()["used"] == 0) == no_cache


def test_numbers_as_people_say_them() -> None:
    assert [count(n) for n in (7, 1500, 2_110_000, 3 * 10**9)] == ["7", "1.5k", "2.11M", "3G"]


def test_a_terminal_gets_no_control_characters(monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert printable("春\x1b[2J\x9b\n\t") == "春\ufffd[2J\ufffd\n\t"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert printable("\x1b") == "\x1b"

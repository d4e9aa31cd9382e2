# SPDX-License-Identifier: MIT
"""Checkpoints: stopping and resuming exactly, what is kept, and what happens when steps or files fail."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from train_helpers import (
    TEXTS,
    VALIDATION,
    config,
    figures_of,
    files_of,
    make_model,
    make_tokenizer,
    model_in,
    run_until,
    weights,
)

from miaobi import checkpoint as checkpoint_module
from miaobi.checkpoint import find_checkpoint, find_good_checkpoint, load_state
from miaobi.errors import FormatError
from miaobi.llm import LLM
from miaobi.model import GPT
from miaobi.run_lock import RunLock
from miaobi.tokenizer import JiebaTokenizer
from miaobi.train_events import (
    CheckpointEvent,
    TrainEvent,
)
from miaobi.trainer import Trainer


@pytest.fixture(scope="module")
def tokenizer() -> JiebaTokenizer:
    return make_tokenizer()


# --- stopping and resuming ---


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 10},
        {"epochs": 5},
        {"steps": 10, "gradient_accumulation": 2, "dropout": 0.1},
        {"steps": 11, "eval_every": 2},
    ],
    ids=str,
)
def test_resuming_is_exact(tokenizer: JiebaTokenizer, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = Trainer(make_model(tokenizer), tokenizer, config(**changes), out_dir=tmp_path / "whole")
    expected = whole.fit(TEXTS, VALIDATION)
    for stop_at in (1, 5, 7):
        out = tmp_path / str(stop_at)
        run_until(stop_at, make_model(tokenizer), tokenizer, config(**changes), out_dir=out)
        assert load_state(out / "checkpoints/last").step == stop_at
        other_model = GPT(whole.model.config, seed=99)
        resumed = Trainer(other_model, JiebaTokenizer.load(out), config(**changes), out_dir=out)
        end = resumed.resume(out / "checkpoints/last").fit(TEXTS, VALIDATION)
        assert weights(resumed) == weights(whole)
        assert (end.step, end.epoch, end.tokens) == (expected.step, expected.epoch, expected.tokens)
        assert (end.best_step, end.best_loss) == (expected.best_step, expected.best_loss)
        assert figures_of(out) == figures_of(tmp_path / "whole")
        assert model_in(out) == model_in(tmp_path / "whole")


def test_more_steps_may_be_given_to_a_finished_run(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    Trainer(make_model(tokenizer), tokenizer, config(), out_dir=tmp_path).fit(TEXTS)
    last = tmp_path / "checkpoints/last"
    with pytest.raises(ValueError, match="complete: 10 steps"):
        Trainer(make_model(tokenizer), tokenizer, config(), out_dir=tmp_path).resume(last).fit(TEXTS)
    more = Trainer(make_model(tokenizer), tokenizer, config(steps=15), out_dir=tmp_path)
    assert more.resume(last).fit(TEXTS).step == 15


def test_a_run_goes_on_only_as_it_began(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    run_until(3, make_model(tokenizer), tokenizer, config(), out_dir=tmp_path)
    last = tmp_path / "checkpoints/last"
    with pytest.raises(ValueError, match="batch_size=3, got batch_size=4"):
        Trainer(make_model(tokenizer), tokenizer, config(batch_size=4)).resume(last)
    with pytest.raises(ValueError, match="seed=5, got seed=6"):
        Trainer(make_model(tokenizer), tokenizer, config(seed=6)).resume(last)
    with pytest.raises(ValueError, match="another model"):
        Trainer(make_model(tokenizer, n_layer=1), tokenizer, config()).resume(last)
    other = JiebaTokenizer([*tokenizer.tokens[263:-1], "別"])
    with pytest.raises(ValueError, match="another tokenizer"):
        Trainer(make_model(other), other, config()).resume(last)
    with pytest.raises(ValueError, match="not those that the run was trained on"):
        Trainer(make_model(tokenizer), tokenizer, config()).resume(last).fit(TEXTS[1:])
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        Trainer(make_model(tokenizer), tokenizer, config()).resume(tmp_path / "none")


KILLED = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from miaobi.batches import TokenData
    from miaobi.checkpoint import find_checkpoint
    from miaobi.model import GPT, GPTConfig
    from miaobi.tokenizer import JiebaTokenizer
    from miaobi.train_config import TrainConfig
    from miaobi.trainer import Trainer

    out = Path(sys.argv[1])
    tokenizer = JiebaTokenizer("天地玄黄宇宙洪荒")
    data = TokenData.from_ids([[2, *range(263, 263 + n), 3] for n in range(1, 9)], range(1, 9))
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=6, n_embd=16, n_layer=1, n_head=2), seed=1)
    config = TrainConfig(steps=60, batch_size=2, learning_rate=1e-2, eval_every=2, seed=5)
    trainer = Trainer(model, tokenizer, config, out_dir=out)
    if find_checkpoint(out / "checkpoints" / "last"):
        trainer.resume(out / "checkpoints" / "last")
    print("ready", flush=True)
    trainer.fit(data, data)
    print("done", flush=True)
    """
)


def test_killed_again_and_again_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    seed = 11
    draw = random.Random(seed)
    run = [sys.executable, "-c", KILLED]
    begun = time.monotonic()
    with subprocess.Popen([*run, tmp_path / "whole"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        begun = time.monotonic()
        assert process.stdout.read() == b"done\n"
    length = time.monotonic() - begun
    kills = 0
    for attempt in range(20):
        with subprocess.Popen([*run, tmp_path / "killed"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            if attempt < 4:
                time.sleep(draw.uniform(0.0, length / 3))
                process.kill()
            done = process.stdout.read() == b"done\n"
        if done:
            break
        kills += 1
        assert process.returncode == -signal.SIGKILL
    assert kills, f"seed {seed}"
    for name in ("last", "best"):
        whole, killed = (tmp_path / run / "checkpoints" / name for run in ("whole", "killed"))
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (whole / file).read_bytes() == (killed / file).read_bytes(), f"{name}/{file}, seed {seed}"
    assert model_in(tmp_path / "killed") == model_in(tmp_path / "whole")
    assert figures_of(tmp_path / "killed") == figures_of(tmp_path / "whole")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_a_torn_line_of_the_log_is_dropped(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    whole = Trainer(make_model(tokenizer), tokenizer, config(), out_dir=tmp_path / "whole")
    whole.fit(TEXTS, VALIDATION)
    run_until(6, make_model(tokenizer), tokenizer, config(), out_dir=tmp_path / "torn")
    with open(tmp_path / "torn/train_log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"event": "step", "step": 7, "loss": 1.0}\n{"event": "step", "st')
    resumed = Trainer(make_model(tokenizer), tokenizer, config(), out_dir=tmp_path / "torn")
    resumed.resume(tmp_path / "torn/checkpoints/last").fit(TEXTS, VALIDATION)
    assert figures_of(tmp_path / "torn") == figures_of(tmp_path / "whole")


# --- what is kept ---


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_folder_holds_the_model_that_is_kept(tokenizer: JiebaTokenizer, tmp_path: Path, keep: str) -> None:
    settings = config(steps=30, evaluations=6, learning_rate=0.05, keep=keep)
    trainer = Trainer(make_model(tokenizer), tokenizer, settings, out_dir=tmp_path)
    end = trainer.fit(TEXTS, ["啼鸟照青苔，几枝入海流。", "山尽明月响。"])
    assert end.best_step is not None
    assert end.best_step < end.step  # it overfits: the two differ
    assert model_in(tmp_path) == model_in(tmp_path / "checkpoints" / keep)
    assert model_in(tmp_path / "checkpoints/last") == trainer.model.arena.tobytes()
    assert model_in(tmp_path / "checkpoints/best") != trainer.model.arena.tobytes()
    assert load_state(tmp_path / "checkpoints/best").step == end.best_step
    assert not [name for name in files_of(tmp_path) if ".tmp" in name or ".previous" in name]
    with LLM.from_pretrained(tmp_path) as llm:
        assert llm.tokenizer.hash == tokenizer.hash
        llm.generate("明月", max_new_tokens=3)


def test_it_saves_by_the_clock(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    events: list[TrainEvent] = []
    settings = config(evaluations=1, save_minutes=1e-9)
    Trainer(make_model(tokenizer), tokenizer, settings, out_dir=tmp_path, listener=events.append).fit(TEXTS, VALIDATION)
    assert [event.step for event in events if isinstance(event, CheckpointEvent)] == list(range(1, 11))


def test_some_more_checkpoints_are_kept(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    settings = config(evaluations=1, save_every=2, keep_checkpoints=3)
    Trainer(make_model(tokenizer), tokenizer, settings, out_dir=tmp_path).fit(TEXTS, VALIDATION)
    steps = {path.name: load_state(path).step for path in (tmp_path / "checkpoints").iterdir()}
    assert steps == {"best": 10, "last": 10, "step-00000006": 6, "step-00000008": 8, "step-00000010": 10}
    resumed = Trainer(make_model(tokenizer), tokenizer, settings, out_dir=tmp_path / "again")
    assert resumed.resume(tmp_path / "checkpoints/step-00000006").fit(TEXTS, VALIDATION).step == 10
    assert weights(resumed)[0] == model_in(tmp_path / "checkpoints/last")


def test_a_manifest_says_where_a_checkpoint_came_from(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    info = {"files": ["poems.txt"]}
    trainer = Trainer(make_model(tokenizer), tokenizer, config(), out_dir=tmp_path, data_info=info)
    trainer.fit(TEXTS, VALIDATION)
    last = tmp_path / "checkpoints/last"
    manifest = json.loads((last / "manifest.json").read_text("utf-8"))
    assert (manifest["step"], manifest["seed"], manifest["config"]["batch_size"]) == (10, 5, 3)
    assert manifest["data"] == {
        **info,
        "train_hash": trainer.state.train_hash,
        "validation_hash": trainer.state.validation_hash,
    }
    assert manifest["tokenizer_hash"] == tokenizer.hash
    assert set(manifest["files"]) == {path.name for path in last.iterdir()} - {"manifest.json"}
    assert {"cpu", "isa", "threads", "python"} <= set(manifest["machine"])


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_resuming_skips_a_damaged_checkpoint(
    tokenizer: JiebaTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    settings = config(evaluations=1, save_every=2, keep_checkpoints=2)
    whole = Trainer(make_model(tokenizer), tokenizer, settings)
    whole.fit(TEXTS, VALIDATION)
    run_until(7, make_model(tokenizer), tokenizer, settings, out_dir=tmp_path)
    for name in ("last", "step-00000007"):
        path = tmp_path / "checkpoints" / name / "optimizer.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.unlink()
        if damage != "missing":
            path.write_bytes(content if damage == "flip" else content[:-5])
    found, faults = find_good_checkpoint(tmp_path / "checkpoints")
    assert found == tmp_path / "checkpoints/step-00000006"
    assert len(faults) == 2
    assert all("optimizer.safetensors" in fault for fault in faults)
    with pytest.raises(FormatError, match=r"last/optimizer\.safetensors"):
        Trainer(make_model(tokenizer), tokenizer, settings).resume(tmp_path / "checkpoints/last")
    resumed = Trainer(make_model(tokenizer), tokenizer, settings, out_dir=tmp_path).resume(tmp_path)
    assert "a checkpoint is left out: " in caplog.text
    assert resumed.state.step == 6
    resumed.fit(TEXTS, VALIDATION)
    assert weights(resumed) == weights(whole)


def test_an_older_state_is_read(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    run_until(2, make_model(tokenizer), tokenizer, config(), out_dir=tmp_path)
    last = tmp_path / "checkpoints/last"
    state = json.loads((last / "trainer_state.json").read_text("utf-8"))
    for name in ("bad_evaluations", "rate_scale", "rollbacks"):
        del state[name]
    (last / "trainer_state.json").write_text(json.dumps({**state, "version": 1}), "utf-8")
    (last / "manifest.json").unlink()
    assert Trainer(make_model(tokenizer), tokenizer, config()).resume(tmp_path).fit(TEXTS, VALIDATION).step == 10


LOCKED = """
import sys
from pathlib import Path
from miaobi.run_lock import RunLock
try:
    with RunLock(Path(sys.argv[1])):
        print("locked")
except BlockingIOError as error:
    print(error)
"""


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    def other() -> str:
        return subprocess.run(
            [sys.executable, "-c", LOCKED, tmp_path / "new/out"], capture_output=True, encoding="utf-8", check=True
        ).stdout

    with RunLock(tmp_path / "new/out"), RunLock(tmp_path / "new/out"):
        assert re.search(rf"another run \(process {os.getpid()}\) is writing into this folder", other())
    assert files_of(tmp_path) == []
    assert other() == "locked\n"
    (tmp_path / "new/out").mkdir(parents=True)
    (tmp_path / "new/out/train.lock").write_text("4711")  # of a process that was killed: the lock went with it
    assert other() == "locked\n"


# --- failures ---


def test_a_full_disk_where_a_run_locks_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"make room there.*train\.lock") as caught, RunLock(tmp_path / "new/out"):
        pass
    assert caught.value.errno == errno.ENOSPC
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("file", ["trainer_state.json", "optimizer.safetensors", "model.safetensors"])
@pytest.mark.parametrize("saves", [1, 2])
def test_a_failed_save_leaves_nothing_behind(
    tokenizer: JiebaTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, saves: int
) -> None:
    count = 0

    def fail_late(name: str, inner: Callable[..., None]) -> Callable[..., None]:
        def write(path: Any, *args: Any) -> None:
            nonlocal count
            inner(path, *args)
            if Path(path).name == file:
                count += 1
                if count == saves:
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))

        return write

    core = checkpoint_module._core
    monkeypatch.setattr(core, "write_safetensors", fail_late("core", core.write_safetensors))
    monkeypatch.setattr(checkpoint_module, "write_atomic", fail_late("files", checkpoint_module.write_atomic))
    out = tmp_path / "new" / "out"
    with pytest.raises(OSError, match="No space left"):
        Trainer(make_model(tokenizer), tokenizer, config(), out_dir=out).fit(TEXTS, VALIDATION)
    if saves == 1:
        assert files_of(tmp_path) == []
    else:
        assert load_state(out / "checkpoints/last").step == 0
        assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["last"]
        monkeypatch.undo()
        resumed = Trainer(make_model(tokenizer), tokenizer, config(), out_dir=out)
        assert resumed.resume(out / "checkpoints/last").fit(TEXTS, VALIDATION).step == 10


def test_a_full_disk_is_seen_before_it_is_written_to(
    tokenizer: JiebaTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000)
    monkeypatch.setattr(checkpoint_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"the disk is full: saving the run takes \d+ MB, 0 MB are free"):
        Trainer(make_model(tokenizer), tokenizer, config(), out_dir=tmp_path / "out").fit(TEXTS)
    assert files_of(tmp_path) == []


def test_a_replacement_that_was_cut_short_leaves_the_one_before(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    run_until(4, make_model(tokenizer), tokenizer, config(), out_dir=tmp_path)
    last = tmp_path / "checkpoints/last"
    last.rename(last.with_name("last.previous"))
    assert find_checkpoint(last) == last.with_name("last.previous")
    trainer = Trainer(make_model(tokenizer), tokenizer, config(), out_dir=tmp_path).resume(last)
    assert trainer.state.step == 4
    assert trainer.fit(TEXTS, VALIDATION).step == 10
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best", "last"]


@pytest.mark.parametrize("file", ["trainer_state.json", "optimizer.safetensors", "model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_a_damaged_checkpoint_is_refused(tokenizer: JiebaTokenizer, tmp_path: Path, file: str, damage: str) -> None:
    run_until(2, make_model(tokenizer), tokenizer, config(), out_dir=tmp_path)
    path = tmp_path / "checkpoints/last" / file
    content = path.read_bytes()
    path.unlink()  # not in place: the weights have a second name in the folder of the model
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": b"\xff" * len(content)}[damage])
    with pytest.raises(FormatError) as caught:
        Trainer(make_model(tokenizer), tokenizer, config()).resume(tmp_path / "checkpoints/last")
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)
    model_in(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("step", "3"), ("step", True), ("epoch", None), ("config", []), ("version", 3), ("extra", 1)]
)
def test_a_changed_state_is_refused(tokenizer: JiebaTokenizer, tmp_path: Path, field: str, value: object) -> None:
    run_until(2, make_model(tokenizer), tokenizer, config(), out_dir=tmp_path)
    path = tmp_path / "checkpoints/last/trainer_state.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), field: value}), "utf-8")
    with pytest.raises(FormatError, match="expected"):
        load_state(path.parent)

# SPDX-License-Identifier: MIT
"""Pages of runs and sentences, and plans: what they show is what was logged and computed, and they need no network."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from test_train_cli import POEMS, SMALL, Miaobi
from train_helpers import TEXTS, VALIDATION, config, make_model, make_tokenizer

from miaobi.errors import FormatError
from miaobi.explain import TokenView, explain
from miaobi.html import Series, chart, heat_map
from miaobi.llm import LLM
from miaobi.model import GPT, GPTConfig
from miaobi.plan import Machine, best_plan, flops_per_token, plans, predicted_loss
from miaobi.presets import PRESETS
from miaobi.tokenizer import JiebaTokenizer
from miaobi.train_report import build_report, read_log, write_report
from miaobi.trainer import Trainer


@pytest.fixture(scope="module")
def tokenizer() -> JiebaTokenizer:
    return make_tokenizer()


@pytest.fixture(scope="module")
def run(tokenizer: JiebaTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a <run>")
    settings = config(sample_prompts=["明月<b>&"], sample_tokens=4)
    files = [{"use": "text", "path": "<poems>.txt", "documents": 1234, "dialogues": 0, "characters": 98765}]
    info = {"files": files}
    Trainer(make_model(tokenizer), tokenizer, settings, out_dir=folder, data_info=info).fit(TEXTS, VALIDATION)
    return folder


miaobi = pytest.fixture(lambda monkeypatch, capsys: Miaobi(monkeypatch, capsys))


def check_page(text: str) -> list[ElementTree.Element]:
    """The pictures of a page that loads nothing and runs nothing."""
    assert text.startswith("<!doctype html>")
    assert not re.search(r"https?:|<script|<link|@import|\son\w+=|url\(|src=", text)
    assert all(target.startswith("data:image/png;base64,") for target in re.findall(r'href="([^"]*)"', text))
    return [ElementTree.fromstring(drawn) for drawn in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


# --- the page of a run ---


def test_a_run_as_a_page(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text("utf-8")
    charts = check_page(text)
    assert len(charts) == 6
    lines = [len(line.get("points", "").split()) for line in charts[0].findall("polyline")]
    assert lines == [10, 2]  # training and validation
    assert "done" in text
    assert "http-equiv" not in text
    assert text.count("明月&lt;b&gt;&amp;") == 2
    assert "<b>&</b>" not in text
    for cell in ("&lt;poems&gt;.txt", "1,234", "98,765"):
        assert f">{cell}</td>" in text
    assert "mix_ratio" not in text  # nothing was mixed in
    evaluation = next(entry for entry in read_log(run) if entry["event"] == "evaluation")
    assert f"{evaluation['bits_per_character']:.3f}" in text
    assert write_report(run, run / "other.html").read_bytes() == path.read_bytes()


def test_a_run_that_goes_on_can_be_looked_at(run: Path, tmp_path: Path) -> None:
    lines = (run / "train_log.jsonl").read_text("utf-8").splitlines(keepends=True)
    for count in (1, 2, 5, len(lines) - 1):
        torn = '{"event": "step", "st'
        (tmp_path / "train_log.jsonl").write_text("".join(lines[:count]) + torn, "utf-8")
        text = build_report(tmp_path)
        assert len(check_page(text)) == 6
        assert "running, or broken off" in text
        assert 'http-equiv="refresh"' in text


def test_what_was_taken_back_is_not_drawn(run: Path, tmp_path: Path) -> None:
    entries = [json.loads(line) for line in (run / "train_log.jsonl").read_text("utf-8").splitlines()]
    steps = [entry for entry in entries if entry["event"] == "step"]
    start = entries[0]
    log = [
        start, *steps[:6], {"event": "spike", "step": 5, "loss": 9.0, "expected": 2.0},
        {"event": "skip", "step": 6, "loss": "nan", "grad_norm": "nan", "in_a_row": 1},
        {"event": "rollback", "step": 6, "to_step": 3, "reason": "the weights are not finite", "rate_scale": 0.5},
        *steps[3:5], {"event": "end", "reason": "stopped", "step": 5, "epoch": 1.0, "elapsed": 1.0, "tokens": 1,
                      "best_step": None, "best_loss": None}, {**start, "step": 5}, *steps[5:7],
    ]  # fmt: skip
    (tmp_path / "train_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log), "utf-8")
    assert [entry["step"] for entry in read_log(tmp_path) if entry["event"] == "step"] == [1, 2, 3, 4, 5, 6, 7]
    text = build_report(tmp_path)
    for words in ("back to step 3", "learning rate times 0.5", "jumped from about 2.000 to 9.000", "not applied"):
        assert words in text
    assert "running" in text


def test_what_is_no_run_is_refused(tmp_path: Path, miaobi: Miaobi) -> None:
    assert "there is no train_log.jsonl here" in miaobi.refused("report", tmp_path)
    (tmp_path / "train_log.jsonl").write_text('{"event": "step", "step": 1}\n', "utf-8")
    with pytest.raises(FormatError, match="no beginning"):
        build_report(tmp_path)
    (tmp_path / "train_log.jsonl").write_text('{"step": 1}\n{"event": "end", "step": 1}\n', "utf-8")
    with pytest.raises(FormatError, match="line 1"):
        build_report(tmp_path)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [0.0, -3.0], [math.nan, 1e9, math.inf], [1e-9, 1e-3]])
@pytest.mark.parametrize("log", [False, True])
def test_charts_of_odd_values(values: list[float], log: bool) -> None:
    drawn = ElementTree.fromstring(chart("t <&>", [Series("a", range(len(values)), values)], "step", log))
    kept = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    points = [point for line in drawn.findall("polyline") for point in line.get("points", "").split()]
    assert len(points) == len(kept)
    for point in points:
        x, y = map(float, point.split(","))
        assert 0 <= x <= 440
        assert 0 <= y <= 230


def test_a_heat_map_is_a_picture_of_its_values() -> None:
    values = np.array([[1, 0, 0], [0.25, 0.75, 0], [0.1, 0.2, 0.7]], np.float32)
    drawn = ElementTree.fromstring(heat_map(values, ["一", "<b>", "三"], "head 1"))
    data = b64decode(drawn.find("image").get("href").partition(",")[2])  # type: ignore[union-attr]
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    start = data.index(b"IDAT") + 4
    rows = np.frombuffer(zlib.decompress(data[start:-12]), np.uint8).reshape(3, 13)
    assert not rows[:, 0].any()
    alpha = rows[:, 4::4]
    assert np.array_equal(np.argsort(alpha.ravel(), kind="stable"), np.argsort(values.ravel(), kind="stable"))
    assert alpha[0].tolist() == [255, 0, 0]
    assert [text.text for text in drawn.findall("text")] == ["head 1", "一", "一", "<b>", "<b>", "三", "三"]
    places = [float(text.get("x", "nan")) for text in drawn.findall("text")[1:]]
    assert places[::2] == [places[0]] * 3  # before the rows
    assert places[0] < places[1] < places[3] < places[5]  # along the diagonal
    assert len(ElementTree.fromstring(heat_map(np.eye(100, dtype=np.float32), ["字"] * 100, "")).findall("text")) == 1


def test_names_on_an_axis_are_round_and_around_the_values() -> None:
    def names(values: list[float], log: bool) -> list[float]:
        drawn = ElementTree.fromstring(chart("", [Series("", range(len(values)), values)], "step", log))
        found = [text for text in drawn.findall("text") if text.get("x") == "44"]
        return [float((text.text or "").replace(",", "")) for text in found]

    assert names([0.7, 3.9], True) == [0.5, 1, 2, 5]
    assert names([1.0, 10.0], True) == [1, 2, 5, 10]
    assert names([2.0], True) == [2, 5]
    assert names([1e-3, 1e6], True) == [1e-3, 1e-1, 1e1, 1e3, 1e5, 1e7]
    assert names([5.18, 6.75], False) == [5, 5.5, 6, 6.5, 7]
    assert names([1e300, 1e308], True)[-1] == 1e308


def test_a_noisy_line_has_its_running_mean() -> None:
    drawn = ElementTree.fromstring(chart("", [Series("", range(200), [i % 2 for i in range(200)], noisy=True)], "step"))
    raw, mean = (
        [float(point.split(",")[1]) for point in line.get("points", "").split()] for line in drawn.findall("polyline")
    )
    assert len(raw) == len(mean) == 200
    assert max(raw) - min(raw) > 100
    assert max(mean[20:-20]) - min(mean[20:-20]) < 10
    assert (mean[0], mean[-1]) == (raw[0], raw[-1])


# --- a sentence ---


def test_attention_weights_agree_with_the_oracle() -> None:
    model = GPT(GPTConfig(vocab_size=30, n_positions=40, n_embd=24, n_layer=3, n_head=4), seed=1)
    oracle.random_parameters(model, seed=2, scale=0.2)
    p = oracle.double(model.parameters())
    ids = np.random.default_rng(0).integers(0, 30, 37)
    found = model.attention_weights(ids)
    assert found.shape == (3, 4, 37, 37)
    x = p["transformer.wte.weight"][ids] + p["transformer.wpe.weight"][:37]
    for layer in range(3):
        h = {name.split(f"h.{layer}.")[1]: value for name, value in p.items() if f".h.{layer}." in name}
        qkv = oracle.layer_norm(x, h["ln_1.weight"], h["ln_1.bias"]) @ h["attn.c_attn.weight"] + h["attn.c_attn.bias"]
        q, k, v = (part.reshape(37, 4, 6).swapaxes(0, 1) for part in np.split(qkv, 3, -1))
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(6) + np.triu(np.full((37, 37), -np.inf), 1)
        weights = oracle.softmax(scores)
        oracle.assert_close(found[layer], weights, 100)
        mixed = (weights @ v).swapaxes(0, 1).reshape(37, 24)
        x = x + mixed @ h["attn.c_proj.weight"] + h["attn.c_proj.bias"]
        inner = oracle.layer_norm(x, h["ln_2.weight"], h["ln_2.bias"]) @ h["mlp.c_fc.weight"] + h["mlp.c_fc.bias"]
        x = x + oracle.gelu(inner) @ h["mlp.c_proj.weight"] + h["mlp.c_proj.bias"]
    with pytest.raises(ValueError, match="n_positions"):
        model.attention_weights(np.zeros(41, np.int32))


def test_a_sentence_explained(run: Path, tmp_path: Path, miaobi: Miaobi) -> None:
    with LLM.from_pretrained(run) as llm:
        found = explain(llm, "明月<光")
        assert found.bits == pytest.approx(llm.score("明月<光").nats / math.log(2), rel=1e-5)
        assert found.tokens[-1].text == "</s>"
        for token in found.tokens:
            shares = [share for _, share in token.alternatives]
            assert shares == sorted(shares, reverse=True)
            assert all(share >= token.probability for share in shares[:1])
        np.testing.assert_allclose(found.attention.sum(-1), 1, atol=1e-5)
    page = tmp_path / "page.html"
    assert [TokenView("", p, []).percent for p in (0.5, 1e-6)] == ["50.00%", "<0.01%"]
    said = miaobi.good("explain", run, "明月<光", "--out", page)
    assert "bits" in said
    text = page.read_text("utf-8")
    assert len(check_page(text)) == 2 * 2  # layers and heads
    assert "明月&lt;光" in text
    assert "expected a text" in miaobi.refused("explain", run, "", "--out", page)
    assert "at most 15 tokens" in miaobi.refused("explain", run, "霜" * 30, "--out", page)


# --- plans ---

MACHINE = Machine(speeds=((1e7, 5e10), (1e8, 1e11)), threads=2)


def test_a_plan_adds_up() -> None:
    for plan in plans(MACHINE, 8000, 4_000_000, 60):
        model = plan.preset.model_config(8000)
        if plan.name in ("tiny", "nano"):
            assert GPT(model).num_parameters == plan.parameters
        assert 5e10 <= plan.tokens_per_second * flops_per_token(model) <= 1e11 * (1 + 1e-9)
        assert plan.passes == pytest.approx(0.93 * 3600 * plan.tokens_per_second / 4_000_000)
        assert plan.steps == int(plan.passes * 4_000_000 / (plan.preset.batch_size * plan.preset.n_positions))
        assert plan.memory > 20 * plan.parameters


def test_a_run_takes_the_memory_that_was_foretold(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    poems = tmp_path / "poems.txt"
    # As many characters as Chinese text has, for a vocabulary of the usual size.
    poems.write_text("".join("".join(map(chr, rng.integers(0x4E00, 0x6C00, 60))) + "\n" for _ in range(2000)), "utf-8")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "miaobi", "train", str(poems), "--out", str(out), "--preset", "mini"]
    command += ["--steps", "3", "--evaluations", "1", "--vocab-size", "8000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"([\d.]+) MB of memory at most", done.stdout)
    if found is None:
        pytest.skip("this system does not tell the peak")
    start = read_log(out)[0]
    plan = next(p for p in plans(MACHINE, start["model"]["vocab_size"], start["train_tokens"], 1) if p.name == "mini")
    assert plan.parameters == start["parameters"]
    assert plan.memory == pytest.approx(1e6 * float(found[1]), rel=0.2)


def test_more_time_and_text_make_larger_models_worth_it() -> None:
    sizes = [best_plan(MACHINE, 8000, 10**9, minutes).parameters for minutes in (1, 60, 6000, 10**6)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= 3
    assert plans(MACHINE, 8000, 20_000, 60)[0].is_text_too_small
    assert not plans(MACHINE, 8000, 10**8, 60)[0].is_text_too_small


def test_repeated_text_counts_less_and_less() -> None:
    losses = [predicted_loss(3e6, tokens, 1e6) for tokens in (1e6, 2e6, 1e7, 1e8, 1e9)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[1] > 10 * (losses[3] - losses[4])
    assert predicted_loss(3e6, 2e6, 1e6) > predicted_loss(3e6, 2e6, 2e6)
    assert predicted_loss(3e6, 1e9, 1e9) == pytest.approx(1.69 + 406.4 / 3e6**0.34 + 410.7 / 1e9**0.28)


def test_planning_and_training_by_the_plan(tmp_path: Path, miaobi: Miaobi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "measure", classmethod(lambda cls, seconds=5.0: MACHINE))
    poems = tmp_path / "poems.txt"
    poems.write_text("\n".join(POEMS * 3), "utf-8")
    result: dict[str, Any] = json.loads(miaobi.good("plan", poems, "--minutes", 30, "--json"))
    assert [row["preset"] for row in result["plans"]] == list(PRESETS)
    text = miaobi.good("plan", poems, "--minutes", 30)
    assert "The text is too small for 30 minutes" in text
    assert text.strip().endswith(result["command"])
    assert f"--preset {result['best']} --minutes 30" in result["command"]
    out = tmp_path / "out"
    text = miaobi.good("train", poems, "--out", out, "--minutes", 0.01, *SMALL)
    chosen = re.search(r"plan +--preset (\w+): ", text)
    assert chosen
    assert GPT.from_pretrained(out).config.n_embd == PRESETS[chosen[1]].n_embd
    assert "plan " not in miaobi.good("train", poems, "--out", tmp_path / "b", "--steps", 1, *SMALL)
    assert "--minutes above 0" in miaobi.refused("plan", poems, "--minutes", 0)


def test_a_machine_is_measured() -> None:
    machine = Machine.measure(0.1)
    (small, small_rate), (large, large_rate) = machine.speeds
    assert small < large
    assert min(small_rate, large_rate) > 1e7
    assert machine.tokens_per_second(PRESETS["tiny"].model_config(8000)) == pytest.approx(small_rate / small)


def test_tensorboard(tmp_path: Path, miaobi: Miaobi) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    poems = tmp_path / "poems.txt"
    poems.write_text("\n".join(POEMS * 3), "utf-8")
    out = tmp_path / "out"
    miaobi.good("train", poems, "--out", out, "--steps", 3, "--tensorboard", *SMALL)
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"]) | set(events.Tags()["scalars"])
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "validation/bits_per_character"} <= tags
    assert [event.step for event in events.Tensors("train/loss")] == [1, 2, 3]

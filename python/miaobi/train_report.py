# SPDX-License-Identifier: MIT
"""A training run as one page: curves, samples over time, and what went wrong, from its log alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from miaobi.errors import FormatError
from miaobi.files import write_atomic
from miaobi.html import Series, chart, escape, page, table
from miaobi.train_log import LOG_FILE

__all__ = ["REPORT_FILE", "build_report", "read_log", "write_report"]

REPORT_FILE: Final = "report.html"
_REFRESH_SECONDS: Final = 30  # of the page of a run that goes on
_WARNINGS: Final = ("skip", "spike", "rollback")
_MAX_WARNINGS: Final = 50
_SETTINGS: Final = (
    *("steps", "epochs", "minutes", "batch_size", "gradient_accumulation", "learning_rate", "warmup", "precision"),
    *("max_grad_norm", "weight_decay", "dropout", "label_smoothing", "z_loss", "early_stopping", "freeze", "keep"),
    "seed",
)
_USES: Final = {"text": "to learn · 训练", "validation": "to validate with · 验证", "mixed in": "mixed in · 混入"}

_Entry = dict[str, Any]


def write_report(folder: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page of the run in `folder` to `path`, by default its report.html, and returns where it is.

    Raises FileNotFoundError if there is no run, FormatError if its log is not one, and OSError.
    """
    target = Path(folder) / REPORT_FILE if path is None else Path(path)
    write_atomic(target, build_report(folder).encode())
    return target


def build_report(folder: str | os.PathLike[str]) -> str:
    """The page of the run in `folder`, which may still go on; it needs no network. Raises as `write_report`."""
    entries = read_log(Path(folder))
    kinds: dict[str, list[_Entry]] = {}
    for entry in entries:
        kinds.setdefault(entry["event"], []).append(entry)
    start = kinds["start"][-1]
    running = entries[-1]["event"] != "end"
    name = Path(folder).absolute().name
    body = f"<h1>{escape(name)}</h1>"
    body += f'<p class="sub">{_state(entries, kinds, running)}</p>' + _facts(start, kinds)
    body += '<h2>Curves · 曲线</h2><div class="grid">'
    body += "".join(f'<div class="card">{drawn}</div>' for drawn in _charts(kinds)) + "</div>"
    body += _samples(kinds) + _evaluations(kinds) + _warnings(kinds) + _texts(start) + _settings(start)
    return page(f"{name} · miaobi", body, _REFRESH_SECONDS if running else None)


def read_log(folder: Path) -> list[_Entry]:
    """The events of a run, in order, without those that it took back. Raises as `write_report`."""
    path = folder / LOG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: there is no {LOG_FILE} here; give the --out folder of a run")
    entries: list[_Entry] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            event, step = entry["event"], int(entry["step"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break  # it is being written
            raise FormatError(path, f"line {number}: expected an event of a training run") from None
        if event == "rollback":
            to = int(entry["to_step"])
            entries = [old for old in entries if old["event"] in _WARNINGS or old["step"] <= to]
        elif event == "start":  # after a resume: what was logged after its step is gone already
            entries = [
                old for old in entries if old["event"] in _WARNINGS or (old["event"] != "end" and old["step"] <= step)
            ]
        entries.append(entry)
    if not any(entry["event"] == "start" for entry in entries):
        raise FormatError(path, "there is no beginning of a run in it")
    return entries


def _state(entries: list[_Entry], kinds: dict[str, list[_Entry]], running: bool) -> str:
    last = entries[-1]
    if running:
        share = f" ({kinds['step'][-1]['progress']:.0%})" if "step" in kinds else ""
        return f"running, or broken off, at step {last['step']:,}{share} · 训练中"
    how = {"done": "done · 训练完成", "early": "stopped early: validation got no better · 提前停止"}
    return how.get(last["reason"], "stopped; --resume goes on · 已中断，可用 --resume 继续")


def _facts(start: _Entry, kinds: dict[str, list[_Entry]]) -> str:
    model = start["model"]
    steps, evaluations = kinds.get("step", []), kinds.get("evaluation", [])
    facts = [
        (f"{start['parameters']:,}", "parameters · 参数"),
        (f"{model['n_layer']} × {model['n_embd']}", "layers × width · 层数×宽度"),
        (f"{start['train_tokens']:,}", "tokens of text to learn · 训练词元"),
    ]
    if steps:
        last = steps[-1]
        minutes, seconds = divmod(round(last["elapsed"]), 60)
        facts += [
            (f"{last['step']:,}", f"steps, {last['epoch']:.2f} epochs · 步数"),
            (f"{minutes}:{seconds:02}", "minutes:seconds · 用时"),
            (f"{last['tokens'] / max(last['elapsed'], 1e-9):,.0f}", "tokens/s, mean · 平均速度"),
        ]
    if evaluations:
        best = min(evaluations, key=lambda entry: _value(entry["loss"]))
        facts.append((f"{_value(best['bits_per_character']):.3f}", f"bits/char, best, at step {best['step']:,} · 最佳"))
    return (
        '<div class="facts">' + "".join(f"<div><b>{b}</b><span>{escape(s)}</span></div>" for b, s in facts) + "</div>"
    )


def _charts(kinds: dict[str, list[_Entry]]) -> list[str]:
    steps, evaluations = kinds.get("step", []), kinds.get("evaluation", [])
    x = [entry["step"] for entry in steps]
    ex = [entry["step"] for entry in evaluations]

    def of(entries: list[_Entry], name: str) -> list[float]:
        return [_value(entry[name]) for entry in entries]

    validation = Series("validation", ex, of(evaluations, "loss"), second=True)
    minutes = [value / 60 for value in of(evaluations, "elapsed")]
    bits = of(evaluations, "bits_per_character")
    training = Series("training", x, of(steps, "loss"), noisy=True)
    return [
        chart("Loss, nats per token · 损失", [training, validation], "step"),
        chart("Validation, bits per character · 验证", [Series("", ex, bits, second=True)], "step"),
        chart("The same against time · 随时间", [Series("", minutes, bits, second=True)], "minutes"),
        chart("Learning rate · 学习率", [Series("", x, of(steps, "learning_rate"))], "step"),
        chart("Gradient norm · 梯度范数", [Series("", x, of(steps, "grad_norm"), noisy=True)], "step", log=True),
        chart("Tokens per second · 速度", [Series("", x, of(steps, "tokens_per_second"))], "step"),
    ]


def _samples(kinds: dict[str, list[_Entry]]) -> str:
    rows = [
        [f"{entry['step']:,}", f'<span class="prompt">{_lines(entry["prompt"])}</span>{_lines(entry["text"])}']
        for entry in kinds.get("sample", [])
    ]
    if not rows:
        return ""
    note = '<p class="sub"><span class="prompt">Blue</span> is given, the model wrote the rest. 蓝色为给定的开头。</p>'
    return f"<h2>Samples over time · 样例</h2>{note}{table(('step', 'text'), rows, 1)}"


def _evaluations(kinds: dict[str, list[_Entry]]) -> str:
    rows = [
        [
            f"{entry['step']:,}",
            f"{entry['epoch']:.2f}",
            f"{entry['elapsed'] / 60:.1f}",
            f"{_value(entry['train_loss']):.3f}",
            f"{_value(entry['loss']):.3f}",
            f"{_value(entry['bits_per_character']):.3f}",
            '<span class="prompt">best</span>' if entry["is_best"] else "",
        ]
        for entry in kinds.get("evaluation", [])
    ]
    head = ("step", "epoch", "minutes", "train loss", "val loss", "bits/char", "")
    return f"<h2>Validations · 验证</h2>{table(head, rows, 6)}" if rows else ""


def _warnings(kinds: dict[str, list[_Entry]]) -> str:
    found = sorted((entry for kind in _WARNINGS for entry in kinds.get(kind, [])), key=lambda entry: entry["step"])
    rows = [[f"{entry['step']:,}", f'<span class="warn">{escape(_warning(entry))}</span>'] for entry in found]
    if not rows:
        return ""
    more = f"<p>and {len(rows) - _MAX_WARNINGS:,} more</p>" if len(rows) > _MAX_WARNINGS else ""
    return f"<h2>What stood out · 异常</h2>{table(('step', ''), rows[:_MAX_WARNINGS], 1)}{more}"


def _warning(entry: _Entry) -> str:
    if entry["event"] == "skip":
        return f"not applied: loss {entry['loss']}, gradient norm {entry['grad_norm']}"
    if entry["event"] == "spike":
        return f"the loss jumped from about {_value(entry['expected']):.3f} to {_value(entry['loss']):.3f}"
    scale = f"{_value(entry['rate_scale']):g}"
    return f"{entry['reason']}: back to step {entry['to_step']:,}, learning rate times {scale}"


def _texts(start: _Entry) -> str:
    rows = [
        [
            f"{source['documents']:,}",
            f"{source['characters']:,}",
            _USES.get(source["use"], escape(source["use"])),
            escape(source["path"]),
        ]
        for source in start.get("data", {}).get("files", [])
    ]
    head = ("documents", "characters", "use", "file")
    return f"<h2>Text · 文本</h2>{table(head, rows, 2)}" if rows else ""


def _settings(start: _Entry) -> str:
    config = {**start["config"], "dropout": start["model"].get("dropout")}
    mixes = any(source["use"] == "mixed in" for source in start.get("data", {}).get("files", []))
    rows = [
        [name, escape(_setting(config[name]))]
        for name in (*_SETTINGS, *(["mix_ratio"] if mixes else []))
        if config.get(name) or name == "seed"  # what is off is not listed
    ]
    rows.append(["context", f"{start['model']['n_positions']:,}"])
    rows += [["vocabulary", f"{start['model']['vocab_size']:,}"], ["tokenizer", escape(start["tokenizer_hash"][:12])]]
    rows.append(["miaobi", escape(start["version"])])
    return f"<h2>Settings · 设置</h2>{table(('setting', 'value'), rows)}"


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else f"{value:g}"


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _value(value: Any) -> float:
    """A number of the log, where NaN and infinity are strings."""
    return float(value)

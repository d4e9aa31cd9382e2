# SPDX-License-Identifier: MIT
"""`miaobi info`: what a model is, or this build and machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from miaobi.cli import options as opt

__all__ = ["info"]


def info(
    model: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of a model; without it, this build and machine.")
    ] = None,
) -> None:
    """Show what a model is, or, without one, this build and machine."""
    rows = _machine_rows() if model is None else _model_rows(model)
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        typer.echo(typer.style(name.ljust(width), fg="cyan") + str(value))


def _model_rows(folder: Path) -> list[tuple[str, Any]]:
    llm = opt.open_llm(folder, for_text=False)
    model, tokenizer = llm.model, llm.tokenizer
    config = model.config
    inner = config.n_inner or 4 * config.n_embd
    files = sorted(path for path in folder.iterdir() if path.is_file())
    defaults = {name: value for name, value in llm.generation_config.to_dict().items() if value is not None}
    special = len(tokenizer.special_tokens)
    text = tokenizer.vocab_size - special - 256
    cache = 2 * config.n_layer * config.n_embd * config.n_positions * 4
    return [
        ("model", f"GPT-2, {config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, {inner} inner"),
        ("activation", config.activation_function),
        ("parameters", f"{model.num_parameters:,} ({'tied' if config.tie_word_embeddings else 'untied'} embeddings)"),
        ("memory", f"{_size(4 * model.num_parameters)} of weights, {_size(cache)} of KV cache for a full context"),
        ("context", f"{config.n_positions} tokens"),
        ("vocabulary", f"{tokenizer.vocab_size:,} tokens: {special} special, 256 bytes, {text:,} characters and words"),
        ("tokenizer", f"{tokenizer.hash[:12]}{', jieba guesses new words' if tokenizer.hmm else ''}"),
        ("generation", ", ".join(f"{name}={value}" for name, value in defaults.items())),
        ("files", ", ".join(f"{path.name} ({_size(path.stat().st_size)})" for path in files)),
    ]


def _machine_rows() -> list[tuple[str, Any]]:
    import platform

    from miaobi._core import build_info

    build = build_info()
    return [
        ("miaobi", build["version"]),
        ("compiler", build["compiler"]),
        ("processor", f"{build['cpu']}, {build['processors']} to use"),
        ("instructions", f"{build['isa']} (of {', '.join(build['isas'])})"),
        ("matrix product", f"{build['backend']} (of {', '.join(build['backends'])})"),
        ("precision", build["matmul_precision"]),
        ("threads", build["threads"]),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]


def _size(size: float) -> str:
    """Bytes as a person says them."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"

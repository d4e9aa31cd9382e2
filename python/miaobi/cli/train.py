# SPDX-License-Identifier: MIT
"""`miaobi train`: from text files to a model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Final

import typer

from miaobi.cli import options as opt
from miaobi.presets import INITS, PRESETS

__all__ = ["train"]

_BUDGET: Final = "Length of the run (one of them; 5 minutes if none is given)"
_TEXT: Final = "Text"
_MODEL: Final = "Model"
_LEARNING: Final = "Learning"
_SEEING: Final = "Checks and samples"
_SAVING: Final = "Checkpoints"
_FURTHER: Final = "Training a model further"


def train(
    context: typer.Context,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Text to learn from: .txt, .json or .jsonl files.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the model.")],
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PRESETS),
            help="Size of the model.",
            show_default="what fits the text and --minutes, else nano",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(help="Number of tokens.", show_default="8000, or what the text supports", rich_help_panel=_MODEL),
    ] = None,
    init: Annotated[
        str,
        typer.Option(
            metavar="|".join(INITS),
            help="Begin with weights that predict each token from the one before it, or with random ones.",
            rich_help_panel=_MODEL,
        ),
    ] = "bigrams",
    minutes: Annotated[float | None, typer.Option(help="Train so many minutes.", rich_help_panel=_BUDGET)] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Go through the text so many times.", rich_help_panel=_BUDGET)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Make so many steps.", rich_help_panel=_BUDGET)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in --out.")] = False,
    from_model: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="DIR", help="Model to train further, with its vocabulary.", rich_help_panel=_FURTHER
        ),
    ] = None,
    mix: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Text to mix in, such as the model has read before: it forgets less.",
            rich_help_panel=_FURTHER,
        ),
    ] = None,
    mix_ratio: Annotated[
        float | None,
        typer.Option(help="Share of each batch that comes from --mix.", show_default="0.2", rich_help_panel=_FURTHER),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Parameters to leave alone, such as 'transformer.wte.*'; may be given several times.",
            rich_help_panel=_FURTHER,
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            metavar="text|chat",
            help="Learn all of the text, or of dialogues the answers alone.",
            rich_help_panel=_TEXT,
        ),
    ] = "text",
    deduplicate: Annotated[
        bool, typer.Option("--deduplicate", help="Leave out documents that are there twice.", rich_help_panel=_TEXT)
    ] = False,
    document_separator: Annotated[
        str,
        typer.Option(
            metavar="line|blank",
            help="What ends a document of a .txt file: each line, or a blank one.",
            rich_help_panel=_TEXT,
        ),
    ] = "line",
    text_field: Annotated[
        str, typer.Option(help="Field of JSON objects that has the text.", rich_help_panel=_TEXT)
    ] = "text",
    val: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Text to validate with, instead of a part of FILE.", rich_help_panel=_TEXT),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of the documents to validate with; 0 trains on all.",
            show_default="0.02, at most 100,000 characters",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Contexts of tokens in a step.", show_default="of the preset", rich_help_panel=_LEARNING),
    ] = None,
    gradient_accumulation: Annotated[
        int | None,
        typer.Option(
            help="Parts to compute a step in: less memory, the same result.",
            show_default="of the preset",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            "--lr",
            help="Highest learning rate.",
            show_default="of the preset",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Decay of the weights.", show_default="0", rich_help_panel=_LEARNING)
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(help="Share of each target given to all tokens.", show_default="0", rich_help_panel=_LEARNING),
    ] = None,
    z_loss: Annotated[
        float | None,
        typer.Option(
            help="Weight of a term that keeps logits small; 1e-4 is usual.",
            show_default="0",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="float32|bf16",
            help="Of the matrix products; bf16 is faster where the machine has instructions for it.",
            show_default="float32",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            help="Share of the elements that a step leaves out.",
            show_default="that of the model, 0 if new",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(help="Share of the run in which the rate rises.", show_default="0.1", rich_help_panel=_LEARNING),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="best|last",
            help="Which weights DIR has in the end: of the best validation, or the last.",
            show_default="best",
            rich_help_panel=_SAVING,
        ),
    ] = None,
    save_minutes: Annotated[
        float | None,
        typer.Option(help="Save at least so often.", show_default="10", rich_help_panel=_SAVING),
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Save every so many steps, too.", rich_help_panel=_SAVING)
    ] = None,
    keep_checkpoints: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Keep the last K of all that was saved.", show_default="0", rich_help_panel=_SAVING
        ),
    ] = None,
    evaluations: Annotated[
        int | None,
        typer.Option(help="How often to validate and save.", show_default="10", rich_help_panel=_SEEING),
    ] = None,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Stop after N validations without a better one; back to the best.",
            rich_help_panel=_SEEING,
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard", help="Write DIR/tensorboard, too; needs miaobi[tensorboard].", rich_help_panel=_SEEING
        ),
    ] = False,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Beginning of a sample to write at each; may be given several times.",
            show_default="from the text",
            rich_help_panel=_SEEING,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", "-s", help="The same seed gives the same model.", show_default="0")
    ] = None,
    threads: opt.Threads = None,
) -> None:
    """Train a model on your text.

    The text is one document in each line of a .txt file; the strings of a .json list; or the lines of a .jsonl file, as
    strings, {"text": ...} or {"messages": [...]}. Dialogues ("用户：... 助手：...") are recognised; with --format chat
    the model learns their answers alone.

    A model can be trained further: `miaobi train chat.json --format chat --from my-model --mix poems.txt --out my-bot`.
    DIR/report.html shows the run; `miaobi report DIR` writes it while it goes on.

    Ctrl-C saves the run; the same command with --resume goes on with it.
    """
    budget = {"minutes": minutes, "epochs": epochs, "steps": steps}
    given = [f"--{name}" for name, value in budget.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"expected one of --minutes, --epochs and --steps, got {' and '.join(given)}")
    if document_separator not in ("line", "blank"):
        raise ValueError(f"expected --document-separator line or blank, got {document_separator!r}")
    if resume and overwrite:
        raise ValueError("expected --resume, to go on, or --overwrite, to begin anew, got both")
    if format not in ("text", "chat"):
        raise ValueError(f"expected --format text or chat, got {format!r}")
    source = context.get_parameter_source("init")
    if from_model is not None and source is not None and source.name == "COMMANDLINE":
        raise ValueError("expected --from, a model with weights, or --init for a new one, got both")
    if from_model is not None and (preset is not None or vocab_size is not None):
        raise ValueError("expected --from, or --preset and --vocab-size for a new model, got both")
    if mix_ratio is not None and not mix:
        raise ValueError("expected --mix FILE beside --mix-ratio")
    if val and val_fraction is not None:
        raise ValueError("expected --val, a file, or --val-fraction, a part of the text, got both")
    named = {
        **(budget if given else {}),
        "batch_size": batch_size,
        "gradient_accumulation": gradient_accumulation,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "precision": precision,
        "dropout": dropout,
        "early_stopping": early_stopping,
        "save_minutes": save_minutes,
        "save_every": save_every,
        "keep_checkpoints": keep_checkpoints,
        "freeze": freeze or None,
        "mix_ratio": mix_ratio,
        "warmup": warmup,
        "keep": keep,
        "evaluations": evaluations,
        "sample_prompts": prompt or None,
        "seed": seed,
    }
    settings = {name: value for name, value in named.items() if value is not None or name in budget}
    from miaobi.cli.train_run import TrainRun

    opt.set_threads(threads)
    run = TrainRun(out, preset, settings, resume=resume, overwrite=overwrite, from_model=from_model, init=init)
    if tensorboard:
        run.write_tensorboard()
    with run:
        run.read(
            files,
            val or [],
            mix or [],
            val_fraction,
            deduplicate,
            separator="blank" if document_separator == "blank" else "line",
            text_field=text_field,
            format="chat" if format == "chat" else "text",
        )
        run.make_model(vocab_size)
        code = run.fit(_command(context))
        if code:
            raise typer.Exit(code)
        run.say_end()


def _command(context: typer.Context) -> str:
    """The command that goes on with this run: what was typed, and --resume."""
    words = ["miaobi", "train"]
    options: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        if name == "files":
            words += map(str, value or [])
            continue
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in ("resume", "overwrite"):
            for entry in value if isinstance(value, list | tuple) else [value]:
                options += [parameter.opts[0], str(entry)]
    return shlex.join([*words, *options, "--resume"])

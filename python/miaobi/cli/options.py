# SPDX-License-Identifier: MIT
"""Arguments and options that several commands have, and what is common in handling them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from miaobi.llm import LLM

__all__ = [
    "Greedy",
    "MaxNewTokens",
    "MinP",
    "ModelFolder",
    "NoCache",
    "NoRepeatNgramSize",
    "NumBeams",
    "RepetitionPenalty",
    "Seed",
    "Stop",
    "Temperature",
    "Threads",
    "TopK",
    "TopP",
    "Window",
    "count",
    "generation_options",
    "open_llm",
    "printable",
    "set_threads",
    "visible",
]

_SAMPLING = "Sampling (by default as saved with the model)"
_LENGTH = "Length"
_ENGINE = "Engine"

ModelFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a model, as `miaobi train` writes it.")]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", "-n", help="The most tokens to write.", rich_help_panel=_LENGTH)
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", help="Text before which to stop; may be given several times.", rich_help_panel=_LENGTH),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", "-t", help="Lower is more predictable, higher more varied.", rich_help_panel=_SAMPLING
    ),
]
TopK = Annotated[
    int | None, typer.Option(help="Draw from the K likeliest tokens; 0 for all.", rich_help_panel=_SAMPLING)
]
TopP = Annotated[
    float | None,
    typer.Option(help="Draw from the likeliest tokens that have this probability together.", rich_help_panel=_SAMPLING),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Drop tokens less likely than this share of the likeliest.", rich_help_panel=_SAMPLING),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(help="Over 1 makes what is in the text already less likely.", rich_help_panel=_SAMPLING),
]
NoRepeatNgramSize = Annotated[
    int | None, typer.Option(help="Never the same N tokens in a row twice; 0 for no rule.", rich_help_panel=_SAMPLING)
]
Seed = Annotated[
    int | None, typer.Option("--seed", "-s", help="The same seed gives the same text.", rich_help_panel=_SAMPLING)
]
Greedy = Annotated[
    bool | None,
    typer.Option("--greedy/--sample", help="Always take the likeliest token, or draw.", rich_help_panel=_SAMPLING),
]
NumBeams = Annotated[
    int | None, typer.Option(help="Beam search with this many beams; it does not sample.", rich_help_panel=_SAMPLING)
]
Threads = Annotated[
    int | None, typer.Option(help="Threads to compute with; the results are the same.", rich_help_panel=_ENGINE)
]
Window = Annotated[
    int | None, typer.Option(help="The model sees at most this many of the last tokens.", rich_help_panel=_ENGINE)
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Compute all again for each token; slower.", rich_help_panel=_ENGINE)
]

# Control characters other than tab and newline: what a model writes must not command the terminal.
_CONTROLS = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if chr(code) not in "\t\n"}


def generation_options(**given: Any) -> dict[str, Any]:
    """The options that were given, for `LLM.generate`; `greedy` is named do_sample there, and beams are greedy."""
    greedy = given.pop("greedy")
    options = {name: value for name, value in given.items() if value is not None}
    if greedy is not None:
        options["do_sample"] = not greedy
    elif options.get("num_beams", 1) > 1:
        options["do_sample"] = False
    if "stop" in options and not options["stop"]:
        del options["stop"]
    return options


def open_llm(
    folder: Path, threads: int | None = None, window: int | None = None, no_cache: bool = False, for_text: bool = True
) -> LLM:
    """The model in `folder`; a spinner on a terminal's stderr shows that it is being read.

    Unless `for_text` is False it is ready for text, which takes most of the time: that is jieba's dictionary.
    """
    from rich.console import Console

    with Console(stderr=True).status(f"Opening {folder} ..."):
        from miaobi.llm import LLM

        set_threads(threads)
        llm = LLM.from_pretrained(folder)
        llm.enable_kv_cache(window)
        if no_cache:
            llm.disable_kv_cache()
        if for_text:
            llm.tokenizer.encode("")
        return llm


def set_threads(threads: int | None) -> None:
    """Sets the number of threads if it was given."""
    if threads is not None:
        from miaobi._core import set_num_threads

        set_num_threads(threads)


def visible(text: str) -> str:
    """`text` for a report: control characters are replaced, wherever it goes."""
    return text.translate(_CONTROLS)


def printable(text: str) -> str:
    """`text` for standard output: on a terminal, control characters are replaced."""
    return visible(text) if sys.stdout.isatty() else text


def count(number: int) -> str:
    """A large number as a person says it: 1.2M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return str(number)

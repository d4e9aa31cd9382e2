# SPDX-License-Identifier: MIT
"""Arguments and options that several commands have, and what is common in handling them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from miaobi.llm import LLM

__all__ = [
    "BadWords",
    "Dtype",
    "FrequencyPenalty",
    "Greedy",
    "LengthPenalty",
    "MaxNewTokens",
    "MinNewTokens",
    "MinP",
    "ModelFolder",
    "NoCache",
    "NoRepeatNgramSize",
    "NumBeams",
    "PenaltyWindow",
    "PresencePenalty",
    "RepetitionPenalty",
    "Seed",
    "Stop",
    "StopOnLoop",
    "Temperature",
    "Threads",
    "TopK",
    "TopP",
    "TypicalP",
    "Window",
    "count",
    "generation_options",
    "open_llm",
    "printable",
    "set_threads",
    "visible",
]

_SAMPLING = "Sampling (by default as saved with the model)"
_REPETITION = "Against repetition"
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
MinNewTokens = Annotated[
    int | None, typer.Option(help="The model does not end the text before so many tokens.", rich_help_panel=_LENGTH)
]
StopOnLoop = Annotated[
    bool | None,
    typer.Option(
        "--stop-on-loop/--no-stop-on-loop",
        help="End where the text only repeats itself; so it is in chat.",
        rich_help_panel=_REPETITION,
    ),
]
BadWords = Annotated[
    list[str] | None,
    typer.Option("--bad-word", help="Text that is not written; may be given several times.", rich_help_panel=_SAMPLING),
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
TypicalP = Annotated[
    float | None,
    typer.Option(
        help="Draw from tokens of about the expected surprise that have this probability together.",
        rich_help_panel=_SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(help="Over 1 makes what is in the text already less likely.", rich_help_panel=_REPETITION),
]
PresencePenalty = Annotated[
    float | None, typer.Option(help="-2 to 2, off what was written already.", rich_help_panel=_REPETITION)
]
FrequencyPenalty = Annotated[
    float | None, typer.Option(help="-2 to 2, off that for each time it was written.", rich_help_panel=_REPETITION)
]
PenaltyWindow = Annotated[
    int | None,
    typer.Option(help="How many tokens the penalties look back; 0 for all.", rich_help_panel=_REPETITION),
]
NoRepeatNgramSize = Annotated[
    int | None,
    typer.Option(help="Never the same N tokens in a row twice; 0 for no rule.", rich_help_panel=_REPETITION),
]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Of beam search: higher favours longer texts.", rich_help_panel=_SAMPLING)
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
Dtype = Annotated[
    str,
    typer.Option(
        metavar="float32|bf16",
        help="What the weights are read as; bf16 is faster, and rounds them.",
        rich_help_panel=_ENGINE,
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto", help="The model sees at most this many of the last tokens.", rich_help_panel=_ENGINE
    ),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Compute all again for each token; slower.", rich_help_panel=_ENGINE)
]

# Control characters other than tab and newline: what a model writes must not command the terminal.
_CONTROLS = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if chr(code) not in "\t\n"}


def generation_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `LLM.generate` among a command's arguments, if they were given.

    `greedy` is named do_sample there, and beams are greedy.
    """
    from miaobi.generation import GenerationOptions

    options = {name: given[name] for name in GenerationOptions.__annotations__ if given.get(name) not in (None, [], ())}
    greedy = given.get("greedy")
    if greedy is not None:
        options["do_sample"] = not greedy
    elif options.get("num_beams", 1) > 1:
        options["do_sample"] = False
    return options


def open_llm(
    folder: Path,
    threads: int | None = None,
    window: str | None = None,
    no_cache: bool = False,
    for_text: bool = True,
    dtype: str = "float32",
) -> LLM:
    """The model in `folder`; a spinner on a terminal's stderr shows that it is being read.

    Unless `for_text` is False it is ready for text, which takes most of the time: that is jieba's dictionary.
    """
    from rich.console import Console

    with Console(stderr=True).status(f"Opening {folder} ..."):
        from miaobi.llm import LLM

        set_threads(threads)
        llm = LLM.from_pretrained(folder, dtype=dtype)
        llm.enable_kv_cache(_window(window))
        if no_cache:
            llm.disable_kv_cache()
        if for_text:
            llm.tokenizer.encode("")
        return llm


def _window(given: str | None) -> int | Literal["auto"] | None:
    """The argument of `LLM.enable_kv_cache`."""
    try:
        return "auto" if given == "auto" else None if given is None else int(given)
    except ValueError:
        raise ValueError(f"expected window to be a number of tokens or auto, got {given!r}") from None


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

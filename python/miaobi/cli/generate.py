# SPDX-License-Identifier: MIT
"""`miaobi generate`: goes on with a text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from miaobi.cli import options as opt

if TYPE_CHECKING:
    from miaobi.constraints import Constraint

__all__ = ["generate"]

_FORM = "Form"


def generate(
    model: opt.ModelFolder,
    prompt: Annotated[str, typer.Argument(metavar="TEXT", help="Text to go on with; - reads it from stdin.")] = "",
    max_new_tokens: opt.MaxNewTokens = None,
    min_new_tokens: opt.MinNewTokens = None,
    stop: opt.Stop = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    min_p: opt.MinP = None,
    typical_p: opt.TypicalP = None,
    greedy: opt.Greedy = None,
    num_beams: opt.NumBeams = None,
    length_penalty: opt.LengthPenalty = None,
    bad_words: opt.BadWords = None,
    seed: opt.Seed = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    presence_penalty: opt.PresencePenalty = None,
    frequency_penalty: opt.FrequencyPenalty = None,
    penalty_window: opt.PenaltyWindow = None,
    no_repeat_ngram_size: opt.NoRepeatNgramSize = None,
    stop_on_loop: opt.StopOnLoop = None,
    num_return_sequences: Annotated[
        int | None, typer.Option("--num-return-sequences", "-k", metavar="K", help="Write K texts.")
    ] = None,
    acrostic: Annotated[
        str | None, typer.Option(help="First characters of the lines: 藏头诗.", rich_help_panel=_FORM)
    ] = None,
    line_length: Annotated[
        int | None, typer.Option(help="Chinese characters of each line; 7 for an acrostic.", rich_help_panel=_FORM)
    ] = None,
    lines: Annotated[int | None, typer.Option(help="How many lines.", rich_help_panel=_FORM)] = None,
    line_ends: Annotated[str, typer.Option(help="What ends the lines, in turn.", rich_help_panel=_FORM)] = "，。",
    breaks_in_sight: Annotated[
        bool,
        typer.Option(
            "--breaks-in-sight", help="The texts that the model has read have line breaks, too.", rich_help_panel=_FORM
        ),
    ] = False,
    characters: Annotated[
        int | None, typer.Option(help="Exactly so many characters, all counted.", rich_help_panel=_FORM)
    ] = None,
    sentence_end: Annotated[
        bool, typer.Option("--sentence-end", help="End with the sentence.", rich_help_panel=_FORM)
    ] = False,
    threads: opt.Threads = None,
    window: opt.Window = None,
    no_cache: opt.NoCache = False,
    dtype: opt.Dtype = "float32",
) -> None:
    """Go on with a text.

    What the model writes goes to stdout as it comes; on a terminal the given text stands before it.
    """
    if prompt == "-":
        prompt = _read_stdin()
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError("expected TEXT to be valid UTF-8; to give text in another encoding, convert it") from None
    options = opt.generation_options(locals())
    processors = _constraints(acrostic, line_length, lines, line_ends, breaks_in_sight, characters, sentence_end)
    llm = opt.open_llm(model, threads, window, no_cache, dtype=dtype)
    if num_return_sequences is not None and num_return_sequences > 1:
        pieces = iter("\n\n".join(llm.generate_batch([prompt], processors=processors, **options)))
    else:
        pieces = llm.stream(prompt, processors=processors, **options)
    length = len(llm.tokenizer.encode(prompt)) + 1
    if length > llm.context:
        typer.echo(
            f"miaobi: the text has {length} tokens, the model sees {llm.context}; it goes on from the last part",
            err=True,
        )
    if sys.stdout.isatty():
        typer.secho(opt.printable(prompt), nl=False, dim=True)
    written = False
    try:
        for piece in pieces:
            written = True
            sys.stdout.write(opt.printable(piece))
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
    if not written:
        typer.echo("miaobi: the model ends the text here", err=True)


def _constraints(
    acrostic: str | None,
    line_length: int | None,
    lines: int | None,
    line_ends: str,
    breaks_in_sight: bool,
    characters: int | None,
    sentence_end: bool,
) -> list[Constraint]:
    """The constraints that the options of form ask for."""
    from miaobi.constraints import Acrostic, ExactLength, LineLength, SentenceEnd

    constraints: list[Constraint] = []
    if acrostic is not None:
        if lines not in (None, len(acrostic)):
            raise ValueError(f"expected --lines {len(acrostic)} with --acrostic {acrostic}, got {lines}")
        length = 7 if line_length is None else line_length
        constraints.append(Acrostic(acrostic, length, endings=line_ends, in_sight=breaks_in_sight))
    elif line_length is not None:
        constraints.append(LineLength(line_length, lines, endings=line_ends, in_sight=breaks_in_sight))
    elif lines is not None:
        raise ValueError("expected --line-length with --lines, such as 5 or 7, got none")
    if characters is not None:
        constraints.append(ExactLength(characters, sentence_end))
    elif sentence_end:
        constraints.append(SentenceEnd())
    return constraints


def _read_stdin() -> str:
    """The text on stdin, without the newline at its end."""
    data = sys.stdin.buffer.read()
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin: expected UTF-8 text, got byte 0x{data[error.start]:02X} at {error.start}") from None

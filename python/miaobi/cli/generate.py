# SPDX-License-Identifier: MIT
"""`miaobi generate`: goes on with a text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from miaobi.cli import options as opt

__all__ = ["generate"]


def generate(
    model: opt.ModelFolder,
    prompt: Annotated[str, typer.Argument(metavar="TEXT", help="Text to go on with; - reads it from stdin.")] = "",
    max_new_tokens: opt.MaxNewTokens = None,
    stop: opt.Stop = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    no_repeat_ngram_size: opt.NoRepeatNgramSize = None,
    num_beams: opt.NumBeams = None,
    greedy: opt.Greedy = None,
    seed: opt.Seed = None,
    threads: opt.Threads = None,
    window: opt.Window = None,
    no_cache: opt.NoCache = False,
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
    llm = opt.open_llm(model, threads, window, no_cache)
    pieces = llm.stream(
        prompt,
        **opt.generation_options(
            max_new_tokens=max_new_tokens,
            stop=stop,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            num_beams=num_beams,
            greedy=greedy,
            seed=seed,
        ),
    )
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


def _read_stdin() -> str:
    """The text on stdin, without the newline at its end."""
    data = sys.stdin.buffer.read()
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin: expected UTF-8 text, got byte 0x{data[error.start]:02X} at {error.start}") from None

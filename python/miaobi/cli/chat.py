# SPDX-License-Identifier: MIT
"""`miaobi chat`: a dialogue with a model."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import typer

from miaobi.cli import options as opt

if TYPE_CHECKING:
    from miaobi.llm import LLM

__all__ = ["chat"]

_HELP = """\
/clear  begin a new dialogue
/help   show this
/exit   leave (so do Ctrl-D, and Ctrl-C where you type)
Ctrl-C during an answer stops it."""


def chat(
    model: opt.ModelFolder,
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
    threads: opt.Threads = None,
    window: opt.Window = None,
    no_cache: opt.NoCache = False,
    dtype: opt.Dtype = "float32",
) -> None:
    """Chat with a model that was trained on dialogues.

    It remembers what was said. With a file or a pipe on stdin, each line is a message and each answer a line on stdout.
    """
    options = opt.generation_options(locals())
    llm = opt.open_llm(model, threads, window, no_cache, dtype=dtype)
    llm.generation_config.replaced(options)  # wrong ones are refused before anybody types
    if not llm.has_chat_template:
        _note(
            f"{model} has read no dialogues: it goes on with what you say rather than answer. It learns to with\n"
            f"  miaobi train DIALOGUES --format chat --from {model} --out my-bot"
        )
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        _use_line_editing()
        size = opt.count(llm.model.num_parameters)
        typer.secho(f"{model}: {size} parameters, {llm.context} tokens of context.", bold=True)
        typer.echo("Say something. /help shows the commands, /exit leaves.\n")
    messages: list[dict[str, str]] = []
    while (line := _read_line(terminal)) is not None:
        message = line.strip()
        if message in ("/exit", "/quit"):
            break
        if message == "/clear":
            messages = []
            _note("The dialogue begins anew.")
        elif message == "/help":
            _note(_HELP)
        elif message.startswith("/"):
            _note(f"There is no command {message}.\n{_HELP}")
        elif message:
            messages.append({"role": "user", "content": message})
            answer = _answer(llm, messages, options, terminal)
            if answer:
                messages.append({"role": "assistant", "content": answer})
            else:
                messages.pop()


def _use_line_editing() -> None:
    """Gives input() history, and keys that move, where the system has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


def _colored_prompt() -> str:
    if "readline" not in sys.modules:
        return "用户："
    return "\001\x1b[36m\002用户：\001\x1b[39m\002"  # \001 ... \002: takes no room on the line


def _read_line(terminal: bool) -> str | None:
    """What the person typed, or the next line of a file; None at the end, or after Ctrl-C."""
    try:
        if terminal:
            return input(_colored_prompt())
        line = sys.stdin.buffer.readline()
    except (EOFError, KeyboardInterrupt):
        typer.echo()
        return None
    try:
        return line.decode() if line else None
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin: expected UTF-8 text, got byte 0x{line[error.start]:02X}") from None


def _answer(llm: LLM, messages: list[dict[str, str]], options: dict[str, Any], terminal: bool) -> str:
    """Writes the answer as it comes, and returns it, or as much of it as there was before Ctrl-C."""
    forgotten = len(messages) - len(llm.fit_dialogue(messages))
    if forgotten and terminal:
        _note(f"(the dialogue is longer than the context: the model sees it from message {forgotten + 1} on)")
    written: list[str] = []
    try:
        if terminal:
            typer.secho("助手：", nl=False, fg="green")
        with contextlib.closing(llm.stream_chat(messages, **options)) as pieces:
            for piece in pieces:
                written.append(piece)
                sys.stdout.write(opt.printable(piece))
                sys.stdout.flush()
        typer.echo()
    except KeyboardInterrupt:
        typer.secho(" (stopped)", dim=True)
    return "".join(written).strip()


def _note(text: str) -> None:
    """Something that is not part of the dialogue."""
    typer.secho(text, dim=True, err=True)

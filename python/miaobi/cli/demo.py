# SPDX-License-Identifier: MIT
"""`miaobi demo`: a small model from nothing, in about a minute."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer
from rich.text import Text

from miaobi import chat
from miaobi.cli import options as opt

if TYPE_CHECKING:
    from miaobi.cli.train_run import TrainRun
    from miaobi.tokenizer import JiebaTokenizer

__all__ = ["demo"]

_DEFAULT_OUT: Final = Path("miaobi-demo")
_HELD_OUT: Final = 20  # dialogues; enough for a validation loss, and for questions it has not seen
_ASKED: Final = 50  # questions it has read, asked in the end
_SHOWN: Final = 4  # examples of each kind
_BEGINNING_TOKENS: Final = 2  # of a statement that is to be completed
_ANSWER_TOKENS: Final = 64
_SAMPLE_PROMPT: Final = "用户：月亮为什么会发光？\n助手："

# A minute is some hundred steps. After 15 epochs with a warm-up of a twentieth of the run the model knew 11 of 60
# answers, with one of a third 59; batches of 4 contexts need fewer epochs than 8 or 16. The last weights know the text
# by heart, not those that are best on other text.
_SETTINGS: Final = {
    "batch_size": 4,
    "learning_rate": 3e-3,
    "warmup": 0.5,
    "evaluations": 6,
    "keep": "last",
    "sample_prompts": [_SAMPLE_PROMPT],
}

T = TypeVar("T")


def demo(
    minutes: Annotated[float, typer.Option(help="How long to train.")] = 1.0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for the model.", show_default="miaobi-demo"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", help="The same seed gives the same order of the text.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model in --out; the default folder always is.")
    ] = False,
    threads: opt.Threads = None,
) -> None:
    """Train a small model on the text in this package, and see what it writes and answers. Needs no network.

    用自带的语料训练一个小模型，约一分钟，然后看它续写和回答。
    """
    from miaobi.cli.train_run import TrainRun
    from miaobi.corpus import Documents, hold_out

    opt.set_threads(threads)
    folder = out or _DEFAULT_OUT
    settings = {**_SETTINGS, "minutes": minutes, "seed": seed}
    run = TrainRun(folder, "nano", settings, overwrite=overwrite or out is None, init="random")
    run.print("妙笔 miaobi", "bold")
    run.print("A small language model learns Chinese from nothing, on this computer alone.")
    run.print("一个小语言模型在这台电脑上从零开始学中文。")
    run.console.print()
    statements, dialogues = _bundled("demo_statements.txt"), _bundled("demo_dialogues.jsonl")
    seen, unseen = hold_out(dialogues, _HELD_OUT / len(dialogues), seed=seed)
    characters = sum(map(len, statements + dialogues))
    run.say("text", f"{len(statements)} statements and {len(dialogues)} dialogues, {characters:,} characters")
    run.say("held out", f"{len(unseen)} of the dialogues, to ask it later what it has not read")
    run.use(Documents.of(statements + seen), Documents.of(unseen), len(dialogues))
    with run:
        run.make_model(None)
        code = run.fit()
    name = shlex.quote(str(folder))
    if code:
        run.print(f"What it has learnt so far is in {folder}: miaobi chat {name}")
        raise typer.Exit(code)
    _show_results(run, statements, seen, unseen)
    run.console.print()
    run.print("Next · 接下来")
    for command, meaning in (
        (f"miaobi chat {name}", "talk with it"),
        (f'miaobi generate {name} "春天"', "let it go on from a beginning"),
        ("miaobi train your-text.txt --out my-model", "train on a text of your own"),
    ):
        run.console.print(Text.assemble("  ", (f"{command:<46}", "bold"), (meaning, "dim")), soft_wrap=True)


def _bundled(name: str) -> list[str]:
    from miaobi.corpus import read_corpus

    with as_file(files("miaobi") / "resources" / name) as path:
        return read_corpus(path).documents


def _show_results(run: TrainRun, statements: list[str], seen: list[str], unseen: list[str]) -> None:
    """Prints completions of statements, and answers to questions that were in the text and that were not."""
    from miaobi.llm import LLM

    with LLM(run.model, run.tokenizer) as llm:
        run.print("It goes on from a beginning · 续写", "bold")
        for statement in _spread(statements, _SHOWN):
            beginning = _beginning(statement, run.tokenizer)
            _show(run, beginning, llm.generate(beginning, do_sample=False, max_new_tokens=_ANSWER_TOKENS))
        questions = [messages for messages in map(chat.parse_dialogue, seen) if messages is not None]
        answers = [
            (messages[0]["content"], messages[1]["content"], llm.chat(messages[:1], do_sample=False))
            for messages in _spread(questions, _ASKED)
        ]
        right = sum(answer == expected for _, expected, answer in answers)
        run.print("It answers questions that it has read · 问它读过的问题", "bold")
        for question, _, answer in _spread(answers, _SHOWN):
            _show(run, f"{question} ", answer)
        run.print(f"  {right} of {len(answers)} such answers are word for word those of the text", "dim")
        run.print("... and questions that it has not read · 问它没读过的问题", "bold")
        for text in unseen[:_SHOWN]:
            messages = chat.parse_dialogue(text)
            if messages is not None:
                _show(run, f"{messages[0]['content']} ", llm.chat(messages[:1], do_sample=False))
        run.print("  these it can only guess: it has read one page of text, and nothing else", "dim")


def _show(run: TrainRun, prompt: str, text: str) -> None:
    run.console.print(Text.assemble("  ", (prompt, "cyan"), opt.visible(text.replace("\n", " "))), soft_wrap=True)


def _beginning(statement: str, tokenizer: JiebaTokenizer) -> str:
    return tokenizer.decode(tokenizer.encode(statement)[:_BEGINNING_TOKENS])


def _spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, evenly spread."""
    return [items[i * len(items) // count] for i in range(min(count, len(items)))]

# SPDX-License-Identifier: MIT
"""The command line: `miaobi` and `python -m miaobi`."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from miaobi.cli import bench, chat, demo, evaluate, explain, generate, info, plan, report, tokenizer, train

__all__ = ["app", "main"]

app = typer.Typer(
    name="miaobi",
    help="Train and run small Chinese language models on the CPU. 训练和运行中文小语言模型。",
    epilog='Example: `miaobi demo`, then `miaobi train poems.txt --out my-model`, `miaobi generate my-model "春风"`',
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


_tokenizer = typer.Typer(
    help="Train, preview and look at a tokenizer.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.add_typer(_tokenizer, name="tokenizer", rich_help_panel="Commands")


def _add(name: str, command: Callable[..., None], *examples: str, group: typer.Typer = app) -> None:
    """Adds a command that Ctrl-C ends with the exit code that shells expect, in every version of typer."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    epilog = "\n\n".join(f"Example: `{example}`" for example in examples)
    group.command(name, epilog=epilog)(run)


_add("demo", demo.demo, "miaobi demo")
_add("train", train.train, "miaobi train poems.txt --out my-model --preset small --minutes 10")
_add("plan", plan.plan, "miaobi plan poems.txt --minutes 60")
_add("report", report.report, "miaobi report my-model")
_add(
    "generate",
    generate.generate,
    'miaobi generate my-model "春风" --max-new-tokens 40 --seed 1',
    'miaobi generate my-model "春风" --greedy --num-beams 4 --no-repeat-ngram-size 3',
    "miaobi generate my-poet --acrostic 春夏秋冬 --line-length 7",
    'miaobi generate my-model "那天" --characters 100 --sentence-end --bad-word 忽然',
)
_add("chat", chat.chat, "miaobi chat my-model", "miaobi chat my-model --temperature 0.6 --window auto")
_add("eval", evaluate.evaluate, "miaobi eval my-model poems.val.txt")
_add("explain", explain.explain, 'miaobi explain my-model "床前明月光"')
_add("info", info.info, "miaobi info my-model")
_add("bench", bench.bench, "miaobi bench --json bench.json")
_add(
    "train", tokenizer.train, "miaobi tokenizer train novel.txt --out my-tokenizer --vocab-size 8000", group=_tokenizer
)
_add("report", tokenizer.report, "miaobi tokenizer report novel.txt --vocab-size 8000", group=_tokenizer)
_add(
    "explain",
    tokenizer.explain,
    'miaobi tokenizer explain my-tokenizer "今天天气很好" --html tokens.html',
    group=_tokenizer,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from miaobi import __version__

        typer.echo(f"miaobi {__version__}")
        raise typer.Exit


@app.callback()
def _callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line and leaves the process: 0 done, 2 not usable as asked, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
    try:
        app(prog_name="miaobi")
    except (ValueError, OSError, MemoryError, FloatingPointError) as error:
        _fail(_describe(error), 2)
    except ImportError as error:
        if "[isa]" not in str(error):
            raise
        _fail(str(error), 2)  # MIAOBI_ISA asks for what this machine cannot run
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> None:
    sys.stdout.flush()
    red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    sys.stderr.write(f"{red}miaobi:{plain} {message}\n")
    sys.exit(code)


def _describe(error: Exception) -> str:
    """What went wrong, in a sentence."""
    if isinstance(error, MemoryError):
        return f"not enough memory{f': {error}' if str(error) else ''}; try a smaller model, batch or context"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return re.sub(r"^\[\w+\] ", "", str(error)) or type(error).__name__

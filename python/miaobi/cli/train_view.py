# SPDX-License-Identifier: MIT
"""What a person sees of a training run: a table of evaluations with samples, and a line that lives below it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from miaobi.cli.options import visible
from miaobi.train_config import TrainConfig
from miaobi.train_events import (
    EndEvent,
    EvaluationEvent,
    RollbackEvent,
    SampleEvent,
    SkipEvent,
    SpikeEvent,
    StepEvent,
    TrainEvent,
)

__all__ = ["TrainView", "duration", "make_console", "one_line", "size", "working"]

_HEAD = "    step   epoch   train loss   val loss   bits/char   tokens/s       lr     time"
_PLAIN_SECONDS = 10.0  # between two lines where there is no terminal
_BAR_WIDTH = 24


class TrainView:
    """A listener of `Trainer` that draws on a console. With statement: the live line is there within the block."""

    def __init__(self, console: Console, config: TrainConfig, total_steps: int | None, validates: bool) -> None:
        self._console = console
        self._config = config
        self._total_steps = total_steps
        self._validates = validates
        self._step: StepEvent | None = None
        self._evaluation: EvaluationEvent | None = None
        self._begun: tuple[float, float] | None = None  # time and progress when this process began
        self._printed_at = time.monotonic()
        self._note = ""
        self._live = Live(self, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> TrainView:
        self._console.print(Text(_HEAD, style="dim"), soft_wrap=True)
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: TrainEvent) -> None:
        """Shows an event."""
        if isinstance(event, StepEvent):
            self._on_step(event)
        elif isinstance(event, EvaluationEvent):
            self._evaluation = event
            self._print_row(event)
        elif isinstance(event, SampleEvent):
            self._print_sample(event)
        elif isinstance(event, SkipEvent):
            text = f"    step {event.step} was not applied: its loss or gradient was not finite"
            self._print(Text(text, style="yellow"))
        elif isinstance(event, SpikeEvent):
            text = f"    step {event.step}: the loss jumped from about {event.expected:.3f} to {event.loss:.3f}"
            self._print(Text(text, style="yellow"))
        elif isinstance(event, RollbackEvent):
            text = f"    step {event.step}: {event.reason}; back to step {event.to_step}, learning rate times "
            self._print(Text(f"{text}{event.rate_scale:g}", style="bold yellow"))
        elif isinstance(event, EndEvent) and not self._validates and self._step is not None:
            self._print_row(None)

    def announce_stop(self) -> None:
        """Says that the run ends after the step at hand."""
        self._note = "finishing this step; Ctrl-C again quits at once"
        if not self._console.is_terminal:
            self._print(Text(self._note))

    def _on_step(self, event: StepEvent) -> None:
        now = time.monotonic()
        if self._begun is None:
            self._begun = (now, event.progress)
        self._step = event
        if not self._console.is_terminal and now - self._printed_at > _PLAIN_SECONDS:
            self._print(self._status(120))

    def _print(self, text: Text) -> None:
        self._printed_at = time.monotonic()
        self._console.print(text, soft_wrap=True)

    def _print_row(self, evaluation: EvaluationEvent | None) -> None:
        step = self._step
        if step is None:
            return
        row = Text(f"{step.step:>8,}  {step.epoch:>6.2f}")
        if evaluation is None:
            row.append(f"   {step.loss:>10.3f}   {'-':>8}   {'-':>9}")
        else:
            row.append(f"   {evaluation.train_loss:>10.3f}")
            style = "bold green" if evaluation.is_best else ""
            row.append(f"   {evaluation.loss:>8.3f}   {evaluation.bits_per_character:>9.3f}", style)
        row.append(f"   {step.tokens_per_second:>8,.0f}  {step.learning_rate:>7.1e}  {duration(step.elapsed):>7}")
        self._print(row)

    def _print_sample(self, event: SampleEvent) -> None:
        text = Text("          ")
        text.append(one_line(event.prompt), "cyan")
        text.append(one_line(event.text) or " (nothing)", "" if event.text else "dim")
        self._print(text)

    def _remaining(self) -> float | None:
        """Seconds to go, or None while they cannot be told."""
        step = self._step
        if step is None or self._begun is None:
            return None
        if self._config.minutes is not None:
            return max(60.0 * self._config.minutes - step.elapsed, 0.0)
        begun, progress = self._begun
        done = step.progress - progress
        return (time.monotonic() - begun) * (1.0 - step.progress) / done if done > 0 else None

    def _status(self, width: int) -> Text:
        """The figures of the last step, as many as fit in `width` cells, the weightiest first."""
        step = self._step
        if step is None:
            return Text("the first step ...", style="dim")
        of = f"/{self._total_steps:,}" if self._total_steps else ""
        remaining = self._remaining()
        parts = [f"loss {step.loss:.3f}", f"{duration(remaining)} left" if remaining is not None else ""]
        if self._evaluation is not None:
            parts.insert(1, f"val {self._evaluation.loss:.3f}")
            parts.insert(2, f"{self._evaluation.bits_per_character:.3f} bits/char")
        parts += [f"{step.tokens_per_second:,.0f} tokens/s", f"step {step.step:,}{of}", f"lr {step.learning_rate:.1e}"]
        if self._note:
            parts.insert(0, self._note)
        if not self._console.is_terminal:
            parts.insert(0, f"{step.progress:4.0%}")
        text = ""
        for part in filter(None, parts):
            longer = f"{text}  {part}" if text else part
            if cell_len(longer) > width:
                break
            text = longer
        return Text(text, no_wrap=True, overflow="ellipsis")

    def __rich__(self) -> Table:
        progress = 0.0 if self._step is None else self._step.progress
        bar_width = min(_BAR_WIDTH, max(self._console.width // 4, 8))
        line = Table.grid(padding=(0, 1))
        line.add_row(
            Text(f"{progress:4.0%}"),
            ProgressBar(total=1.0, completed=progress, width=bar_width),
            self._status(self._console.width - bar_width - 8),
        )
        return line


def make_console() -> Console:
    """The console of training: no guessing of what to colour, and no line broken where there is no terminal."""
    return Console(highlight=False, emoji=False, markup=False)


@contextmanager
def working(console: Console, text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with `text`, gone when done; yields the function that is told how much of how much is done."""
    columns = (TextColumn("  {task.description}"), BarColumn(bar_width=_BAR_WIDTH), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def one_line(text: str) -> str:
    """`text` on one line, safe for a terminal."""
    return visible(text.replace("\n", " ↵ ").replace("\t", " "))


def duration(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    whole = math.ceil(seconds) if seconds < 1 else round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def size(number: float) -> str:
    """Bytes as a person reads them."""
    return (
        f"{number / 1e9:.1f} GB"
        if number >= 1e9
        else f"{number / 1e6:.0f} MB"
        if number >= 1e7
        else f"{number / 1e6:.1f} MB"
    )

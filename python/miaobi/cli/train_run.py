# SPDX-License-Identifier: MIT
"""The work of `miaobi train`: reading, vocabulary, model, run, each told to the person who waits."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from miaobi import chat
from miaobi.batches import TokenData
from miaobi.checkpoint import TrainState, find_checkpoint, load_state
from miaobi.cli.signals import stop_on_signals
from miaobi.cli.train_view import TrainView, duration, make_console, one_line, size, working
from miaobi.corpus import Corpus, Separator, hold_out, read_corpus
from miaobi.errors import FormatError
from miaobi.model import GPT
from miaobi.presets import PRESETS, Preset
from miaobi.tokenizer import TOKENIZER_FILE, JiebaTokenizer
from miaobi.train_config import TrainConfig
from miaobi.train_events import EndEvent
from miaobi.train_log import LOG_FILE
from miaobi.trainer import CHECKPOINTS, Trainer

__all__ = ["TrainRun"]

_DEFAULT_PRESET: Final = "nano"
_MODEL_FILES: Final = ("config.json", "model.safetensors", "generation_config.json", TOKENIZER_FILE, LOG_FILE)
_DEFAULT_VOCAB_SIZE: Final = 8000
_PROMPT_CHARS: Final = 4


class TrainRun:
    """One `miaobi train`, in the order read, make_model, fit."""

    def __init__(
        self,
        out: Path,
        preset: str | None,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        console: Console | None = None,
    ) -> None:
        """Checks all that can be checked before a file is read."""
        self.console = console or make_console()
        self.out = out
        self.documents: list[str] = []
        self.held_out: list[str] = []
        self.end: EndEvent
        self._dialogues = 0
        self._checkpoint: Path | None = None
        self._overwrite = overwrite
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"expected --preset {', '.join(PRESETS)}, got {preset!r}")
        self._preset_name = preset
        _check_out(out, resume, overwrite)
        self._preset = PRESETS[preset or _DEFAULT_PRESET]
        self._state = TrainState()
        if resume:
            self._checkpoint = find_checkpoint(out / CHECKPOINTS / "last")
            if self._checkpoint is None:
                raise ValueError(f"{out}: there is no run to go on with; leave --resume away to begin one")
            self._state = load_state(self._checkpoint)
            self.config = _merged(self._state.config, settings, self._checkpoint)
        else:
            self.config = TrainConfig(**{**_preset_settings(self._preset), **settings})

    def say(self, name: str, text: str) -> None:
        """Prints a line of what a person should know."""
        if not self.console.is_terminal:
            self.print(f"  {name:<11} {text}")
            return
        line = Table.grid(padding=(0, 1, 0, 0))  # a long text goes on under itself
        line.add_column(width=12)
        line.add_row(Text(f"  {name}", "cyan"), Text(text))
        self.console.print(line)

    def read(
        self,
        files: Sequence[Path],
        val: Sequence[Path],
        val_fraction: float | None,
        separator: Separator,
        text_field: str,
    ) -> None:
        """Reads the text and sets aside what to validate with."""
        corpus = read_corpus(files, separator=separator, text_field=text_field)
        self._say_read("text", corpus)
        if val:
            held_out = read_corpus(val, separator=separator, text_field=text_field)
            self._say_read("validation", held_out)
            self.use(corpus.documents, held_out.documents, corpus.dialogues)
        else:
            fraction = 0.02 if val_fraction is None else val_fraction
            train, validation = hold_out(corpus.documents, fraction, seed=self.config.seed)
            self.use(train, validation, corpus.dialogues)
            if validation:
                self.say("held out", f"{_documents(validation)} of these, to validate with")
            else:
                self.say("held out", "nothing: no validation" if not fraction else "nothing: there is but one document")

    def use(self, documents: list[str], held_out: list[str], dialogues: int) -> None:
        """Takes documents that were read already; `dialogues` of them are dialogues."""
        self.documents, self.held_out, self._dialogues = documents, held_out, dialogues

    def make_model(self, vocab_size: int | None) -> None:
        """Makes the vocabulary and the model, or takes those of the checkpoint, and encodes the text."""
        if self._checkpoint is not None:
            self._take_model(self._checkpoint, vocab_size)
        else:
            self.tokenizer = self._learn_vocabulary(vocab_size)
            self.model = GPT(self._preset.model_config(self.tokenizer.vocab_size), seed=self.config.seed)
        self.train_data = self._encode(self.documents)
        self.val_data = self._encode(self.held_out)
        self._say_vocabulary(vocab_size)
        self._say_model()
        if not self.config.sample_prompts:
            prompt = sample_prompt((self.held_out or self.documents)[0], self.tokenizer)
            self.config = replace(self.config, sample_prompts=(prompt,))

    def fit(self, resume_command: str | None = None) -> int:
        """Trains; returns the exit code, which is not 0 if a signal ended the run early."""
        if self._overwrite:
            _remove_model(self.out)
        trainer = Trainer(self.model, self.tokenizer, self.config, out_dir=self.out)
        if self._checkpoint is not None:
            trainer.resume(self._checkpoint)
        self._say_run(trainer)
        view = TrainView(self.console, self.config, trainer.total_steps(self.train_data), len(self.val_data) > 0)
        trainer.listener = view

        def stop() -> None:
            trainer.stop()
            view.announce_stop()

        try:
            with stop_on_signals(stop, lambda: self.console.show_cursor(True)) as interruption, view:
                self.end = trainer.fit(self.train_data, self.val_data)
        except FloatingPointError as error:
            raise ValueError(f"{error}, with --learning-rate {self.config.learning_rate / 3:.1g}") from None
        except OSError as error:
            if not trainer.state.step or resume_command is None:
                raise
            raise OSError(f"{error}; make room, then go on with: {resume_command}") from error
        self.console.print()
        if self.end.reason == "done":
            return 0
        self.print(f"Stopped and saved at step {self.end.step:,}, after {duration(self.end.elapsed)}.")
        if resume_command is not None:
            self.print("To go on:")
            self.print(f"  {resume_command}", "bold")
        return interruption.exit_code

    def print(self, text: str, style: str = "") -> None:
        """Prints a line."""
        self.console.print(Text(text, style), soft_wrap=True)

    def _say_read(self, name: str, corpus: Corpus) -> None:
        for source in corpus.sources:
            text = f"{source.path}: {source.documents:,} documents"
            if source.dialogues:
                text += (
                    f", {source.dialogues:,} of them dialogues"
                    if source.dialogues < source.documents
                    else " (dialogues)"
                )
            text += f", {source.characters:,} characters"
            if source.encoding != "UTF-8":
                text += f"; it is in {source.encoding}"
            self.say(name, text)

    def _learn_vocabulary(self, vocab_size: int | None) -> JiebaTokenizer:
        with working(self.console, "learning the vocabulary") as progress:
            return JiebaTokenizer.train(
                self.documents, vocab_size or _DEFAULT_VOCAB_SIZE, shrink=vocab_size is None, progress=progress
            )

    def _take_model(self, checkpoint: Path, vocab_size: int | None) -> None:
        self.tokenizer = JiebaTokenizer.load(checkpoint)
        self.model = GPT.from_pretrained(checkpoint)
        if vocab_size is not None and vocab_size != self.tokenizer.vocab_size:
            raise ValueError(
                f"{self.out}: the run has --vocab-size {self.tokenizer.vocab_size}, got {vocab_size}; leave it away"
            )
        expected = None if self._preset_name is None else self._preset.model_config(self.tokenizer.vocab_size)
        if expected is not None and expected != self.model.config:
            raise ValueError(f"{self.out}: the run is not of --preset {self._preset_name}; leave it away")

    def _encode(self, documents: list[str]) -> TokenData:
        total = sum(map(len, documents))
        with working(self.console, "encoding the text") as progress:
            return TokenData.from_texts(documents, self.tokenizer, lambda done: progress(done, total))

    def _say_vocabulary(self, wanted: int | None) -> None:
        coverage = self.tokenizer.coverage([self.train_data.tokens.tolist()])
        text = f"{self.tokenizer.vocab_size:,} tokens"
        if wanted is None and self._checkpoint is None and self.tokenizer.vocab_size < _DEFAULT_VOCAB_SIZE:
            text += " (all that the text supports)"
        text += (
            f"; the text has {coverage.tokens:,}, {coverage.tokens_per_character:.2f} for a character; "
            f"{coverage.byte_share:.2%} of its characters are spelt in bytes"
        )
        self.say("vocabulary", text)

    def _say_model(self) -> None:
        config = self.model.config
        self.say(
            "model",
            f"{self.model.num_parameters:,} parameters: {config.n_layer} layers, {config.n_head} heads, "
            f"{config.n_embd} wide, context {config.n_positions}; {size(16 * self.model.num_parameters)} "
            "for weights, gradients and moments",
        )

    def _say_run(self, trainer: Trainer) -> None:
        config = self.config
        total = trainer.total_steps(self.train_data)
        epochs = f"{config.epochs:g} epochs, " if config.epochs is not None else ""
        length = f"{epochs}{total:,} steps" if total is not None else f"{config.minutes:g} minutes"
        text = (
            f"{length} of {config.batch_size} x {self.model.config.n_positions} tokens, learning rate "
            f"{config.learning_rate:g}, seed {config.seed}"
        )
        if self._checkpoint is not None:
            text += f"; going on at step {trainer.state.step:,}, after {duration(trainer.state.elapsed)}"
        self.say("run", text)
        self.console.print()

    def say_end(self) -> None:
        """Says how the run went, where the model is, and what to type next."""
        end = self.end
        speed = end.tokens / max(end.elapsed, 1e-9)
        text = f"Done: {end.step:,} steps, {end.epoch:.1f} epochs in {duration(end.elapsed)}, {speed:,.0f} tokens/s"
        if memory := _peak_memory():
            text += f", {size(memory)} of memory at most"
        self.print(text + ".")
        if end.best_loss is not None and end.best_step != end.step:
            kept, other = ("are", "last") if self.config.keep == "best" else ("are not", "best")
            self.print(
                f"Validation was best at step {end.best_step:,} ({end.best_loss:.3f}); "
                f"those weights {kept} in {self.out}. --keep {other} takes the others."
            )
        name = shlex.quote(str(self.out))
        self.print(f"The model is in {self.out} ({size(_folder_size(self.out))}). Next:")
        prompt = sample_prompt((self.held_out or self.documents)[0], self.tokenizer)
        if "\n" in prompt or self._dialogues * 2 > len(self.documents) + len(self.held_out):
            self.print(f"  miaobi chat {name}", "bold")  # a prompt of several lines is a dialogue's
        else:
            self.print(f"  miaobi generate {name} {shlex.quote(one_line(prompt))}", "bold")


def sample_prompt(document: str, tokenizer: JiebaTokenizer) -> str:
    """A beginning of `document` to go on from: a dialogue's first question, else its first words."""
    messages = chat.parse_dialogue(document)
    if messages is not None:
        answer = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
        return chat.render(messages[:answer], add_generation_prompt=True)
    stream = tokenizer.decode_stream()
    text = ""
    for token in tokenizer.encode(document.partition("\n")[0]):
        text += stream.feed(token)
        if len(text) >= _PROMPT_CHARS:
            break
    return text


def _documents(documents: list[str]) -> str:
    return f"{len(documents):,} documents, {sum(map(len, documents)):,} characters"


def _preset_settings(preset: Preset) -> dict[str, Any]:
    names = {field.name for field in fields(TrainConfig)}
    return {field.name: getattr(preset, field.name) for field in fields(preset) if field.name in names}


def _merged(saved: Mapping[str, Any], settings: Mapping[str, Any], checkpoint: Path) -> TrainConfig:
    """The settings of a checkpoint with those that were given now."""
    names = {field.name for field in fields(TrainConfig)}
    if set(saved) != names:
        raise FormatError(checkpoint, f"expected the settings {sorted(names)}, got {sorted(saved)[:30]}")
    return TrainConfig(**{**saved, **settings})


def _check_out(out: Path, resume: bool, overwrite: bool) -> None:
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{there}: this is a file; give a folder for --out")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{there}: no permission to write here; give another folder for --out")
    found = [name for name in (*_MODEL_FILES, CHECKPOINTS) if (out / name).exists()]
    if found and not (resume or overwrite):
        raise ValueError(
            f"{out}: there is a model here already; go on with it by --resume, replace it by --overwrite, "
            "or give another --out"
        )


def _remove_model(out: Path) -> None:
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    for name in _MODEL_FILES:
        (out / name).unlink(missing_ok=True)


def _folder_size(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in _MODEL_FILES[:-1] if (folder / name).exists())


def _peak_memory() -> int | None:
    """Bytes of memory that the process had at most, or None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

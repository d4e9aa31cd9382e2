# SPDX-License-Identifier: MIT
"""The work of `miaobi train`: reading, vocabulary, model, run, each told to the person who waits."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from miaobi import chat
from miaobi.batches import TokenData
from miaobi.bigram_init import bigram_init
from miaobi.checkpoint import TrainState, find_good_checkpoint, load_state
from miaobi.cli.signals import stop_on_signals
from miaobi.cli.train_view import TrainView, duration, make_console, one_line, size, working
from miaobi.corpus import Corpus, Document, Documents, Format, Separator, read_corpus
from miaobi.errors import FormatError
from miaobi.model import GPT, read_config
from miaobi.peak_memory import peak_memory
from miaobi.plan import Machine, best_plan
from miaobi.presets import INITS, PRESETS, Preset
from miaobi.run_lock import RunLock
from miaobi.token_file import tokenize
from miaobi.tokenizer import TOKENIZER_FILE, JiebaTokenizer
from miaobi.train_config import TrainConfig
from miaobi.train_events import EndEvent, Listener, TrainEvent
from miaobi.train_log import LOG_FILE
from miaobi.train_report import REPORT_FILE, write_report
from miaobi.trainer import CHECKPOINTS, Trainer

__all__ = ["TrainRun"]

_DEFAULT_PRESET: Final = "nano"
_MODEL_FILES: Final = (
    "config.json",
    "model.safetensors",
    "generation_config.json",
    TOKENIZER_FILE,
    chat.TEMPLATE_FILE,
    LOG_FILE,
    REPORT_FILE,
)
_DATA: Final = "data"  # the folder of the token files
_TENSORBOARD: Final = "tensorboard"
_COVERAGE_TOKENS: Final = 2_000_000  # tokens whose coverage is told; more of a large text would say the same
# A model that knows much already is not to lose it: a fifth of what the preset begins a new one with.
_FURTHER_RATE: Final = 0.2
_DEFAULT_VOCAB_SIZE: Final = 8000
_PROMPT_CHARS: Final = 4


class TrainRun:
    """One `miaobi train`, in the order read, make_model, fit. With statement: its folder is locked within the block."""

    def __init__(
        self,
        out: Path,
        preset: str | None,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        from_model: Path | None = None,
        init: str = "bigrams",
        console: Console | None = None,
    ) -> None:
        """Checks all that can be checked before a file is read."""
        self.console = console or make_console()
        self.out = out
        self.documents = self.held_out = Documents.of([])
        self.mix: Documents | None = None
        self.end: EndEvent
        self._stack = ExitStack()
        self._listeners: list[Listener] = []
        self._sources: list[dict[str, Any]] = []
        self._from = from_model
        self._dialogues = 0
        self._checkpoint: Path | None = None
        self._overwrite = overwrite
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"expected --preset {', '.join(PRESETS)}, got {preset!r}")
        if init not in INITS:
            raise ValueError(f"expected --init {' or '.join(INITS)}, got {init!r}")
        self._preset_name = preset
        self._init = init
        _check_out(out, resume, overwrite)
        self._preset = PRESETS[preset or _DEFAULT_PRESET] if from_model is None else _preset_of(from_model)
        self._state = TrainState()
        if resume:
            self._checkpoint, faults = find_good_checkpoint(out / CHECKPOINTS)
            if self._checkpoint is None:
                damaged = f" ({faults[0]})" if faults else ""
                raise ValueError(f"{out}: there is no run to go on with{damaged}; leave --resume away to begin one")
            for fault in faults:
                self.say("damaged", fault)
            if faults:
                self.say("checkpoint", f"going on from {self._checkpoint}, which is whole")
            self._state = load_state(self._checkpoint)
            self.config = _merged(self._state.config, settings, self._checkpoint)
        else:
            self.config = self._settings(settings)
        self._given = dict(settings)

    def _settings(self, given: Mapping[str, Any]) -> TrainConfig:
        """The settings that were given, and those of the preset for the others."""
        settings = {**_preset_settings(self._preset), **given}
        if self._from is not None and "learning_rate" not in given:
            settings["learning_rate"] = _FURTHER_RATE * self._preset.learning_rate
        return TrainConfig(**settings)

    def __enter__(self) -> TrainRun:
        """Raises BlockingIOError if another run writes into the folder."""
        if self.out.is_dir():
            self._stack.enter_context(RunLock(self.out))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write_tensorboard(self) -> None:
        """Has the run written for TensorBoard, too. Raises ValueError if that is not installed."""
        from miaobi.cli.tensorboard import TensorBoardListener

        listener = TensorBoardListener(self.out / _TENSORBOARD)
        self._stack.callback(listener.close)
        self._listeners.append(listener)

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
        mix: Sequence[Path],
        val_fraction: float | None,
        deduplicate: bool,
        *,
        separator: Separator,
        text_field: str,
        format: Format,
    ) -> None:
        """Reads the text and sets aside what to validate with."""
        corpus = read_corpus(files, separator=separator, text_field=text_field, format=format)
        self._say_read("text", corpus)
        documents = self._without_copies(corpus, deduplicate)
        if val:
            held_out: Documents = read_corpus(val, separator=separator, text_field=text_field, format=format)
            assert isinstance(held_out, Corpus)
            self._say_read("validation", held_out)
        else:
            fraction = 0.02 if val_fraction is None else val_fraction
            documents, held_out = documents.hold_out(fraction, seed=self.config.seed)
            if len(held_out):
                self.say(
                    "held out", f"{len(held_out):,} documents, {held_out.characters:,} characters, to validate with"
                )
            else:
                self.say("held out", "nothing: no validation" if not fraction else "nothing: there is but one document")
        if mix:
            other = read_corpus(mix, separator=separator, text_field=text_field)
            self._say_read("mixed in", other)
            self.mix = other
        self.use(documents, held_out, corpus.dialogues)

    def use(self, documents: Documents, held_out: Documents, dialogues: int) -> None:
        """Takes documents that were read already; `dialogues` of them are dialogues."""
        self.documents, self.held_out, self._dialogues = documents, held_out, dialogues

    def make_model(self, vocab_size: int | None) -> None:
        """Makes the vocabulary and the model, or takes those of the checkpoint, and encodes the text."""
        source = self._checkpoint or self._from
        if source is not None:
            self._take_model(source, vocab_size)
        else:
            self.tokenizer = self._learn_vocabulary(vocab_size)
            self.template = chat.ChatTemplate() if self._dialogues else None
        self._stack.enter_context(RunLock(self.out))
        if not (self.out / _DATA).exists():
            self._stack.push(self._remove_data_of_failure)
        self.train_data = self._encode("train", self.documents)
        self.val_data = self._encode("validation", self.held_out) if len(self.held_out) else None
        self.mix_data = None if self.mix is None else self._encode("mix", self.mix)
        self._say_vocabulary(vocab_size)
        if source is None:
            if self._preset_name is None and self._given.get("minutes") is not None:
                self._choose_preset()
            self.model = GPT(self._preset.model_config(self.tokenizer.vocab_size), seed=self.config.seed)
            if self._init == "bigrams":
                with working(self.console, "counting which token follows which"):
                    bigram_init(self.model, self.train_data)
                self.say("begin", "with weights that predict each token from the one before it")
        self._say_model()
        if not self.config.sample_prompts:
            prompt = sample_prompt(self._example(), self.tokenizer)
            self.config = replace(self.config, sample_prompts=(prompt,))

    def _without_copies(self, corpus: Corpus, deduplicate: bool) -> Documents:
        """Tells of copies, and leaves them out if they are not wanted."""
        unique = corpus.deduplicated()
        copies = len(corpus) - len(unique)
        if copies and deduplicate:
            self.say("copies", f"{copies:,} documents are left out, which are there before")
            return unique
        if copies:
            self.say("copies", f"{copies:,} documents are there more than once; --deduplicate leaves them out")
        return corpus

    def _remove_data_of_failure(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """If there is no run to go on with, its token files are of no use."""
        if kind is not None and not (self.out / CHECKPOINTS).exists():
            shutil.rmtree(self.out / _DATA, ignore_errors=True)
        return False

    def _choose_preset(self) -> None:
        """Takes the size that promises most for this text in this time on this machine."""
        assert self.config.minutes is not None
        with working(self.console, "measuring this machine"):
            machine = Machine.measure()
        plan = best_plan(machine, self.tokenizer.vocab_size, self.train_data.learned, self.config.minutes)
        self._preset = plan.preset
        self.config = self._settings(self._given)
        self.say("plan", f"--preset {plan.name}: {plan.sentence()}")

    def _example(self) -> Document:
        """A document that shows what the model learns."""
        return next(iter(self.held_out if len(self.held_out) else self.documents))

    def fit(self, resume_command: str | None = None) -> int:
        """Trains; returns the exit code, which is not 0 if a signal ended the run early."""
        if self._overwrite:
            _remove_model(self.out)
        info = {"files": self._sources, "documents": len(self.documents), "characters": self.documents.characters}
        trainer = Trainer(
            self.model, self.tokenizer, self.config, out_dir=self.out, data_info=info, chat_template=self.template
        )
        if self._checkpoint is not None:
            trainer.resume(self._checkpoint)
        self._say_run(trainer)
        total_steps = trainer.total_steps(self.train_data, self.mix_data)
        view = TrainView(self.console, self.config, total_steps, self.val_data is not None)
        self._listeners.append(view)

        def listen(event: TrainEvent) -> None:
            for listener in self._listeners:
                listener(event)

        trainer.listener = listen

        def stop() -> None:
            trainer.stop()
            view.announce_stop()

        try:
            with stop_on_signals(stop, lambda: self.console.show_cursor(True)) as interruption, view:
                self.end = trainer.fit(self.train_data, self.val_data, self.mix_data)
        except FloatingPointError as error:
            raise ValueError(f"{error}, with --learning-rate {self.config.learning_rate / 3:.1g}") from None
        except OSError as error:
            if not trainer.state.step or resume_command is None:
                raise
            raise OSError(f"{error}; make room, then go on with: {resume_command}") from error
        self.console.print()
        try:
            write_report(self.out)
        except OSError as error:  # the model is saved; its picture can be made later
            self.print(f"The page of the run could not be written ({error}); later: miaobi report {self.out}")
        if self.end.reason != "stopped":
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
        self._sources += [{"use": name, **source._asdict()} for source in corpus.sources]
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
                self._texts(), vocab_size or _DEFAULT_VOCAB_SIZE, shrink=vocab_size is None, progress=progress
            )

    def _texts(self) -> Iterable[str]:
        """The text that the vocabulary is learned from."""
        for documents in filter(None, (self.documents, self.mix)):
            for document in documents:
                yield document if isinstance(document, str) else chat.render(document)

    def _take_model(self, folder: Path, vocab_size: int | None) -> None:
        self.tokenizer = JiebaTokenizer.load(folder)
        self.model = GPT.from_pretrained(folder)
        self.template = chat.ChatTemplate.load(folder) or (chat.ChatTemplate() if self._dialogues else None)
        if self.model.config.vocab_size != self.tokenizer.vocab_size:
            raise FormatError(folder, "the model and the tokenizer in it do not fit each other")
        if vocab_size is not None and vocab_size != self.tokenizer.vocab_size:
            raise ValueError(
                f"{self.out}: the run has --vocab-size {self.tokenizer.vocab_size}, got {vocab_size}; leave it away"
            )
        expected = None if self._preset_name is None else self._preset.model_config(self.tokenizer.vocab_size)
        if expected is not None and expected != self.model.config:
            raise ValueError(f"{self.out}: the run is not of --preset {self._preset_name}; leave it away")
        if self._checkpoint is None:
            self.say("from", f"{folder}, with its vocabulary")

    def _encode(self, name: str, documents: Documents) -> TokenData:
        folder = self.out / _DATA / name
        with working(self.console, "encoding the text") as progress:
            data, reused = tokenize(folder, documents, self.tokenizer, progress, self.template)
        if reused:
            self.say("tokens", f"as they are in {folder}: neither text nor vocabulary changed")
        return data

    def _say_vocabulary(self, wanted: int | None) -> None:
        data = self.train_data
        coverage = self.tokenizer.coverage(
            map(int, document.ids) for document in data.spread(_COVERAGE_TOKENS).documents()
        )
        text = f"{self.tokenizer.vocab_size:,} tokens"
        if wanted is None and self._checkpoint is None and self.tokenizer.vocab_size < _DEFAULT_VOCAB_SIZE:
            text += " (all that the text supports)"
        text += (
            f"; the text has {len(data.tokens) - 2 * len(data):,}, {coverage.tokens_per_character:.2f} for a "
            f"character; {coverage.byte_share:.2%} of its characters are spelt in bytes"
        )
        self.say("vocabulary", text)
        if data.scored is not None:
            self.say("answers", f"{data.learned:,} of the tokens are learnt: the answers; the rest is only read")

    def _say_model(self) -> None:
        config = self.model.config
        self.say(
            "model",
            f"{self.model.num_parameters:,} parameters: {config.n_layer} layers, {config.n_head} heads, "
            f"{config.n_embd} wide, context {config.n_positions}; {size(16 * self.model.num_parameters)} "
            "for weights, gradients and moments",
        )
        longer = int((np.diff(self.train_data.starts) - 1 > config.n_positions).sum())
        if longer:
            self.say("long", f"{longer:,} documents are longer than the context and are read in parts")

    def _say_run(self, trainer: Trainer) -> None:
        config = self.config
        total = trainer.total_steps(self.train_data, self.mix_data)
        epochs = f"{config.epochs:g} epochs, " if config.epochs is not None else ""
        length = f"{epochs}{total:,} steps" if total is not None else f"{config.minutes:g} minutes"
        text = (
            f"{length} of {config.batch_size} x {self.model.config.n_positions} tokens, learning rate "
            f"{config.learning_rate:g}, seed {config.seed}"
        )
        if self.mix_data is not None:
            text += f", {config.mix_ratio:.0%} of each batch mixed in"
        if config.freeze:
            text += f", frozen: {', '.join(config.freeze)}"
        if self._checkpoint is not None:
            text += f"; going on at step {trainer.state.step:,}, after {duration(trainer.state.elapsed)}"
        self.say("run", text)
        self.console.print()

    def say_end(self) -> None:
        """Says how the run went, where the model is, and what to type next."""
        end = self.end
        speed = end.tokens / max(end.elapsed, 1e-9)
        early = ", stopped early as validation got no better" if end.reason == "early" else ""
        text = (
            f"Done{early}: {end.step:,} steps, {end.epoch:.1f} epochs in {duration(end.elapsed)}, {speed:,.0f} tokens/s"
        )
        if memory := peak_memory():
            text += f", {size(memory)} of memory at most"
        self.print(text + ".")
        if end.best_loss is not None and end.best_step != end.step:
            best = self.config.keep == "best" or end.reason == "early"
            kept, other = ("are", "last") if best else ("are not", "best")
            text = f"Validation was best at step {end.best_step:,} ({end.best_loss:.3f}); "
            text += f"those weights {kept} in {self.out}."
            self.print(text + ("" if end.reason == "early" else f" --keep {other} takes the others."))
        self.print(f"The run as pictures: {self.out / REPORT_FILE}")
        name = shlex.quote(str(self.out))
        self.print(f"The model is in {self.out} ({size(_folder_size(self.out))}). Next:")
        prompt = sample_prompt(self._example(), self.tokenizer)
        if "\n" in prompt or self._dialogues * 2 > len(self.documents) + len(self.held_out):
            self.print(f"  miaobi chat {name}", "bold")  # a prompt of several lines is a dialogue's
        else:
            self.print(f"  miaobi generate {name} {shlex.quote(one_line(prompt))}", "bold")


def sample_prompt(document: Document, tokenizer: JiebaTokenizer) -> str:
    """A beginning of `document` to go on from: a dialogue's first question, else its first words."""
    messages = chat.parse_dialogue(document) if isinstance(document, str) else document
    if messages is not None:
        answer = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
        return chat.render(messages[:answer], add_generation_prompt=True)
    stream = tokenizer.decode_stream()
    text = ""
    assert isinstance(document, str)
    for token in tokenizer.encode(document.partition("\n")[0]):
        text += stream.feed(token)
        if len(text) >= _PROMPT_CHARS:
            break
    return text


def _preset_settings(preset: Preset) -> dict[str, Any]:
    names = {field.name for field in fields(TrainConfig)}
    return {field.name: getattr(preset, field.name) for field in fields(preset) if field.name in names}


def _preset_of(folder: Path) -> Preset:
    """The preset that the model in `folder` was made with, for its settings, or the default one."""
    config = read_config(folder)[1]
    names = ("n_layer", "n_embd", "n_positions")
    same = (p for p in PRESETS.values() if all(getattr(p, name) == config.get(name) for name in names))
    return next(same, PRESETS[_DEFAULT_PRESET])


def _merged(saved: Mapping[str, Any], settings: Mapping[str, Any], checkpoint: Path) -> TrainConfig:
    """The settings of a checkpoint with those that were given now."""
    names = {field.name for field in fields(TrainConfig)}
    if not set(saved) <= names:  # an older version knew fewer
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

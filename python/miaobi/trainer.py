# SPDX-License-Identifier: MIT
"""The training loop: batches in, steps out, with validation, checkpoints, and an end that can be asked for."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from miaobi import _core
from miaobi.batches import Batch, Batches, MixedBatches, TokenData
from miaobi.chat import ChatTemplate
from miaobi.checkpoint import TrainState, find_checkpoint, find_good_checkpoint, load_checkpoint
from miaobi.corpus import Document
from miaobi.llm import LLM
from miaobi.loss_watch import LossWatch
from miaobi.model import GPT, AdamW, Dropout
from miaobi.run_clock import RunClock
from miaobi.run_folder import CHECKPOINTS, RunFolder
from miaobi.run_lock import RunLock
from miaobi.scoring import BATCH_TOKENS, Score, score_documents
from miaobi.tokenizer import JiebaTokenizer
from miaobi.train_config import TrainConfig
from miaobi.train_events import (
    CheckpointEvent,
    EndEvent,
    EvaluationEvent,
    Listener,
    RollbackEvent,
    SampleEvent,
    SkipEvent,
    SpikeEvent,
    StartEvent,
    StepEvent,
    TrainEvent,
)
from miaobi.train_log import TrainLog

__all__ = ["CHECKPOINTS", "Trainer"]

_AnyBatches = Batches | MixedBatches
_log = logging.getLogger(__name__)

# One bad batch may pass. If the weights are spoilt or the learning rate is far too high, every step from here on fails.
_MAX_SKIPS: Final = 5
_MAX_ROLLBACKS: Final = 3
_ROLLBACK_RATE: Final = 0.5  # of the learning rate from there on: the same steps would diverge again
# What a checkpoint and a run that goes on from it must share, or its place in the data would mean something else.
_FIXED_FIELDS: Final = ("batch_size", "seed", "mix_ratio")


class Trainer:
    """Trains a model: `Trainer(model, tokenizer, TrainConfig(epochs=3), out_dir="poet").fit(texts)`.

    With `out_dir`, that folder holds the model, `checkpoints/last` and `checkpoints/best` to go on from, and
    `train_log.jsonl`; without, nothing is written. `listener` is called with each `TrainEvent`. `data_info`, what the
    data are, goes into the log and the manifest of each checkpoint; `chat_template` is saved with the model, the
    default one if it learns answers. The model's config takes over `TrainConfig.dropout`, if that is given.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: JiebaTokenizer,
        config: TrainConfig | None = None,
        *,
        out_dir: str | os.PathLike[str] | None = None,
        listener: Listener | None = None,
        data_info: Mapping[str, Any] | None = None,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        config = config or TrainConfig()
        if config.dropout is not None:
            model.config = replace(model.config, dropout=config.dropout)
        if tokenizer.vocab_size != model.config.vocab_size:
            raise ValueError(
                f"[train] the tokenizer has {tokenizer.vocab_size} tokens, the model has {model.config.vocab_size}; "
                f"make the model with vocab_size={tokenizer.vocab_size}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.optimizer = AdamW(
            model,
            config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            freeze=config.freeze,
        )
        self.state = TrainState()
        self._template = chat_template or ChatTemplate()
        self._data_info = dict(data_info or {})
        self._out = None if out_dir is None else RunFolder(Path(out_dir), config, self._data_info, chat_template)
        self._best_weights: bytes | None = None  # where there is no folder to go back to
        self.listener = listener
        self._train_log: TrainLog | None = None
        self._resumed = False
        self._stop = False
        self._skips = 0
        self._watch = LossWatch()
        self._clock = RunClock(config, None, 0.0)

    def resume(self, checkpoint_dir: str | os.PathLike[str]) -> Trainer:
        """Restores a checkpoint, so that `fit` goes on from it as if the run had never ended; returns the trainer.

        Given the folder of a run, takes the checkpoint that got furthest and is not damaged. Raises FileNotFoundError
        if there is none, FormatError if it is damaged, and ValueError if it is of another model, tokenizer, batch size
        or seed.
        """
        folder = Path(checkpoint_dir)
        if (folder / CHECKPOINTS).is_dir():
            found, faults = find_good_checkpoint(folder / CHECKPOINTS)
            for fault in faults:
                _log.warning("a checkpoint is left out: %s", fault)
            folder = found or folder / CHECKPOINTS / "last"
        state = load_checkpoint(find_checkpoint(folder) or folder, self.model, self.tokenizer, self.optimizer)
        for name in _FIXED_FIELDS:
            now = getattr(self.config, name)
            if state.config.get(name, now) != now:
                raise ValueError(
                    f"{folder}: the run was made with {name}={state.config.get(name)}, got {name}={now}; "
                    f"go on with the same, or begin a new run"
                )
        self.state = state
        self._resumed = True
        return self

    def stop(self) -> None:
        """Asks `fit` to finish its step, save, and return. May be called from any thread."""
        self._stop = True

    def fit(
        self,
        train: Iterable[Document] | TokenData,
        val: Iterable[Document] | TokenData | None = None,
        mix: Iterable[Document] | TokenData | None = None,
    ) -> EndEvent:
        """Trains on documents, validating on others, until the run is done or stopped; tells how it ended.

        A document is a text, or a list of chat messages, of which the answers are learnt. `mix` is text of which each
        batch has a share of `TrainConfig.mix_ratio`, so that a model that is trained further forgets less.

        The model ends up with the last weights, or the best if it was stopped early; the model in `out_dir` is the one
        that `TrainConfig.keep` names. Where weights are not finite, or steps cannot be applied five times in a row, the
        run goes back to its last checkpoint and goes on with half the learning rate.

        Raises ValueError for no documents, or others than those of the checkpoint; FloatingPointError if there is no
        checkpoint to go back to, or going back three times did not help; BlockingIOError if another process trains
        into `out_dir`; and OSError if the run cannot be saved.
        """
        data = self._tokens(train)
        other = None if mix is None else self._tokens(mix)
        validation = None if val is None else self._tokens(val).spread(self.config.eval_tokens)
        if validation is not None and not len(validation):
            validation = None
        if self.config.early_stopping is not None and validation is None:
            raise ValueError("[train] expected documents to validate with, as early_stopping looks at those; got none")
        batches = self._batches(data, other)
        self._prepare((data, other), validation, batches)
        start = StartEvent(
            step=self.state.step,
            total_steps=self._clock.total_steps,
            parameters=self.model.num_parameters,
            train_tokens=data.learned,
            validation_tokens=0 if validation is None else validation.predictions,
            config=asdict(self.config),
            model=asdict(self.model.config),
            tokenizer_hash=self.tokenizer.hash,
            version=str(_core.build_info()["version"]),
            data=self._data_info,
        )
        with ExitStack() as stack:
            if self._out is not None:
                if any(part is not None and part.scored is not None for part in (data, other)):
                    self._out.template = self._template
                stack.enter_context(RunLock(self._out.path))
                if not self._resumed:
                    self._save()  # what cannot be written is better known now than in an hour
                self._train_log = stack.enter_context(TrainLog(self._out.path, self.state.step))
                stack.callback(setattr, self, "_train_log", None)
            self._emit(start)
            return self._loop(batches, validation)

    def total_steps(self, data: TokenData, mix: TokenData | None = None) -> int | None:
        """The number of steps of the whole run on `data`; None if it ends by the clock."""
        return self._count_steps(self._batches(data, mix))

    def _batches(self, data: TokenData, mix: TokenData | None = None) -> _AnyBatches:
        context = self.model.config.n_positions
        size = self.config.batch_size * context
        if mix is None:
            return Batches(data, context, size, seed=self.config.seed)
        return MixedBatches(data, mix, self.config.mix_ratio, context, size, seed=self.config.seed)

    def _count_steps(self, batches: _AnyBatches) -> int | None:
        if self.config.epochs is not None:  # a little is taken off: 0.1 epochs of 30 batches are 3, not 4
            return max(math.ceil(self.config.epochs * batches.batches_per_epoch - 1e-6), 1)
        return self.config.steps

    def _tokens(self, texts: Iterable[Document] | TokenData) -> TokenData:
        return (
            texts
            if isinstance(texts, TokenData)
            else TokenData.from_texts(texts, self.tokenizer, template=self._template)
        )

    def _prepare(
        self, data: tuple[TokenData, TokenData | None], validation: TokenData | None, batches: _AnyBatches
    ) -> None:
        """Sets the length of the run, and checks that a resumed one has the same documents and is not over."""
        config, state = self.config, self.state
        self._clock = RunClock(config, self._count_steps(batches), state.elapsed)
        train_hash = "+".join(part.hash for part in data if part is not None)
        hashes = (train_hash, "" if validation is None else validation.hash)
        if self._resumed:
            if state.train_hash != hashes[0]:
                raise ValueError(
                    "[train] the documents are not those that the run was trained on; give the same to go on, "
                    "or begin a new run"
                )
            if self._clock.progress(state) >= 1.0 and not state.evaluation_due:
                raise ValueError(
                    f"[train] the run is complete: {state.step} steps in {state.elapsed / 60:.1f} minutes; "
                    "give it more steps, epochs or minutes to go on"
                )
            if state.validation_hash != hashes[1]:
                state.best_step = state.best_loss = None  # not comparable
                state.bad_evaluations = 0
            if self._has_stalled():
                raise ValueError(
                    f"[train] the run is complete: it was stopped early, after {state.bad_evaluations} validations "
                    "that were no better; give more for early_stopping to go on"
                )
        state.train_hash, state.validation_hash = hashes
        state.tokenizer_hash = self.tokenizer.hash
        state.config = asdict(config)
        self._stop = False
        self._skips = 0
        self._watch = LossWatch()

    def _loop(self, batches: _AnyBatches, validation: TokenData | None) -> EndEvent:
        reason: Literal["done", "early", "stopped"] = "done"
        state = self.state
        saved = state.step
        while state.evaluation_due or self._clock.progress(state) < 1.0:
            if self._stop:
                reason = "stopped"
                break
            if (state.evaluation_due or self._clock.is_save_due(state)) and not np.isfinite(self.model.arena).all():
                self._roll_back("the weights are not finite")
                state = self.state
            if state.evaluation_due:  # it is part of the state: a run that was stopped before it begins with it
                self._evaluate(validation, batches)
                saved = -1 if state.evaluation_due else state.step
                if self._has_stalled():
                    reason = "early"
                    break
                continue
            self._step(batches)
            state = self.state
            if not state.evaluation_due and self._clock.is_save_due(state):
                self._save()
                saved = state.step
        if saved != state.step:
            self._save()
        if reason == "early":
            self._go_to_best()
        if self._out is not None and reason != "stopped":
            self._out.publish(state, best=reason == "early" or self.config.keep == "best")
        end = EndEvent(
            reason=reason,
            step=state.step,
            epoch=self._epoch(batches),
            elapsed=state.elapsed,
            tokens=state.tokens,
            best_step=state.best_step,
            best_loss=state.best_loss,
        )
        self._emit(end)
        return end

    def _step(self, batches: _AnyBatches) -> None:
        """One optimizer step on the next batch."""
        config, state = self.config, self.state
        begun = self._clock.elapsed
        before = self._clock.progress(state)
        batch = self._next_batch(batches)
        learning_rate = config.learning_rate_at(self._clock.progress_of_step(state)) * state.rate_scale
        loss = self._accumulate(batch)
        grad_norm = math.nan
        if math.isfinite(loss):
            grad_norm = self.optimizer.step(lr=learning_rate, max_grad_norm=config.max_grad_norm)
        self.model.zero_grad()
        state.step += 1
        state.tokens += batch.scored
        state.elapsed = self._clock.elapsed
        self._clock.note_step(batch.scored, state.elapsed - begun)
        state.evaluation_due = self._clock.is_evaluation_due(state, before)
        if not math.isfinite(grad_norm):
            self._skip(loss, grad_norm)
            return
        self._skips = 0
        expected = self._watch.mean
        if self._watch.is_spike(loss):
            _log.warning("step %d: the loss jumped from about %.3f to %.3f", state.step, expected, loss)
            self._emit(SpikeEvent(state.step, loss, expected))
        state.optimizer_step = self.optimizer.step_count
        state.train_loss_sum += loss * batch.scored
        state.train_loss_tokens += batch.scored
        self._emit(
            StepEvent(
                step=state.step,
                epoch=self._epoch(batches),
                progress=min(self._clock.progress(state), 1.0),
                loss=loss,
                learning_rate=learning_rate,
                grad_norm=grad_norm,
                tokens=state.tokens,
                tokens_per_second=self._clock.tokens_per_second,
                elapsed=state.elapsed,
            )
        )

    def _next_batch(self, batches: _AnyBatches) -> Batch:
        """The next batch that has something to learn: of long questions a batch may have none."""
        state = self.state
        while True:
            batch = batches.batch(state.epoch, state.batch)
            state.batch += 1
            if state.batch == batches.batches_per_epoch:
                state.epoch, state.batch = state.epoch + 1, 0
            if batch.scored:
                return batch

    def _accumulate(self, batch: Batch) -> float:
        """Adds the gradients of the mean loss over `batch`, computed in parts; returns the loss."""
        total, row = 0.0, 0
        terms = self.config.loss_options()
        rate = self.model.config.dropout
        for part in batch.split(self.config.gradient_accumulation):
            arrays = (part.ids, part.targets, part.offsets)
            dropout = Dropout(rate=rate, seed=self.config.seed, step=self.state.step, first_row=row) if rate else None
            total += self.model.loss_backward(*arrays, normalizer=batch.scored, dropout=dropout, **terms)[0]
            row += len(part.ids)
        return total / batch.scored

    def _skip(self, loss: float, grad_norm: float) -> None:
        self._skips += 1
        _log.warning("step %d was not applied: loss %g, gradient norm %g", self.state.step, loss, grad_norm)
        self._emit(SkipEvent(self.state.step, loss, grad_norm, self._skips))
        if not np.isfinite(self.model.arena).all():
            self._roll_back("the weights are not finite")
        elif self._skips == _MAX_SKIPS:
            self._roll_back(f"loss or gradients were not finite in {_MAX_SKIPS} steps in a row")

    def _roll_back(self, reason: str) -> None:
        """Goes back to the last checkpoint, with a lower learning rate. Raises FloatingPointError if it cannot."""
        state = self.state
        found = None
        if self._out is not None and state.rollbacks < _MAX_ROLLBACKS:
            found, _ = find_good_checkpoint(self._out.last.parent)
        if found is None:
            raise FloatingPointError(
                f"[train] {reason}, the last of them step {state.step}; lower the learning rate from "
                f"{self.config.learning_rate * state.rate_scale:g}"
            )
        self.state = load_checkpoint(found, self.model, self.tokenizer, self.optimizer)
        self.state.rate_scale = state.rate_scale * _ROLLBACK_RATE
        self.state.rollbacks = state.rollbacks + 1
        self.state.elapsed = state.elapsed  # the clock does not go back
        self.state.config = state.config
        self.model.zero_grad()
        self._skips = 0
        self._watch = LossWatch()
        _log.warning("step %d: %s; back to step %d", state.step, reason, self.state.step)
        self._emit(RollbackEvent(state.step, self.state.step, reason, self.state.rate_scale))

    def _has_stalled(self) -> bool:
        patience = self.config.early_stopping
        return patience is not None and self.state.bad_evaluations >= patience

    def _go_to_best(self) -> None:
        """Gives the model its best weights back."""
        if self._out is not None:
            self._out.load_best(self.model, self.tokenizer, self.optimizer)
        elif self._best_weights is not None:
            self.model.arena[:] = np.frombuffer(self._best_weights, np.float32)

    def _evaluate(self, validation: TokenData | None, batches: _AnyBatches) -> None:
        """Validates, writes samples, and saves; if stopped meanwhile, the evaluation remains due."""
        is_best = False
        if validation is not None:
            result = self._score(validation)
            if result is None:
                return
            is_best = self._record(result, batches)
        self._sample()
        self.state.evaluation_due = False
        self._save(is_best)

    def _score(self, validation: TokenData) -> Score | None:
        """The score of the validation documents, or None if stopped meanwhile."""
        score = Score(0.0, 0, 0)
        rows = self.config.batch_size * self.model.config.n_positions // self.config.gradient_accumulation
        batch_tokens = min(rows, BATCH_TOKENS)  # what a step has room for
        for document_score in score_documents(self.model, validation.documents(), batch_tokens):
            if self._stop:
                return None
            score += document_score
        return score

    def _record(self, score: Score, batches: _AnyBatches) -> bool:
        """Tells of an evaluation, and returns whether it was the best so far."""
        loss = score.nats / score.tokens
        state = self.state
        is_best = math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss)
        if is_best:
            state.best_loss, state.best_step = loss, state.step
            if self._out is None and self.config.early_stopping is not None:
                self._best_weights = self.model.arena.tobytes()
        state.bad_evaluations = 0 if is_best else state.bad_evaluations + 1
        train_loss = state.train_loss_sum / max(state.train_loss_tokens, 1)
        state.train_loss_sum, state.train_loss_tokens = 0.0, 0
        state.elapsed = self._clock.elapsed
        _log.info("step %d: validation loss %.4f, %.4f bits/char", state.step, loss, score.bits_per_character)
        self._emit(
            EvaluationEvent(
                step=state.step,
                epoch=self._epoch(batches),
                loss=loss,
                bits_per_character=score.bits_per_character,
                train_loss=train_loss,
                is_best=is_best,
                elapsed=state.elapsed,
            )
        )
        return is_best

    def _sample(self) -> None:
        if not self.config.sample_prompts:
            return
        turn_starts = self._template.turn_starts
        with LLM(self.model, self.tokenizer) as llm:
            for prompt in self.config.sample_prompts:
                text = llm.generate(
                    prompt, max_new_tokens=self.config.sample_tokens, seed=self.config.seed, stop=turn_starts
                )
                self._emit(SampleEvent(self.state.step, prompt, text))

    def _save(self, is_best: bool = False) -> None:
        """Writes the run to its folder, if it has one."""
        if self._out is None:
            return
        self._out.save(self.model, self.tokenizer, self.optimizer, self.state, is_best)
        self.state.elapsed = self._clock.elapsed
        self._clock.note_save()
        if self.state.step:
            self._emit(CheckpointEvent(self.state.step, str(self._out.last), is_best))

    def _epoch(self, batches: _AnyBatches) -> float:
        return self.state.epoch + self.state.batch / batches.batches_per_epoch

    def _emit(self, event: TrainEvent) -> None:
        if self._train_log is not None:
            self._train_log.write(event)
        if self.listener is not None:
            self.listener(event)

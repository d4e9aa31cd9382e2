# SPDX-License-Identifier: MIT
"""One text as it is written, apart from the model: what may come next, what has come, what is shown, when it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from miaobi._core import Sampler, sample_rows
from miaobi.constraints import Constraint, LogitsProcessor, Written
from miaobi.generation import FinishReason, GenerationConfig, GenerationResult
from miaobi.token_rules import BadWords, TokenRules

__all__ = ["Choice", "Continuation", "StopFilter", "Style", "Writer", "choose", "log_probability"]


class Style:
    """How the texts of one call are written: its options, rules and processors, which all of them share.

    config:     the options; without `stops`, as a dialogue has more of them.
    context:    how many tokens the model sees, which is what penalties and n-grams look at.
    is_answer:  something visible has to come, and nothing before it.
    Raises ValueError for ids that the vocabulary does not have, and processors that are none.
    """

    def __init__(
        self,
        rules: TokenRules,
        config: GenerationConfig,
        context: int,
        *,
        stops: Sequence[str] = (),
        processors: Sequence[LogitsProcessor] = (),
        is_answer: bool = False,
    ) -> None:
        self.rules: Final = rules
        self.table: Final = rules.table
        self.config: Final = config
        self.context: Final = context
        self.stops: Final = tuple(stops)
        self.processors: Final = tuple(processors)
        self.is_answer: Final = is_answer
        vocab_size = len(self.table.data)
        for name, ids in (
            ("stop_token_ids", config.stop_token_ids or ()),
            ("logit_bias", [token for token, _ in config.biases]),
        ):
            wrong = [token for token in ids if token >= vocab_size]
            if wrong:
                raise ValueError(f"[generation] expected ids from 0 to {vocab_size - 1} in {name}, got {wrong[0]}")
        for processor in self.processors:
            if not isinstance(processor, LogitsProcessor) or isinstance(processor, type):
                raise ValueError(
                    f"[generation] expected processors to be constraints or functions of (written, logits), "
                    f"got {processor!r:.80}"
                )
        self.constraints: Final = tuple(p for p in self.processors if isinstance(p, Constraint))
        self.bad_words: Final = BadWords(self.table, config.bad_words) if config.bad_words else None
        self.ends: Final = frozenset({self.table.tokenizer.eos_token_id, *(config.stop_token_ids or ())})
        self.end_ids: Final = np.asarray(sorted(self.ends), np.int32)
        # A text whose length a constraint bounds is not cut off by the option.
        self.max_new_tokens: Final = max([config.max_new_tokens, *[c.most_tokens for c in self.constraints]])
        self._without_ends: Final[dict[int, NDArray[np.int32]]] = {}

    def sampler(self, seed: int) -> Sampler:
        """A sampler with the options, which has seen nothing."""
        config = self.config
        return Sampler(
            do_sample=config.do_sample,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            typical_p=config.typical_p,
            repetition_penalty=config.repetition_penalty,
            presence_penalty=config.presence_penalty,
            frequency_penalty=config.frequency_penalty,
            penalty_window=config.penalty_window,
            no_repeat_ngram_size=config.no_repeat_ngram_size,
            history=max(self.context, config.penalty_window),
            bias=list(config.biases),
            seed=seed,
        )

    def without_ends(self, banned: NDArray[np.int32]) -> NDArray[np.int32]:
        """`banned`, one of the arrays of the rules, with what would end the text; made once for each."""
        joined = self._without_ends.get(id(banned))
        if joined is None:
            joined = self._without_ends[id(banned)] = np.concatenate([banned, self.end_ids])
        return joined


class Choice(NamedTuple):
    """The arguments of a draw."""

    sampler: Sampler
    logits: NDArray[np.float32]
    banned: NDArray[np.int32]


def choose(choices: Sequence[Choice | int]) -> list[int]:
    """The token of each choice; several draws run on all threads."""
    open_ones = [choice for choice in choices if isinstance(choice, Choice)]
    if len(open_ones) > 1:
        drawn = iter(sample_rows(*map(list, zip(*open_ones, strict=True))))
    else:
        drawn = (sampler.sample(logits, banned) for sampler, logits, banned in open_ones)
    return [next(drawn) if isinstance(choice, Choice) else choice for choice in choices]


class Continuation:
    """The tokens after a prompt: what may come next, and what has come."""

    def __init__(self, style: Style, prompt: Sequence[int], seed: int = 0) -> None:
        self.style: Final = style
        self.length = 0  # tokens written, without those that a constraint put aside
        self.sampler = style.sampler(seed)
        self.sampler.accept(np.asarray(prompt, np.int32), written=False)
        self.opening = style.is_answer  # nothing visible has come yet, and something has to
        self._last: deque[int] = deque(maxlen=3)  # as many as the rules look at
        self._banned = style.rules.at_start  # by these rules
        reach = style.bad_words.reach if style.bad_words else 0
        self._written = Written(style.table, prompt, reach) if style.processors or style.bad_words else None

    def candidates(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The logits (V,) after the processors, and the ids that may not come."""
        written = self._written
        if written is not None and self.style.processors:
            logits = logits.copy()
            for processor in self.style.processors:
                processor(written, logits)
        return logits, self.banned()

    def banned(self) -> NDArray[np.int32]:
        """The ids that may not come, whatever the logits are."""
        style, written, banned = self.style, self._written, self._banned
        if self.opening and banned is style.rules.at_start:
            banned = style.rules.at_opening
        if self.length < style.config.min_new_tokens or not self.may_end:
            banned = style.without_ends(banned)
        if written is not None and style.bad_words is not None:
            banned = np.concatenate([banned, *style.bad_words.banned(written.tail)])
        return banned

    def forced(self) -> int | None:
        """The token that has to come, if a constraint leaves no choice."""
        if self._written is not None:
            for constraint in self.style.constraints:
                token = constraint.forced(self._written)
                if token is not None:
                    return token
        return None

    def aside(self) -> list[int]:
        """What comes before the next token and the model does not see."""
        if self._written is None:
            return []
        texts = [constraint.aside(self._written) for constraint in self.style.constraints]
        return self.style.table.tokenizer.encode("".join(texts)) if any(texts) else []

    def append(self, token: int, seen: bool = True) -> None:
        """Takes in a token that the sampler has accepted, or, if not `seen`, is not to see."""
        if seen:
            self.length += 1
            self._last.append(token)
            rules = self.style.rules
            self._banned = rules.banned(self._last) if token in rules.parts else rules.at_start
        if self._written is not None:
            self._written.append(token, seen)

    @property
    def may_end(self) -> bool:
        """Whether all constraints are met."""
        written = self._written
        return written is None or all(constraint.may_end(written) for constraint in self.style.constraints)

    @property
    def done(self) -> bool:
        """Whether a constraint ends the text here."""
        written = self._written
        return (
            written is not None
            and any(constraint.done(written) for constraint in self.style.constraints)
            and self.may_end
        )

    def fork(self) -> Continuation:
        """An independent copy."""
        other = Continuation.__new__(Continuation)
        vars(other).update(vars(self))
        other.sampler = self.sampler.fork()
        other._last = self._last.copy()
        other._written = self._written.fork() if self._written is not None else None
        return other


class Writer:
    """Writes one text, token by token: `choice`, then `take`, until there is a `finish_reason`.

    keep: whether to keep tokens and their log-probabilities for `result`, too; else memory does not grow.
    """

    def __init__(self, style: Style, prompt: Sequence[int], seed: int, keep: bool) -> None:
        self.seed: Final = seed
        self.prompt: Final = prompt
        self.finish_reason: FinishReason | None = None
        self.token = -1  # what the model has to see next
        self.needs_logits: Final = keep or bool(style.processors)
        self._style = style
        self._continuation = Continuation(style, prompt, seed)
        self._text = style.table.tokenizer.decode_stream()
        self._stop = StopFilter(style.stops)
        self._keep = keep
        self._tokens: list[int] = []
        self._logprobs: list[float] = []

    def choice(self, logits: NDArray[np.float32]) -> Choice | int:
        """What the sampler has to choose from by the logits (V,) of the model, or the only token that can come."""
        continuation = self._continuation
        token = continuation.forced()
        if token is None:
            return Choice(continuation.sampler, *continuation.candidates(logits))
        continuation.sampler.accept(np.asarray([token], np.int32))
        return token

    @property
    def sampler(self) -> Sampler:
        """What chooses the next token."""
        return self._continuation.sampler

    def banned(self) -> NDArray[np.int32]:
        """The ids that it may not choose."""
        return self._continuation.banned()

    def take(self, token: int, logits: NDArray[np.float32] | None) -> str:
        """Takes in the token that was chosen, and returns what can be shown now; logits only if it `needs_logits`."""
        style, continuation = self._style, self._continuation
        if token in style.ends:
            return self.finish("stop")
        piece = ""
        if style.constraints:
            for unseen in continuation.aside():
                piece += self._append(unseen, 0.0, seen=False)
        piece += self._append(token, log_probability(logits, token) if self._keep and logits is not None else 0.0)
        self.token = token
        if self._stop.stopped:
            self.finish_reason = "stop"
        elif style.constraints and continuation.done:
            piece += self.finish("stop")
        elif continuation.length >= style.max_new_tokens:
            piece += self.finish("length")
        elif style.config.stop_on_loop and continuation.sampler.looping and continuation.may_end:
            piece += self.finish("loop")
        return piece

    def _append(self, token: int, logprob: float, seen: bool = True) -> str:
        self._continuation.append(token, seen)
        shown = self._text.feed(token)
        if self._continuation.opening and shown.strip():
            self._continuation.opening = False
        if self._keep:
            self._tokens.append(token)
            self._logprobs.append(logprob)
        return "" if self._stop.stopped else self._stop.feed(shown)

    def finish(self, reason: FinishReason) -> str:
        """Ends the text and returns what was held back; bytes of a character that is not complete are left out."""
        self.finish_reason = reason
        return self._stop.finish()

    def result(self, text: str) -> GenerationResult:
        """The result with the text, which is all pieces joined."""
        return GenerationResult(
            text=text,
            tokens=tuple(self._tokens),
            logprobs=tuple(self._logprobs),
            finish_reason=self.finish_reason or "cancelled",
            prompt_tokens=len(self.prompt),
            seed=self.seed,
        )


def log_probability(logits: NDArray[np.float32], token: int) -> float:
    """log(softmax) of one of the logits (V,)."""
    top = logits.max()
    return float(logits[token] - top - np.log(np.exp(logits - top).sum(dtype=np.float64)))


class StopFilter:
    """Cuts a text that comes in pieces before the stop string that is complete first, whatever the pieces are.

    A piece that may be the beginning of a stop string is held back until it is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """What can be shown now that `piece` has come."""
        if not self._stops:
            return piece
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was held back and is no stop string after all."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, but is not complete."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

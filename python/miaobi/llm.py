# SPDX-License-Identifier: MIT
"""A model with its tokenizer: writes, chats and judges text."""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, overload

import numpy as np
import numpy.typing as npt

from miaobi import chat
from miaobi._arrays import as_ids
from miaobi.decoding import kept_tokens
from miaobi.errors import FormatError
from miaobi.generation import FinishReason, GenerationConfig, GenerationResult
from miaobi.scoring import Score, score_documents
from miaobi.session import TextStream
from miaobi.session_pool import SessionPool, Window
from miaobi.token_rules import TokenRules
from miaobi.tokenizer import JiebaTokenizer
from miaobi.writing import StopFilter, Style, Writer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from miaobi.constraints import LogitsProcessor
    from miaobi.generation import GenerationOptions
    from miaobi.model import GPT

__all__ = ["LLM"]

_log = logging.getLogger(__name__)
_TOKENIZER_HASH: Final = "miaobi_tokenizer_hash"
_SEEDS: Final = 2**64


class LLM:
    """A model and its tokenizer: text in, text out.

    The text before a continuation is encoded once and kept in a KV cache, and the next call goes on from there if its
    prompt begins in the same way, as a dialogue does. A text may become longer than the model's context: the model then
    sees its most recent part. All methods may be called from several threads, which then write at the same time, each
    with a cache of its own. Weights that are changed by hand through `model.parameters()` want `clear_kv_cache()`;
    after a step of an optimizer it is done by itself.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: JiebaTokenizer,
        generation_config: GenerationConfig | None = None,
        chat_template: chat.ChatTemplate | None = None,
        *,
        dtype: str = "float32",
    ) -> None:
        """With dtype="bf16" writing reads weights rounded to bfloat16: half the memory traffic, 8 bits of precision.

        All LLMs of one model have the same dtype, since it keeps one copy of its weights in the order of decoding; load
        the model twice to have both. Raises ValueError if it has another LLM, not closed, with another dtype, if its
        vocabulary is not as large as the tokenizer's, and for an unknown dtype.
        """
        if model.config.vocab_size != tokenizer.vocab_size:
            raise ValueError(
                f"[llm] expected a model and a tokenizer of one vocabulary, got a model with vocab_size="
                f"{model.config.vocab_size} and a tokenizer with {tokenizer.vocab_size}; use the tokenizer that the "
                "model was trained with"
            )
        _check_dtype(dtype)
        self._pool = SessionPool(model, dtype)
        self.tokenizer: Final = tokenizer
        self.generation_config = generation_config or GenerationConfig()
        self.chat_template: Final = chat_template or chat.ChatTemplate()
        #: Whether a template came with the model, as with each that was trained on dialogues.
        self.has_chat_template: Final = chat_template is not None

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str], *, dtype: str = "float32") -> LLM:
        """The model in a folder that `save_pretrained` or `miaobi train` wrote.

        Raises FileNotFoundError if there is none, and FormatError if a file is damaged or the tokenizer is not the one
        that the model was trained with.
        """
        folder = Path(directory)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected the folder of a model, but there is no such folder")
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder}: expected the folder of a model, but it has no config.json")
        from miaobi.model import GPT

        tokenizer = JiebaTokenizer.load(folder)
        _check_tokenizer(folder / "config.json", tokenizer)
        config = GenerationConfig.load(folder)
        return cls(GPT.from_pretrained(folder), tokenizer, config, chat.ChatTemplate.load(folder), dtype=dtype)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes model, tokenizer, options of generation and, if there is one, chat template into a folder.

        Each file appears whole. Raises OSError.
        """
        model = self.model
        self.tokenizer.save(directory)
        self.generation_config.save(directory)
        if self.has_chat_template:
            self.chat_template.save(directory)
        extra = {
            _TOKENIZER_HASH: self.tokenizer.hash,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        model.save_pretrained(directory, extra_config=extra)

    @property
    def model(self) -> GPT:
        """The model. Raises ValueError after `close`."""
        return self._pool.model

    @property
    def context(self) -> int:
        """The most tokens that the model sees at once: its n_positions, or the window if that is less."""
        return self._pool.context

    def __repr__(self) -> str:
        try:
            return f"LLM({self.model.num_parameters:,} parameters, {self.tokenizer!r}, context={self.context})"
        except ValueError:
            return "LLM(closed)"

    @overload
    def generate(
        self,
        prompt: str = ...,
        *,
        return_details: Literal[False] = ...,
        processors: Sequence[LogitsProcessor] = ...,
        **options: Unpack[GenerationOptions],
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: str = ...,
        *,
        return_details: Literal[True],
        processors: Sequence[LogitsProcessor] = ...,
        **options: Unpack[GenerationOptions],
    ) -> GenerationResult: ...
    def generate(
        self,
        prompt: str = "",
        *,
        return_details: bool = False,
        processors: Sequence[LogitsProcessor] = (),
        **options: Unpack[GenerationOptions],
    ) -> str | GenerationResult:
        """The continuation of `prompt`, without it; "" if the model ends the text there.

        It is always valid Unicode text. A last character that `max_new_tokens` leaves incomplete is left out.

        The options are the fields of `GenerationConfig` and change `generation_config` for this call. `processors` are
        constraints on the text, or functions that change the logits (`miaobi.constraints`). With `return_details` the
        result is a `GenerationResult`: text, tokens, log-probabilities, why it ended. Raises ValueError for an unknown
        option or a value out of range.
        """
        config = _for_one(self.generation_config.replaced(options))
        style = self._style(config, processors)
        (result,) = self._complete([self._document(prompt)], style, return_details)
        return result if return_details else result.text

    @overload
    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        return_details: Literal[False] = ...,
        processors: Sequence[LogitsProcessor] = ...,
        **options: Unpack[GenerationOptions],
    ) -> list[str]: ...
    @overload
    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        return_details: Literal[True],
        processors: Sequence[LogitsProcessor] = ...,
        **options: Unpack[GenerationOptions],
    ) -> list[GenerationResult]: ...
    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        return_details: bool = False,
        processors: Sequence[LogitsProcessor] = (),
        **options: Unpack[GenerationOptions],
    ) -> list[str] | list[GenerationResult]:
        """The continuations of several prompts, written together: `num_return_sequences` for each, in order.

        Text number k is what `generate` gives with its prompt and the seed `seed + k` (modulo 2**64): which others are
        written with it changes nothing. Options and errors are those of `generate`.
        """
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"[llm] expected prompts to be a list of texts, got {prompts!r:.80}")
        style = self._style(self.generation_config.replaced(options), processors)
        results = self._complete([self._document(prompt) for prompt in prompts], style, return_details)
        return results if return_details else [result.text for result in results]

    def stream(
        self, prompt: str = "", *, processors: Sequence[LogitsProcessor] = (), **options: Unpack[GenerationOptions]
    ) -> TextStream:
        """The continuation of `prompt` in pieces, as it is written; joined they are what `generate` returns.

        A piece never ends within a character, nor within a stop string. Closing the iterator ends the generation, and
        so does its `cancel()`, from any thread. With num_beams > 1 there is one piece. Raises as `generate`, at once.
        """
        config = _for_one(self.generation_config.replaced(options))
        return self._stream(self._document(prompt), self._style(config, processors))

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        return_details: Literal[False] = ...,
        processors: Sequence[LogitsProcessor] = ...,
        **options: Unpack[GenerationOptions],
    ) -> str: ...
    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        return_details: Literal[True],
        processors: Sequence[LogitsProcessor] = ...,
        **options: Unpack[GenerationOptions],
    ) -> GenerationResult: ...
    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        return_details: bool = False,
        processors: Sequence[LogitsProcessor] = (),
        **options: Unpack[GenerationOptions],
    ) -> str | GenerationResult:
        """The answer to a dialogue: [{"role": "user", "content": "..."}, ...], whose last message is the user's.

        An answer has at least one visible character. Small models repeat themselves, so what it has said is made a
        little less likely, and a loop ends it: `frequency_penalty`, `penalty_window` and `stop_on_loop` have other
        defaults here (`generation.CHAT_DEFAULTS`). Of a dialogue that leaves less than a quarter of the context for
        the answer the oldest turns are left out, but a first message with the role "system" is not. Raises as
        `generate`, and ValueError if the messages are not as they should be.
        """
        prompt, style = self._dialogue(messages, options, processors)
        (result,) = self._complete([prompt], style, return_details)
        return result if return_details else result.text

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        processors: Sequence[LogitsProcessor] = (),
        **options: Unpack[GenerationOptions],
    ) -> TextStream:
        """The answer to a dialogue in pieces, as it is written; joined they are what `chat` returns."""
        return self._stream(*self._dialogue(messages, options, processors))

    def cancel(self) -> None:
        """Ends all that is being written, within a token or a step of the prompt; from any thread."""
        self._pool.cancel()

    def fit_dialogue(self, messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
        """The part of a dialogue that `chat` shows to the model: all of it, or its most recent turns."""
        chat.validate(messages)
        if messages[-1]["role"] != "user":
            raise ValueError(f'[chat] expected the last message to be the user\'s, got "{messages[-1]["role"]}"')
        template = self.chat_template
        lengths = [len(self.tokenizer.encode(template.render([message]) + template.separator)) for message in messages]
        room = kept_tokens(self.context)
        room -= len(self._document(template.render(messages[-1:], add_generation_prompt=True)))
        head = 1 if messages[0]["role"] == "system" and len(messages) > 1 else 0
        room -= sum(lengths[:head])
        first = len(messages) - 1
        for i in range(len(messages) - 2, head - 1, -1):
            room -= lengths[i]
            if room < 0:
                break
            if messages[i]["role"] == "user":
                first = i
        return [*messages[:head], *messages[first:]]

    def enable_kv_cache(self, window: Window = None, *, dtype: str = "float32") -> None:
        """Uses the KV cache, as from the beginning. With `window` the model sees at most that many of the last tokens.

        A full context or window, which is where the memory ends, too, is encoded again from its most recent three
        quarters, every context / 4 tokens: that is 3 tokens of prefill for each token written. `window="auto"` takes
        only the memory that prompt and answer need, doubling it as a dialogue grows, up to the context: the texts are
        those of window=None. With dtype="bf16" the cache takes half the memory, and keys and values are rounded.
        """
        if window not in (None, "auto") and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
            raise ValueError(f'[llm] expected window to be None, "auto" or an integer of at least 1, got {window!r}')
        _check_dtype(dtype)
        self._pool.configure(True, window, dtype)

    def disable_kv_cache(self) -> None:
        """Computes all that the model sees again for each token: the same text, slower. A window stays as it is."""
        self._pool.configure(False, self._pool.window, "float32")

    def clear_kv_cache(self) -> None:
        """Forgets the text of earlier calls and gives its memory back."""
        self._pool.clear()

    def cache_info(self) -> dict[str, int]:
        """What the KV caches hold, those of running calls and what is kept between calls.

        {"capacity": tokens, "used": tokens, "bytes": memory}.
        """
        return self._pool.info()

    def forward_with_kv_cache(self, ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The logits (n, V) of what follows each of some ids (n,), n >= 1, that go on from those of earlier calls.

        The same, to rounding, however the ids are cut into calls, and with the cache or without. `clear_kv_cache` and
        its siblings begin a new text. When the context is full its most recent part is encoded again, as in writing.
        """
        new = as_ids(ids, "ids")
        if new.ndim != 1 or not len(new):
            raise ValueError(f"[llm] expected ids (n,) with n >= 1, got shape {new.shape}")
        return self._pool.forward(new)

    def score(self, text: str) -> Score:
        """What it costs the model to predict `text` as a document of its own, up to and with the end token."""
        document = [*self._document(text), self.tokenizer.eos_token_id]
        (score,) = score_documents(self.model, [(document, len(text))])
        return score

    def perplexity(self, text: str) -> float:
        """The perplexity of `text` as a document of its own: exp of the mean loss of its tokens and the end token."""
        return self.score(text).perplexity

    def close(self) -> None:
        """Releases the cache and the model; a second call does nothing, any other method raises ValueError.

        What is being written raises ValueError at its next token.
        """
        self._pool.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _document(self, text: str) -> list[int]:
        """The ids of a document that begins with `text`."""
        return [self.tokenizer.bos_token_id, *self.tokenizer.encode(text)]

    def _style(
        self,
        config: GenerationConfig,
        processors: Sequence[LogitsProcessor],
        more_stops: Sequence[str] = (),
        is_answer: bool = False,
    ) -> Style:
        """How the texts of one call are written. Raises ValueError after `close`."""
        stops = (*config.stop_strings, *more_stops)
        return Style(self._rules, config, self.context, stops=stops, processors=processors, is_answer=is_answer)

    def _dialogue(
        self, messages: Sequence[Mapping[str, str]], options: GenerationOptions, processors: Sequence[LogitsProcessor]
    ) -> tuple[list[int], Style]:
        """The prompt of a dialogue, and how it is answered."""
        config = _for_one(self.generation_config.for_chat(options))
        template = self.chat_template
        prompt = self._document(template.render(self.fit_dialogue(messages), add_generation_prompt=True))
        return prompt, self._style(config, processors, template.turn_starts, is_answer=True)

    def _complete(self, prompts: list[list[int]], style: Style, details: bool) -> list[GenerationResult]:
        """All texts of a call."""
        config = style.config
        seed = _seed(config)
        if config.num_beams > 1:
            return [result for prompt in prompts for result in self._search(prompt, style, seed, threading.Event())]
        each = config.num_return_sequences
        writers = [
            Writer(style, prompt, (seed + number) % _SEEDS, details)
            for number, prompt in enumerate(prompt for prompt in prompts for _ in range(each))
        ]
        pieces: list[list[str]] = [[] for _ in writers]
        for number, piece in self._write(writers, style, threading.Event()):
            pieces[number].append(piece)
        return [writer.result("".join(text)) for writer, text in zip(writers, pieces, strict=True)]

    def _stream(self, prompt: list[int], style: Style) -> TextStream:
        """One text, as it is written."""
        cancelled = threading.Event()
        seed = _seed(style.config)
        if style.config.num_beams > 1:
            outcome = _SearchOutcome(seed)
            return TextStream(self._searched(prompt, style, outcome, cancelled), outcome, cancelled)
        writer = Writer(style, prompt, seed, keep=False)
        pieces = (piece for _, piece in self._write([writer], style, cancelled))
        return TextStream(pieces, writer, cancelled)

    def _write(
        self, writers: list[Writer], style: Style, cancelled: threading.Event
    ) -> Generator[tuple[int, str], None, None]:
        """What each text shows next, as (its number, piece)."""
        if not writers:
            return
        tokens = max(len(writer.prompt) for writer in writers) + style.max_new_tokens
        with self._pool.session(cancelled, writers[0].prompt, tokens, len(writers)) as session:
            yield from session.write(writers)

    def _search(self, prompt: list[int], style: Style, seed: int, cancelled: threading.Event) -> list[GenerationResult]:
        """The texts that beam search finds, best first."""
        tokens, beams = len(prompt) + style.max_new_tokens, style.config.num_beams
        with self._pool.session(cancelled, prompt, tokens, beams, all_at_once=True) as session:
            found = session.search(style, prompt)
        results = []
        for _, ids, logprobs, reason in found:
            text, stop = self.tokenizer.decode_stream(), StopFilter(style.stops)
            shown = stop.feed("".join([text.feed(token) for token in ids]))
            shown += "" if stop.stopped else stop.finish()
            results.append(GenerationResult(shown, tuple(ids), tuple(logprobs), reason, len(prompt), seed))
        return results

    def _searched(
        self, prompt: list[int], style: Style, outcome: _SearchOutcome, cancelled: threading.Event
    ) -> Generator[str, None, None]:
        """The text that beam search finds, as one piece."""
        (result,) = self._search(prompt, style, outcome.seed, cancelled)
        outcome.finish_reason = result.finish_reason
        if result.text:
            yield result.text

    @cached_property
    def _rules(self) -> TokenRules:
        return TokenRules(self.tokenizer)


@dataclass
class _SearchOutcome:
    """How a beam search that is streamed ended."""

    seed: int
    finish_reason: FinishReason | None = None


def _seed(config: GenerationConfig) -> int:
    return secrets.randbits(64) if config.seed is None else config.seed


def _for_one(config: GenerationConfig) -> GenerationConfig:
    """The configuration, if it is for one text."""
    if config.num_return_sequences > 1:
        raise ValueError(
            f"[llm] expected num_return_sequences=1 for one text, got {config.num_return_sequences}; for several use "
            "generate_batch([prompt], num_return_sequences=...)"
        )
    return config


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "bf16"):
        raise ValueError(f'[llm] expected dtype to be "float32" or "bf16", got {dtype!r}')


def _check_tokenizer(config_path: Path, tokenizer: JiebaTokenizer) -> None:
    """Raises FormatError if the model's configuration names another tokenizer."""
    try:
        content: Any = json.loads(config_path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(config_path, f"expected JSON: {error}") from None
    named = content.get(_TOKENIZER_HASH) if isinstance(content, dict) else None
    if named is None:
        _log.info("%s names no tokenizer; taking the one in its folder", config_path)
    elif named != tokenizer.hash:
        raise FormatError(
            config_path,
            f"the model was trained with the tokenizer {str(named)[:12]}, but the folder has {tokenizer.hash[:12]}; "
            "copy the tokenizer of the model here",
        )

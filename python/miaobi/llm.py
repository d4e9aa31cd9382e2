# SPDX-License-Identifier: MIT
"""A model with its tokenizer: writes, chats and judges text."""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from miaobi import chat
from miaobi.beam import beam_search
from miaobi.decoding import Decoder, StopFilter, advance, kept_tokens
from miaobi.errors import FormatError
from miaobi.generation import GenerationConfig
from miaobi.scoring import Score, score_documents
from miaobi.token_rules import TokenRules
from miaobi.tokenizer import JiebaTokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from miaobi.generation import GenerationOptions
    from miaobi.model import GPT

__all__ = ["LLM"]

_log = logging.getLogger(__name__)
_TOKENIZER_HASH: Final = "miaobi_tokenizer_hash"
_FORK_ROOM: Final = 64  # forks may hold a block that is not full and its copy: two blocks of 32 tokens
_SAMPLED_WEIGHTS: Final = 4096  # few enough to read in microseconds; any step of an optimizer changes some of them


class LLM:
    """A model and its tokenizer: text in, text out.

    The text before a continuation is encoded once and kept in a KV cache, and the next call goes on from there if its
    prompt begins in the same way, as a dialogue does. A text may become longer than the model's context: the model then
    sees its most recent part. All methods may be called from several threads. Weights that are changed by hand
    through `model.parameters()` want `clear_kv_cache()`; after a step of an optimizer it is done by itself.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: JiebaTokenizer,
        generation_config: GenerationConfig | None = None,
        chat_template: chat.ChatTemplate | None = None,
    ) -> None:
        """Raises ValueError if the model's vocabulary is not as large as the tokenizer's."""
        if model.config.vocab_size != tokenizer.vocab_size:
            raise ValueError(
                f"[llm] expected a model and a tokenizer of one vocabulary, got a model with vocab_size="
                f"{model.config.vocab_size} and a tokenizer with {tokenizer.vocab_size}; use the tokenizer that the "
                "model was trained with"
            )
        self._model: GPT | None = model
        self.tokenizer: Final = tokenizer
        self.generation_config = generation_config or GenerationConfig()
        self.chat_template: Final = chat_template or chat.ChatTemplate()
        # Guards what follows. Reentrant: the collector may close an abandoned stream while this thread has it.
        self._lock = threading.RLock()
        self._cached = True
        self._window: int | None = None
        self._idle: Decoder | None = None  # what the last finished text left in the cache
        self._idle_weights = b""

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> LLM:
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
        return cls(GPT.from_pretrained(folder), tokenizer, config, chat.ChatTemplate.load(folder))

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes model, tokenizer, options of generation and chat template into a folder; each file appears whole.

        Raises OSError.
        """
        model = self.model
        self.tokenizer.save(directory)
        self.generation_config.save(directory)
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
        if self._model is None:
            raise ValueError("[llm] this LLM is closed; make another one with LLM.from_pretrained(dir)")
        return self._model

    def _check_open(self) -> None:
        """Raises ValueError after `close`."""
        self.model  # noqa: B018

    @property
    def context(self) -> int:
        """The most tokens that the model sees at once: its n_positions, or the window if that is less."""
        positions = self.model.config.n_positions
        return positions if self._window is None else min(positions, self._window)

    def __repr__(self) -> str:
        if self._model is None:
            return "LLM(closed)"
        return f"LLM({self._model.num_parameters:,} parameters, {self.tokenizer!r}, context={self.context})"

    def generate(self, prompt: str = "", **options: Unpack[GenerationOptions]) -> str:
        """The continuation of `prompt`, without it; "" if the model ends the text there.

        It is always valid Unicode text. A last character that `max_new_tokens` leaves incomplete is left out.

        The options are the fields of `GenerationConfig` and change `generation_config` for this call. Raises ValueError
        for an unknown option or a value out of range.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: str = "", **options: Unpack[GenerationOptions]) -> Generator[str, None, None]:
        """The continuation of `prompt` in pieces, as it is written; joined they are what `generate` returns.

        A piece never ends within a character, nor within a stop string. Closing the iterator ends the generation. With
        num_beams > 1 there is one piece. Raises as `generate`, at once.
        """
        config = self.generation_config.replaced(options)
        self._check_open()
        return self._write(self._document(prompt), config, config.stop_strings)

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Unpack[GenerationOptions]) -> str:
        """The answer to a dialogue: [{"role": "user", "content": "..."}, ...], whose last message is the user's.

        An answer has at least one visible character. Of a dialogue that leaves less than a quarter of the context for
        the answer the oldest turns are left out, but a first message with the role "system" is not. Raises as
        `generate`, and ValueError if the messages are not as they should be.
        """
        return "".join(self.stream_chat(messages, **options))

    def stream_chat(
        self, messages: Sequence[Mapping[str, str]], **options: Unpack[GenerationOptions]
    ) -> Generator[str, None, None]:
        """The answer to a dialogue in pieces, as it is written; joined they are what `chat` returns."""
        config = self.generation_config.replaced(options)
        template = self.chat_template
        prompt = self._document(template.render(self.fit_dialogue(messages), add_generation_prompt=True))
        return self._write(prompt, config, config.stop_strings + template.turn_starts, is_answer=True)

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

    def enable_kv_cache(self, window: int | None = None) -> None:
        """Uses the KV cache, as from the beginning. With `window` the model sees at most that many of the last tokens.

        A full context or window, which is where the memory ends, too, is encoded again from its most recent three
        quarters, every context / 4 tokens: that is 3 tokens of prefill for each token written.
        """
        if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
            raise ValueError(f"[llm] expected window to be None or an integer of at least 1, got {window!r}")
        with self._lock:
            self._check_open()
            self._cached, self._window, self._idle = True, window, None

    def disable_kv_cache(self) -> None:
        """Computes all that the model sees again for each token: the same text, slower. A window stays as it is."""
        with self._lock:
            self._check_open()
            self._cached, self._idle = False, None

    def clear_kv_cache(self) -> None:
        """Forgets the text of earlier calls and gives its memory back."""
        with self._lock:
            self._check_open()
            self._idle = None

    def cache_info(self) -> dict[str, int]:
        """What the KV cache keeps between calls: {"capacity": tokens, "used": tokens, "bytes": memory}."""
        with self._lock:
            self._check_open()
            if self._idle is None or self._idle.cache is None:
                return {"capacity": 0, "used": 0, "bytes": 0}
            return dict(self._idle.cache.info())

    def score(self, text: str) -> Score:
        """What it costs the model to predict `text` as a document of its own, up to and with the end token."""
        document = [*self._document(text), self.tokenizer.eos_token_id]
        (score,) = score_documents(self.model, [(document, len(text))])
        return score

    def perplexity(self, text: str) -> float:
        """The perplexity of `text` as a document of its own: exp of the mean loss of its tokens and the end token."""
        return self.score(text).perplexity

    def close(self) -> None:
        """Releases the cache and the model; a second call does nothing, any other method raises ValueError."""
        with self._lock:
            self._model = self._idle = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _document(self, text: str) -> list[int]:
        """The ids of a document that begins with `text`."""
        return [self.tokenizer.bos_token_id, *self.tokenizer.encode(text)]

    def _write(
        self, prompt: list[int], config: GenerationConfig, stops: Sequence[str], is_answer: bool = False
    ) -> Generator[str, None, None]:
        """The text after `prompt`, in pieces."""
        filtered = StopFilter(stops)
        if config.num_beams > 1:
            text = filtered.feed(self._search(prompt, config, stops, is_answer)) + filtered.finish()
            if text:
                yield text
            return
        seed = secrets.randbits(64) if config.seed is None else config.seed
        decoder = self._take()
        try:
            yield from self._sample(decoder, prompt, config, filtered, seed, is_answer)
        except GeneratorExit:  # raised at a yield, where the decoder is whole; elsewhere it may not be, and is dropped
            self._give(decoder)
            raise
        self._give(decoder)

    def _sample(
        self,
        decoder: Decoder,
        prompt: list[int],
        config: GenerationConfig,
        filtered: StopFilter,
        seed: int,
        is_answer: bool,
    ) -> Generator[str, None, None]:
        """The text after `prompt`, token by token."""
        from miaobi._core import Sampler

        sampler = Sampler(
            do_sample=config.do_sample,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            repetition_penalty=config.repetition_penalty,
            no_repeat_ngram_size=config.no_repeat_ngram_size,
            seed=seed,
        )
        text = self.tokenizer.decode_stream()
        opening = is_answer
        written: deque[int] = deque(maxlen=3)  # as many as the rules look at
        new = decoder.rewind(prompt)
        for _ in range(config.max_new_tokens):
            self._check_open()  # it may have been closed since the last token
            logits = advance([decoder], [new])[0]
            token = sampler.sample(logits, decoder.tokens, self._rules.banned(written, opening))
            if token == self.tokenizer.eos_token_id:
                break
            written.append(token)
            shown = text.feed(token)
            opening = opening and not shown.strip()
            piece = filtered.feed(shown)
            if piece:
                yield piece
            if filtered.stopped:
                return
            new = np.asarray([token], np.int32)
        rest = filtered.finish()  # what `text` may still hold are bytes of a character that is not complete
        if rest:
            yield rest

    def _search(self, prompt: list[int], config: GenerationConfig, stops: Sequence[str], is_answer: bool) -> str:
        """The text after `prompt` that beam search finds."""
        decoder = self._new_decoder(config.num_beams)
        ids = beam_search(
            decoder,
            decoder.rewind(prompt),
            config,
            eos=self.tokenizer.eos_token_id,
            banned=lambda ids: self._rules.banned(ids, opening=is_answer and not ids),
            ends=lambda ids: any(stop in self.tokenizer.decode(ids) for stop in stops),
        )
        text = self.tokenizer.decode_stream()
        return "".join([text.feed(token) for token in ids])

    def _new_decoder(self, sequences: int = 1) -> Decoder:
        """A decoder that has seen nothing, whose cache has room for some texts of full length."""
        size = self.context if sequences == 1 else (self.context + _FORK_ROOM) * sequences
        return Decoder(self.model, self.context, self.model.new_cache(size) if self._cached else None)

    def _take(self) -> Decoder:
        """The decoder of the last text if nobody has it and it still holds, else a new one."""
        with self._lock:
            decoder, self._idle = self._idle, None
            if decoder is None or self._idle_weights != self._weights():
                decoder = self._new_decoder()
            return decoder

    def _give(self, decoder: Decoder) -> None:
        """Keeps what a text left in its decoder for the next call, unless the settings changed meanwhile."""
        with self._lock:
            if self._model is None or decoder.limit != self.context or (decoder.cache is not None) != self._cached:
                return
            self._idle, self._idle_weights = decoder, self._weights()

    def _weights(self) -> bytes:
        """A sample of the parameters, to see whether they changed."""
        arena = self.model.arena
        return arena[:: max(len(arena) // _SAMPLED_WEIGHTS, 1)].tobytes()

    @cached_property
    def _rules(self) -> TokenRules:
        return TokenRules(self.tokenizer)


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

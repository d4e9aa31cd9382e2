# SPDX-License-Identifier: MIT
"""How a model writes: the options of generation, checked when they are made, their file in a model folder, results."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

from miaobi.errors import FormatError
from miaobi.files import write_atomic
from miaobi.tokenizer import JiebaTokenizer

__all__ = [
    "CHAT_DEFAULTS",
    "GENERATION_CONFIG_FILE",
    "FinishReason",
    "GenerationConfig",
    "GenerationOptions",
    "GenerationResult",
]

GENERATION_CONFIG_FILE: Final = "generation_config.json"
_EOS: Final = JiebaTokenizer.eos_token_id
_TOKEN_IDS: Final = {"bos_token_id": JiebaTokenizer.bos_token_id, "pad_token_id": JiebaTokenizer.pad_token_id}
# Bookkeeping that transformers adds to the file. The ids of special tokens are the tokenizer's to say.
_IGNORED_IN_FILE: Final = frozenset({*_TOKEN_IDS, "decoder_start_token_id", "transformers_version", "use_cache"})
_SEED_LIMIT: Final = 2**64

# What `LLM.chat` takes where neither the call nor the model's own configuration says otherwise: small models repeat
# themselves. Only the answer is penalised, not what it takes up from the question, and only its last tokens, so that
# "，" and "的" do not become dearer and dearer in a long one.
CHAT_DEFAULTS: Final[Mapping[str, Any]] = {"frequency_penalty": 0.2, "penalty_window": 64, "stop_on_loop": True}

FinishReason = Literal["stop", "length", "loop", "cancelled"]


class GenerationOptions(TypedDict, total=False):
    """The keyword arguments of `LLM.generate` and its siblings: the fields of `GenerationConfig`, each optional."""

    max_new_tokens: int
    min_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    no_repeat_ngram_size: int
    num_beams: int
    length_penalty: float
    num_return_sequences: int
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] | None
    bad_words: str | tuple[str, ...] | list[str] | None
    stop: str | tuple[str, ...] | list[str] | None
    stop_token_ids: tuple[int, ...] | list[int] | None
    stop_on_loop: bool
    seed: int | None


@dataclass(frozen=True)
class GenerationResult:
    """A text that was written, and how: what `return_details=True` gives in place of a str.

    text:          the continuation, without stop string.
    tokens:        the ids that were written, without the end token; those of a stop string are among them.
    logprobs:      log-probability that the model gave each of them, before temperature, penalties and rules.
    finish_reason: "stop" for the end token, a stop string or token, or a constraint that is met; "length" for
                   max_new_tokens; "loop" where the text only repeated itself; "cancelled".
    prompt_tokens: ids before the continuation, the begin token among them.
    seed:          gives the same text again.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The options of generation. Raises ValueError naming the field if one is out of range.

    max_new_tokens:       the most tokens to write, at least 1.
    min_new_tokens:       before so many, the end token and stop tokens do not come.
    do_sample:            draw each token at random by its probability; False takes the likeliest (greedy).
    temperature:          above 0; under 1 is more predictable, over 1 more varied. For sampling, as the next four.
    top_k:                draw from the k likeliest tokens; 0 for all.
    top_p:                draw from the likeliest tokens that together have this probability, above 0 to 1.
    min_p:                drop tokens less likely than this share of the likeliest one, 0 to 1.
    typical_p:            draw from the tokens of about the expected surprise that together have this probability.
    repetition_penalty:   above 0; over 1 makes tokens that prompt or continuation have already less likely.
    presence_penalty:     -2 to 2, taken off the logit of each token that was written since the prompt,
    frequency_penalty:    -2 to 2, and this for each time that it was.
    penalty_window:       the penalties look at this many of the last tokens; 0 for as many as the model sees.
    no_repeat_ngram_size: no n tokens of those the model sees come in the same order again; 0 for no such rule.
    num_beams:            over 1 is beam search, which needs do_sample=False.
    length_penalty:       beam search compares log-probability / length ** this: over 0 favours long texts.
    num_return_sequences: texts for each prompt of `generate_batch`; text number k of a call has the seed `seed + k`.
    logit_bias:           {token id: number to add to its logit}.
    bad_words:            texts that are not written, however they are cut into tokens.
    stop:                 texts that end the generation; they are not part of the result.
    stop_token_ids:       ids that end it as the end token does.
    stop_on_loop:         end where the text says the same at least three times in a row, and 24 tokens or more.
    seed:                 the same seed gives the same text; None draws a fresh one for each call.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    do_sample: bool = True
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    num_return_sequences: int = 1
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] | None = None
    bad_words: str | tuple[str, ...] | list[str] | None = None
    stop: str | tuple[str, ...] | list[str] | None = None
    stop_token_ids: tuple[int, ...] | list[int] | None = None
    stop_on_loop: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, least in _INTEGERS.items():
            self._set_int(name, least)
        for name, (low, high, open_low) in _REALS.items():
            hint = "; for the likeliest text use do_sample=False (--greedy)" if name == "temperature" else ""
            self._set_float(name, low, high, open_low=open_low, hint=hint)
        for name in ("do_sample", "stop_on_loop"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, "True or False", getattr(self, name))
        if self.seed is not None:
            self._set_int("seed", 0)
            if self.seed >= _SEED_LIMIT:
                raise _wrong("seed", "None or an integer from 0 to 2**64 - 1", self.seed)
        self._set_texts("stop")
        self._set_texts("bad_words")
        self._set_stop_tokens()
        self._set_bias()
        self._check_together()

    def _check_together(self) -> None:
        """Raises ValueError for options that are right alone, but not with each other."""
        if self.min_new_tokens > self.max_new_tokens:
            raise _wrong("min_new_tokens", f"at most max_new_tokens={self.max_new_tokens}", self.min_new_tokens)
        if self.num_beams > 1 and self.do_sample:
            raise ValueError(
                f"[generation] expected do_sample=False with num_beams={self.num_beams}, got do_sample=True: beam "
                "search does not sample; set do_sample=False or num_beams=1"
            )
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"[generation] expected num_return_sequences of at most num_beams={self.num_beams} with "
                f"do_sample=False, got {self.num_return_sequences}: there are no more different texts; set "
                "do_sample=True, or more beams"
            )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, empty for None."""
        return tuple(self.stop or ())

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as pairs, in order of id."""
        pairs = self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else self.logit_bias
        return tuple(pairs or ())

    def for_chat(self, options: Mapping[str, Any]) -> GenerationConfig:
        """`replaced`, with CHAT_DEFAULTS for what neither `options` nor this configuration sets."""
        standard = {field.name: field.default for field in fields(self)}
        unset = {name: value for name, value in CHAT_DEFAULTS.items() if getattr(self, name) == standard[name]}
        return self.replaced({**unset, **options})

    def replaced(self, options: Mapping[str, Any]) -> GenerationConfig:
        """This configuration with some fields changed. Raises ValueError for an unknown name or a wrong value."""
        _check_names(options)
        return replace(self, **options)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> GenerationConfig:
        """The configuration with these fields, the rest as by default. Raises ValueError as `replaced`."""
        return cls().replaced(options)

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as JSON has them: lists for tuples."""
        return {name: _plain(getattr(self, name)) for name in _NAMES}

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `generation_config.json`, which transformers reads, too, into `directory`. Raises OSError."""
        content = {name: value for name, value in self.to_dict().items() if value is not None}
        if "stop" in content:
            content["stop_strings"] = content.pop("stop")
        if "logit_bias" in content:
            del content["logit_bias"]
            content["sequence_bias"] = [[[token], bias] for token, bias in self.biases]
        stops = content.pop("stop_token_ids", None)
        content["eos_token_id"] = [_EOS, *stops] if stops else _EOS
        text = json.dumps({**content, **_TOKEN_IDS}, ensure_ascii=False, indent=2)
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / GENERATION_CONFIG_FILE, (text + "\n").encode())

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> GenerationConfig:
        """The configuration in `directory`, or the default one if it has no such file.

        Raises FormatError for a file that is not JSON or has an unknown name or a value out of range.
        """
        path = Path(directory) / GENERATION_CONFIG_FILE
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (ValueError, RecursionError) as error:
            raise FormatError(path, f"expected JSON: {error}") from None
        if not isinstance(content, dict):
            raise FormatError(path, f"expected a JSON object, got {type(content).__name__}")
        try:
            return cls.from_dict(_options_of_file(content))
        except ValueError as error:
            raise FormatError(path, str(error)) from None

    def _set_int(self, name: str, low: int) -> None:
        """Checks an integer field and stores it as int."""
        value = getattr(self, name)
        if not _is_integer(value) or value < low:
            raise _wrong(name, f"an integer of at least {low}", value)
        object.__setattr__(self, name, int(value))

    def _set_float(self, name: str, low: float, high: float, *, open_low: bool = False, hint: str = "") -> None:
        """Checks a real field and stores it as float."""
        value = getattr(self, name)
        if not _is_real(value) or value > high or value < low or (open_low and value == low):
            reach = "" if math.isinf(low) else f" above {low:g}" if open_low else f" from {low:g}"
            upper = "" if math.isinf(high) else f" to {high:g}"
            raise _wrong(name, f"a number{reach}{upper}", value, hint)
        object.__setattr__(self, name, float(value))

    def _set_texts(self, name: str) -> None:
        """Checks a field of one or more texts and stores it as a tuple, or None for none."""
        given = getattr(self, name)
        texts = (given,) if isinstance(given, str) else given
        if texts is not None:
            if not isinstance(texts, tuple | list) or not all(isinstance(text, str) and text for text in texts):
                raise _wrong(name, "None, a text, or a list of texts, none of them empty", given)
            object.__setattr__(self, name, tuple(texts) or None)

    def _set_stop_tokens(self) -> None:
        """Checks `stop_token_ids` and stores it as a tuple, or None for none."""
        ids = self.stop_token_ids
        if ids is not None:
            if not isinstance(ids, tuple | list) or not all(_is_integer(token) and token >= 0 for token in ids):
                raise _wrong("stop_token_ids", "None, or a list of integers of at least 0", ids)
            object.__setattr__(self, "stop_token_ids", tuple(map(int, ids)) or None)

    def _set_bias(self) -> None:
        """Checks `logit_bias` and stores it as pairs in order of id, or None for none."""
        given: Any = self.logit_bias
        if given is None:
            return
        items: Iterable[Any] = given.items() if isinstance(given, Mapping) else given
        pairs: list[Any] = list(items) if isinstance(given, Mapping | tuple | list) else [None]
        for pair in pairs:
            two = isinstance(pair, tuple | list) and len(pair) == 2
            if not two or not _is_integer(pair[0]) or pair[0] < 0 or not _is_real(pair[1]):
                raise _wrong("logit_bias", "{token id: finite number, ...}", given)
        biases = {int(token): float(bias) for token, bias in pairs}
        object.__setattr__(self, "logit_bias", tuple(sorted(biases.items())) or None)


_NAMES: Final = tuple(field.name for field in fields(GenerationConfig))
_INTEGERS: Final = {  # the least value of each
    "max_new_tokens": 1,
    "min_new_tokens": 0,
    "top_k": 0,
    "penalty_window": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
}
_REALS: Final = {  # low, high, whether low itself is out
    "temperature": (0.0, math.inf, True),
    "top_p": (0.0, 1.0, True),
    "min_p": (0.0, 1.0, False),
    "typical_p": (0.0, 1.0, True),
    "repetition_penalty": (0.0, math.inf, True),
    "presence_penalty": (-2.0, 2.0, False),
    "frequency_penalty": (-2.0, 2.0, False),
    "length_penalty": (-math.inf, math.inf, False),
}


def _options_of_file(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration from the names that transformers has for them."""
    options: dict[str, Any] = {}
    for name, value in content.items():
        if value is None or name in _IGNORED_IN_FILE or name.startswith("_"):
            continue
        if name == "stop_strings":
            options["stop"] = value
        elif name == "eos_token_id":
            options["stop_token_ids"] = [token for token in value if token != _EOS] if isinstance(value, list) else None
        elif name == "sequence_bias":
            try:
                options["logit_bias"] = tuple((token, bias) for (token,), bias in value)
            except (TypeError, ValueError):
                raise _wrong("sequence_bias", "[[[token id], number], ...], one id each", value) from None
        else:
            options[name] = value
    return options


def _plain(value: Any) -> Any:
    """`value` with lists for tuples."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_names(options: Mapping[str, Any]) -> None:
    """Raises ValueError for a name that is no field, with the nearest one that is."""
    for name in options:
        if name not in _NAMES:
            near = difflib.get_close_matches(str(name), _NAMES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(_NAMES)}"
            raise ValueError(f"[generation] unknown option {name!r}; {hint}")


def _wrong(name: str, expected: str, got: object, hint: str = "") -> ValueError:
    """The error for a field's value."""
    return ValueError(f"[generation] expected {name} to be {expected}, got {got!r:.80}{hint}")

# SPDX-License-Identifier: MIT
"""How a model writes: the options of generation, checked when they are made, and their file in a model folder."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final, TypedDict

from miaobi.errors import FormatError
from miaobi.files import write_atomic
from miaobi.tokenizer import JiebaTokenizer

__all__ = ["GENERATION_CONFIG_FILE", "GenerationConfig", "GenerationOptions"]

GENERATION_CONFIG_FILE: Final = "generation_config.json"
_TOKEN_IDS: Final = {
    "bos_token_id": JiebaTokenizer.bos_token_id,
    "eos_token_id": JiebaTokenizer.eos_token_id,
    "pad_token_id": JiebaTokenizer.pad_token_id,
}
# Bookkeeping that transformers adds to the file. The ids of special tokens are the tokenizer's to say.
_IGNORED_IN_FILE: Final = frozenset({*_TOKEN_IDS, "decoder_start_token_id", "transformers_version", "use_cache"})
_SEED_LIMIT: Final = 2**64


class GenerationOptions(TypedDict, total=False):
    """The keyword arguments of `LLM.generate` and its siblings: the fields of `GenerationConfig`, each optional."""

    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    num_beams: int
    stop: str | tuple[str, ...] | list[str] | None
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The options of generation. Raises ValueError naming the field if one is out of range.

    max_new_tokens:       the most tokens to write, at least 1.
    do_sample:            draw each token at random by its probability; False takes the likeliest (greedy).
    temperature:          above 0; under 1 is more predictable, over 1 more varied. For sampling, as the next three.
    top_k:                draw from the k likeliest tokens; 0 for all.
    top_p:                draw from the likeliest tokens that together have this probability, above 0 to 1.
    min_p:                drop tokens less likely than this share of the likeliest one, 0 to 1.
    repetition_penalty:   above 0; over 1 makes tokens that the model sees in the text less likely.
    no_repeat_ngram_size: no n tokens come in the same order twice; 0 for no such rule.
    num_beams:            over 1 is beam search, which needs do_sample=False.
    stop:                 texts that end the generation; they are not part of the result.
    seed:                 the same seed gives the same text; None draws a fresh one for each call.
    """

    max_new_tokens: int = 64
    do_sample: bool = True
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    stop: str | tuple[str, ...] | list[str] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        self._set_int("max_new_tokens", 1)
        self._set_int("top_k", 0)
        self._set_int("no_repeat_ngram_size", 0)
        self._set_int("num_beams", 1)
        self._set_float(
            "temperature", 0.0, math.inf, open_low=True, hint="; for the likeliest text use do_sample=False"
        )
        self._set_float("top_p", 0.0, 1.0, open_low=True)
        self._set_float("min_p", 0.0, 1.0)
        self._set_float("repetition_penalty", 0.0, math.inf, open_low=True)
        if not isinstance(self.do_sample, bool):
            raise _wrong("do_sample", "True or False", self.do_sample)
        if self.num_beams > 1 and self.do_sample:
            raise ValueError(
                f"[generation] expected do_sample=False with num_beams={self.num_beams}, got do_sample=True: beam "
                "search does not sample; set do_sample=False or num_beams=1"
            )
        if self.seed is not None:
            self._set_int("seed", 0)
            if self.seed >= _SEED_LIMIT:
                raise _wrong("seed", "None or an integer from 0 to 2**64 - 1", self.seed)
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if stop is not None:
            if not isinstance(stop, tuple | list) or not all(isinstance(text, str) and text for text in stop):
                raise _wrong("stop", "None, a text, or a list of texts, none of them empty", self.stop)
            object.__setattr__(self, "stop", tuple(stop) or None)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, empty for None."""
        return tuple(self.stop or ())

    def replaced(self, options: Mapping[str, Any]) -> GenerationConfig:
        """This configuration with some fields changed. Raises ValueError for an unknown name or a wrong value."""
        _check_names(options)
        return replace(self, **options)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> GenerationConfig:
        """The configuration with these fields, the rest as by default. Raises ValueError as `replaced`."""
        return cls().replaced(options)

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, `stop` as a list or None."""
        return {**asdict(self), "stop": list(self.stop_strings) or None}

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `generation_config.json`, which transformers reads, too, into `directory`. Raises OSError."""
        content = {name: value for name, value in self.to_dict().items() if value is not None}
        if "stop" in content:
            content["stop_strings"] = content.pop("stop")
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
        options = {
            "stop" if name == "stop_strings" else name: value
            for name, value in content.items()
            if value is not None and name not in _IGNORED_IN_FILE and not name.startswith("_")
        }
        try:
            return cls.from_dict(options)
        except ValueError as error:
            raise FormatError(path, str(error)) from None

    def _set_int(self, name: str, low: int) -> None:
        """Checks an integer field and stores it as int."""
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
            raise _wrong(name, f"an integer of at least {low}", value)
        object.__setattr__(self, name, int(value))

    def _set_float(self, name: str, low: float, high: float, *, open_low: bool = False, hint: str = "") -> None:
        """Checks a real field and stores it as float."""
        value = getattr(self, name)
        real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not real or value > high or value < low or (open_low and value == low):
            reach = f"above {low:g}" if open_low else f"from {low:g}"
            upper = "" if math.isinf(high) else f" to {high:g}"
            raise _wrong(name, f"a number {reach}{upper}", value, hint)
        object.__setattr__(self, name, float(value))


_NAMES: Final = tuple(field.name for field in fields(GenerationConfig))


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

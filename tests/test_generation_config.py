# SPDX-License-Identifier: MIT
"""The options of generation: checked by name, saved as transformers has them, refused when unknown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miaobi.errors import FormatError
from miaobi.generation import GENERATION_CONFIG_FILE, GenerationConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("do_sample", 1),
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "warm"),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("no_repeat_ngram_size", -2),
        ("num_beams", 0),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", 3),
        ("min_new_tokens", -1),
        ("typical_p", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -3),
        ("penalty_window", -1),
        ("length_penalty", float("inf")),
        ("num_return_sequences", 0),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"春": 1.0}),
        ("logit_bias", {1: float("inf")}),
        ("logit_bias", "春"),
        ("bad_words", [""]),
        ("bad_words", 3),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 3),
        ("stop_on_loop", 1),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.0),
    ],
)
def test_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"expected {name} to be .*, got "):
        GenerationConfig(**{name: value})


def test_beam_search_does_not_sample() -> None:
    with pytest.raises(ValueError, match="do_sample=False with num_beams=4"):
        GenerationConfig(num_beams=4)
    assert GenerationConfig(num_beams=4, do_sample=False).num_beams == 4


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="expected min_new_tokens to be at most max_new_tokens=3, got 4"):
        GenerationConfig(min_new_tokens=4, max_new_tokens=3)
    with pytest.raises(ValueError, match="num_return_sequences of at most num_beams=2"):
        GenerationConfig(do_sample=False, num_beams=2, num_return_sequences=3)
    assert GenerationConfig(do_sample=False, num_beams=3, num_return_sequences=3).num_return_sequences == 3


def test_values_are_plain_and_the_config_is_frozen() -> None:
    config = GenerationConfig(max_new_tokens=np.int64(3), temperature=1, stop="。", seed=np.uint64(2**64 - 1))
    assert type(config.max_new_tokens) is int
    assert type(config.temperature) is float
    assert config.stop == ("。",)
    assert GenerationConfig(stop=[]).stop is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="'temprature'; did you mean 'temperature'"):
        GenerationConfig.from_dict({"temprature": 1})
    with pytest.raises(ValueError, match="'frobnicate'; the options are max_new_tokens"):
        GenerationConfig().replaced({"frobnicate": 1})
    assert GenerationConfig.from_dict({"top_k": 5}) == GenerationConfig(top_k=5)


def test_file_round_trip_has_the_names_of_transformers(tmp_path: Path) -> None:
    config = GenerationConfig(
        temperature=0.5,
        stop=["。", "\n"],
        seed=7,
        logit_bias={9: 1, 4: -0.5},
        stop_token_ids=[8],
        bad_words="傻",
        typical_p=0.9,
    )
    hash(config)
    config.save(tmp_path / "new")
    content = json.loads((tmp_path / "new" / GENERATION_CONFIG_FILE).read_text())
    assert content["stop_strings"] == ["。", "\n"]
    assert (content["pad_token_id"], content["bos_token_id"], content["eos_token_id"]) == (0, 2, [3, 8])
    assert content["sequence_bias"] == [[[4], -0.5], [[9], 1.0]]
    assert GenerationConfig.load(tmp_path / "new") == config
    assert [path.name for path in (tmp_path / "new").iterdir()] == [GENERATION_CONFIG_FILE]


def test_file_of_transformers_is_read_and_none_means_defaults(tmp_path: Path) -> None:
    assert GenerationConfig.load(tmp_path) == GenerationConfig()
    content = {"_from_model_config": True, "eos_token_id": [3], "top_k": 9, "min_p": None, "transformers_version": "5"}
    (tmp_path / GENERATION_CONFIG_FILE).write_text(json.dumps(content))
    assert GenerationConfig.load(tmp_path) == GenerationConfig(top_k=9)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"top_p": 2}',
        b'{"top_pp": 1}',
        b'{"sequence_bias": [[[1, 2], 0.5]]}',
        b"[" * 100_000,
    ],
)
def test_wrong_file_is_refused_by_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / GENERATION_CONFIG_FILE).write_bytes(content)
    with pytest.raises(FormatError, match=GENERATION_CONFIG_FILE):
        GenerationConfig.load(tmp_path)

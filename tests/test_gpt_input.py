# SPDX-License-Identifier: MIT
"""What a GPT refuses: sizes, configs, batches and targets that are not what they should be."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from miaobi.model import GPT, GPTConfig

IGNORED = -100

BIG = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # where the check fails, no harm is done
import miaobi
most = 2**31 - 1
for make in (
    lambda: miaobi.GPT(miaobi.GPTConfig(most, 8, most, 1, 1)),
    lambda: miaobi.GPT(miaobi.GPTConfig(8, 8, 2**30, 1, 1)),
    lambda: miaobi.Linear(2**32, 2**32),
    lambda: miaobi.Linear(2**31, 2**32),
    lambda: miaobi.SelfAttention(2**40, 1),
):
    try:
        make()
    except ValueError as error:
        assert "with 1 to 2^40 elements" in str(error), error
    else:
        raise AssertionError("was made")
try:
    miaobi.GPT(miaobi.GPTConfig(8, 8, 8, 1, 1)).new_cache(2**40)
except MemoryError:
    print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of memory")
def test_sizes_that_no_memory_holds() -> None:
    done = subprocess.run([sys.executable, "-c", BIG], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


GOOD: dict[str, Any] = {"vocab_size": 10, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in GOOD for value in (0, -1, 2.0, "8", None, True, 2**31)],
        *[("n_inner", value) for value in (0, -4, 1.5, 2**40)],
        *[("n_head", 5), ("n_embd", 13)],
        *[("activation_function", value) for value in ("gelu", "swish", None)],
        *[("layer_norm_epsilon", value) for value in (0.0, -1.0, math.nan, math.inf, "1e-5", None)],
        *[("tie_word_embeddings", value) for value in (None, "no", 1)],
        ("dropout", 1.0),
        ("dropout", math.nan),
    ],
)
def test_config_names_the_wrong_field(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        GPTConfig(**{**GOOD, name: value})


def test_config_defaults() -> None:
    config = GPTConfig(**GOOD)
    assert (config.n_inner, config.inner_size, config.activation_function) == (None, 48, "gelu_new")
    assert (config.layer_norm_epsilon, config.tie_word_embeddings, config.dropout) == (1e-5, True, 0.0)
    assert GPTConfig.from_dict({**asdict(config), "model_type": "gpt2", "attn_pdrop": 0.1}) == config
    with pytest.raises(ValueError, match=r"n_embd, n_head missing"):
        GPTConfig.from_dict({"vocab_size": 1, "n_positions": 1, "n_layer": 1})
    with pytest.raises(AttributeError):
        config.n_embd = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("ids", "offsets", "message"),
    [
        ([[1, 10]], None, r"expected ids in \[0, 10\), got 10 at position 1"),
        ([[-1]], None, r"got -1 at position 0"),
        ([[2**33]], None, "expected ids to fit in 32 bits"),
        ([[0.5]], None, "expected ids to hold integers, got dtype float64"),
        ([["0"]], None, "expected ids to hold integers"),
        ([0, 1], None, r"expected ids \(B, T\), or \(N,\) with offsets, got shape \(2,\)"),
        ([[[0]]], None, "got shape"),
        ([[0] * 9], None, "at most n_positions = 8 tokens, got 9; split them or train with a longer context"),
        ([0] * 10, [0, 9, 10], "at most n_positions = 8 tokens, got 9"),
        ([[0, 1]], [0, 2], r"expected flat ids beside offsets, got shape \(1, 2\)"),
        ([0, 1], [0, 1], "end at the number of tokens, 2, got 1"),
        ([0, 1], [0, 3], "end at the number of tokens, 2, got 3"),
        ([0, 1], [1, 2], "start at 0, got 1"),
        ([0, 1], [0, 2, 1, 2], "ascending offsets, got 2 and 1"),
        ([0, 1], [0, 1 - 2**62, 2], "ascending offsets"),
        ([0, 1], [[0, 2]], "offsets with one dimension"),
        ([0, 1], [0, 2.0], "offsets to hold integers"),
    ],
)
def test_wrong_batches(ids: Any, offsets: Any, message: str) -> None:
    model = GPT(GPTConfig(**GOOD))
    targets = np.zeros(np.shape(ids), int)
    for call in (model.forward, lambda ids, offsets: model.loss_backward(ids, targets, offsets)):
        with pytest.raises(ValueError, match=message):
            call(ids, offsets)
    assert not model.gradient_arena.any()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[1]], r"expected targets of the shape of ids, \(1, 2\), got \(1, 1\)"),
        ([1, 2], "shape of ids"),
        ([[1, 10]], r"targets in \[0, 10\) or -100 for none, got 10 at position 1"),
        ([[-1, 1]], "got -1 at position 0"),
        ([[1.0, 1.0]], "expected targets to hold integers"),
    ],
)
def test_wrong_targets(targets: Any, message: str) -> None:
    model = GPT(GPTConfig(**GOOD))
    for call in (model.loss, model.token_losses, model.loss_backward):
        with pytest.raises(ValueError, match=message):
            call([[1, 2]], targets)
    assert not model.gradient_arena.any()


def test_nothing_to_score() -> None:
    model = GPT(GPTConfig(**GOOD))
    with pytest.raises(ValueError, match="expected at least one target that counts, got none"):
        model.loss([[1, 2]], [[IGNORED, IGNORED]])
    for wrong in (0, -3):
        with pytest.raises(ValueError, match=f"expected a positive normalizer, got {wrong}"):
            model.loss_backward([[1, 2]], [[1, 2]], normalizer=wrong)
    assert not model.gradient_arena.any()

# SPDX-License-Identifier: MIT
"""The sampler: each rule against its plain formula, the same for one seed, and the history it looks at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import miaobi
from miaobi._core import Sampler, sample_rows

VOCAB = 300


def logits_of(seed: int, scale: float = 2.0, size: int = VOCAB) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def ids(*values: int) -> np.ndarray:
    return np.asarray(values, np.int32)


def softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x.astype(np.float64) - np.max(x))
    return p / p.sum()


def smallest_set(p: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    """p where the first of `order` that have the share together are kept, renormalised."""
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), share * (1 - 1e-6))) + 1]
    out = np.zeros_like(p)
    out[kept] = p[kept]
    return out / out.sum()


def expected(logits: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """The probabilities that the documented order of rules leaves."""
    p = softmax(logits / options.get("temperature", 1.0))
    p[p < options.get("min_p", 0.0) * p.max()] = 0
    p /= p.sum()
    if 0 < options.get("top_k", 0) < len(p):
        out = np.zeros_like(p)
        kept = np.argsort(-p, kind="stable")[: options["top_k"]]
        out[kept] = p[kept]
        p = out / out.sum()
    if options.get("top_p", 1.0) < 1:
        p = smallest_set(p, np.argsort(-p, kind="stable"), options["top_p"])
    if options.get("typical_p", 1.0) < 1:
        surprise = -np.log(np.where(p > 0, p, 1))
        distance = np.where(p > 0, np.abs(surprise - (p * surprise).sum()), np.inf)
        p = smallest_set(p, np.argsort(distance, kind="stable"), options["typical_p"])
    return p


def frequencies(logits: np.ndarray, options: dict[str, Any], draws: int) -> np.ndarray:
    counts = np.zeros(len(logits))
    sampler = Sampler(**options, seed=7)
    for _ in range(draws):
        counts[sampler.sample(logits)] += 1
    return counts / draws


WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0, "top_k": 7},
    {"top_k": 1},
    {"top_p": 0.5},
    {"top_p": 1e-6},
    {"min_p": 0.2},
    {"typical_p": 0.4},
    {"temperature": 0.7, "min_p": 0.01, "top_k": 50, "top_p": 0.8, "typical_p": 0.7},
]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_draws_have_the_probabilities_of_the_formula(options: dict[str, Any]) -> None:
    draws = 4000
    for seed in range(3):
        logits = logits_of(seed)
        want = expected(logits, options)
        got = frequencies(logits, options, draws)
        assert not got[want == 0].any()
        # Five standard deviations of a count of `draws` trials, and three for what is hardly ever drawn.
        assert np.all(np.abs(got - want) <= 5 * np.sqrt(want * (1 - want) / draws) + 3 / draws)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    values=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    options=st.sampled_from([{"top_k": 3}, {"top_p": 0.4}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.6}]),
)
def test_ties_go_to_the_smaller_id(values: list[int], options: dict[str, Any]) -> None:
    logits = np.asarray(values, np.float32) * 0.5
    want = expected(logits, options)
    got = frequencies(logits, options, 300)
    assert not got[want == 0].any()


def test_flat_and_single_logits() -> None:
    flat = np.zeros(8000, np.float32)
    seen = {Sampler(top_k=10, seed=seed).sample(flat) for seed in range(200)}
    assert seen == set(range(10))
    assert Sampler(do_sample=False).sample(flat) == 0
    assert Sampler(top_p=0.5, typical_p=0.5, top_k=3).sample(np.zeros(1, np.float32)) == 0


def test_greedy_takes_the_largest_that_is_not_banned() -> None:
    logits = logits_of(1)
    order = np.argsort(-logits)
    assert Sampler(do_sample=False).sample(logits) == order[0]
    assert Sampler(do_sample=False).sample(logits, order[:3].astype(np.int32)) == order[3]
    logits[order[0]] = np.nan  # never chosen
    assert Sampler(do_sample=False).sample(logits) == order[1]
    assert Sampler(seed=1, top_k=1).sample(logits) == order[1]


def test_no_choice_is_an_error() -> None:
    every = np.arange(VOCAB, dtype=np.int32)
    for logits, banned in ((logits_of(1), every), (np.full(3, -np.inf, np.float32), ids())):
        with pytest.raises(ValueError, match="at least one finite logit"):
            Sampler().sample(logits, banned)
        with pytest.raises(ValueError, match="at least one finite logit"):
            Sampler().log_probabilities(logits, banned)


def test_a_draw_is_a_function_of_seed_and_number() -> None:
    logits = [logits_of(i) for i in range(20)]

    def text(seed: int) -> list[int]:
        sampler = Sampler(seed=seed)
        return [sampler.sample(row) for row in logits]

    assert text(3) == text(3)
    assert len({tuple(text(seed)) for seed in range(5)}) == 5
    sampler = Sampler(seed=3)
    assert [sampler.sample(row) for row in logits[:10]] == text(3)[:10]
    fork = sampler.fork()
    assert [fork.sample(row) for row in logits[10:]] == [sampler.sample(row) for row in logits[10:]] == text(3)[10:]


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_of_a_batch_are_drawn_as_alone(threads: int) -> None:
    miaobi.set_num_threads(threads)
    rows = [logits_of(i) for i in range(9)]
    banned = [np.argsort(-row)[:i].astype(np.int32) for i, row in enumerate(rows)]

    def samplers() -> list[Any]:
        return [Sampler(seed=i, top_p=0.9, no_repeat_ngram_size=1) for i in range(9)]

    alone, together = samplers(), samplers()
    for _ in range(5):
        want = [sampler.sample(row, out) for sampler, row, out in zip(alone, rows, banned, strict=True)]
        assert sample_rows(together, rows, banned) == want
    assert sample_rows([], [], []) == []
    with pytest.raises(ValueError, match="at least one finite logit"):
        sample_rows(together[:1], [np.full(3, -np.inf, np.float32)], [ids()])
    with pytest.raises(ValueError, match="for each of 2 samplers"):
        sample_rows(together[:2], rows[:1], banned[:2])


# --- the history


def adjusted(sampler: Any, logits: np.ndarray) -> np.ndarray:
    """The logits after penalties, up to a constant that `other` does not change."""
    return np.asarray(sampler.log_probabilities(logits), np.float64)


def test_penalties_look_at_prompt_and_continuation() -> None:
    logits = logits_of(2)
    sampler = Sampler(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25, bias=[(9, 1.5), (999, 2.0)])
    sampler.accept(ids(1, 2, 2), written=False)
    sampler.accept(ids(2, 3, 3, 3))
    want = logits.astype(np.float64)
    want[9] += 1.5
    for token in (1, 2, 3):
        want[token] *= 1.5 if want[token] < 0 else 1 / 1.5
    want[2] -= 0.5 + 0.25
    want[3] -= 0.5 + 3 * 0.25
    np.testing.assert_allclose(adjusted(sampler, logits), np.log(softmax(want)), atol=1e-5)
    np.testing.assert_allclose(adjusted(sampler, logits), np.log(softmax(want)), atol=1e-5)  # nothing is left behind


@pytest.mark.parametrize(("window", "history"), [(2, 1000), (0, 128), (500, 128)])
def test_a_window_forgets(window: int, history: int) -> None:
    logits = logits_of(3)
    reach = min(window or history, history)
    sampler = Sampler(frequency_penalty=0.5, penalty_window=window, history=history)
    tokens = np.random.default_rng(4).integers(0, VOCAB, 1000).astype(np.int32)
    for token in tokens:
        sampler.accept(token[None])
    want = logits.astype(np.float64)
    np.subtract.at(want, tokens[-reach:], 0.5)
    np.testing.assert_allclose(adjusted(sampler, logits), np.log(softmax(want)), atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_comes_twice(size: int) -> None:
    logits = np.zeros(6, np.float32)
    sampler = Sampler(no_repeat_ngram_size=size, seed=5)
    written = [0, 1]
    sampler.accept(ids(*written), written=False)

    def write() -> None:
        for _ in range(1000):
            written.append(sampler.sample(logits))

    with pytest.raises(ValueError, match="at least one finite logit"):
        write()
    grams = [tuple(written[i : i + size]) for i in range(len(written) - size + 1)]
    assert len(grams) == len(set(grams))
    assert len(grams) >= 6


@pytest.mark.parametrize(
    ("block", "turns"), [([7], 24), ([1, 2], 12), ([1, 1, 2, 1], 6), (list(range(20)), 3), (list(range(128)), 3)]
)
def test_a_loop_is_seen_when_it_is_complete(block: list[int], turns: int) -> None:
    sampler = Sampler()
    sampler.accept(ids(*block * 5), written=False)  # a prompt is no loop
    sampler.accept(ids(200, 201, 203))
    tokens = block * turns
    for token in tokens[:-1]:
        sampler.accept(ids(token))
        assert not sampler.looping
    sampler.accept(ids(tokens[-1]))
    assert sampler.looping
    sampler.accept(ids(250))
    assert not sampler.looping


def test_what_does_not_repeat_is_no_loop() -> None:
    sampler = Sampler()
    for token in np.random.default_rng(0).integers(0, 12, 5000):
        sampler.accept(ids(token))
        assert not sampler.looping


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("typical_p", 0.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", float("inf")),
        ("penalty_window", -1),
        ("no_repeat_ngram_size", -1),
        ("history", 0),
    ],
)
def test_options_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Sampler(**{name: value})
    with pytest.raises(ValueError, match="finite biases"):
        Sampler(bias=[(1, float("nan"))])

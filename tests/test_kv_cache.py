# SPDX-License-Identifier: MIT
"""The pool of cached keys and values: the same logits in any pieces and any company, sharing, and its limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest

from miaobi import _core
from miaobi.model import GPT, GPTConfig

BLOCK = 32  # tokens by which the pool is handed out
POSITIONS = 100
VOCAB = 60


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(GPTConfig(VOCAB, POSITIONS, 48, 3, 4))
    oracle.random_parameters(model, seed=1, scale=0.15)
    return model


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, count)


def append(model: GPT, cache: Any, *pairs: tuple[int, np.ndarray]) -> np.ndarray:
    """One step that gives each sequence its tokens."""
    sequences, ids = zip(*pairs, strict=True)
    return model.forward_cached(cache, sequences, np.concatenate(ids), np.cumsum([0, *map(len, ids)]))


def alone(model: GPT, ids: np.ndarray) -> np.ndarray:
    """The logits after ids, from a cache of their own."""
    cache = model.new_cache(len(ids))
    return append(model, cache, (cache.add_sequence(), ids))[0]


def used(cache: Any) -> int:
    return int(cache.info()["used"])


def test_every_prefix_equals_the_full_forward(model: GPT) -> None:
    cache, ids = model.new_cache(POSITIONS), tokens(POSITIONS)
    sequence = cache.add_sequence()
    for n in range(1, POSITIONS + 1):
        logits = append(model, cache, (sequence, ids[n - 1 : n]))
        np.testing.assert_allclose(logits[0], model.forward(ids[None, :n])[0, -1], atol=1e-5, rtol=1e-5)
        assert cache.length(sequence) == n


CUTS = {
    "one by one": [1] * 70,
    "nearly at once": [69, 1],
    "around a block": [31, 1, 1, 37],
    "uneven": [2, 7, 1, 30, 5, 25],
    "prefill, then decode": [64, *[1] * 6],
}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
def test_pieces_do_not_matter(model: GPT, cuts: list[int]) -> None:
    cache, ids = model.new_cache(POSITIONS), tokens(70)
    sequence = cache.add_sequence()
    at = 0
    for count in cuts:
        logits = append(model, cache, (sequence, ids[at : at + count]))
        at += count
        oracle.assert_same_bits(logits[0], alone(model, ids[:at]))


def test_company_does_not_matter(model: GPT) -> None:
    """Prefill and decode of sequences of many lengths in one step: each gets what it gets alone."""
    cache = model.new_cache(1000)
    texts = {cache.add_sequence(): tokens(POSITIONS, seed) for seed in range(5)}
    lengths = dict.fromkeys(texts, 0)
    rng = np.random.default_rng(2)
    for _ in range(8):
        chosen = [int(s) for s in rng.permutation(list(texts))[: rng.integers(1, 6)]]
        counts = {s: int(rng.choice([1, 1, 5, 12])) for s in chosen}
        logits = append(model, cache, *[(s, texts[s][lengths[s] : lengths[s] + counts[s]]) for s in chosen])
        for row, s in zip(logits, chosen, strict=True):
            lengths[s] += counts[s]
            assert cache.length(s) == lengths[s]
            oracle.assert_same_bits(row, alone(model, texts[s][: lengths[s]]))
    assert max(lengths.values()) > BLOCK


def test_weights_may_change_between_steps(model: GPT) -> None:
    """Nothing of the weights is kept beside them."""
    other = GPT(model.config)
    cache, ids = other.new_cache(POSITIONS), tokens(9)
    append(other, cache, (cache.add_sequence(), ids))
    other.arena[...] = model.arena
    oracle.assert_same_bits(append(other, cache, (cache.add_sequence(), ids))[0], alone(model, ids))


@pytest.mark.parametrize("shared", [5, BLOCK - 1, BLOCK, 40])
def test_fork_shares_until_one_writes(model: GPT, shared: int) -> None:
    cache, prefix = model.new_cache(8 * BLOCK), tokens(shared)
    first = cache.add_sequence()
    append(model, cache, (first, prefix))
    before = used(cache)
    second, third = cache.fork(first), cache.fork(first)
    assert len({first, second, third}) == 3
    assert cache.length(second) == cache.length(third) == shared
    assert used(cache) == before

    texts = {s: np.concatenate([prefix, tokens(40, 10 + s)]) for s in (first, second, third)}
    append(model, cache, (second, texts[second][shared : shared + 1]))
    assert used(cache) == before + BLOCK  # a copy of the last block, or a new one where that is full
    for begin, end in ((shared + 1, shared + 2), (shared + 2, shared + 30)):
        start = {second: begin}
        got = append(model, cache, *[(s, texts[s][start.get(s, cache.length(s)) : end]) for s in texts])
        for row, s in zip(got, texts, strict=True):
            oracle.assert_same_bits(row, alone(model, texts[s][:end]))

    cache.free_sequence(first)
    cache.free_sequence(third)
    got = append(model, cache, (second, texts[second][shared + 30 : shared + 33]))
    oracle.assert_same_bits(got[0], alone(model, texts[second][: shared + 33]))


def test_truncated_fork_does_not_write_into_the_others_block(model: GPT) -> None:
    cache, ids = model.new_cache(4 * BLOCK), tokens(50)
    first = cache.add_sequence()
    append(model, cache, (first, ids[:40]))
    second = cache.fork(first)
    cache.truncate(second, 20)  # inside a block that is full and shared
    append(model, cache, (second, tokens(15, seed=3)))
    got = append(model, cache, (first, ids[40:]))
    oracle.assert_same_bits(got[0], alone(model, ids))


def test_truncate(model: GPT) -> None:
    cache, ids = model.new_cache(4 * BLOCK), tokens(90)
    sequence = cache.add_sequence()
    append(model, cache, (sequence, tokens(90, seed=9)))
    for keep, blocks in ((64, 2), (63, 2), (33, 2), (32, 1), (1, 1), (0, 0)):
        cache.truncate(sequence, keep)
        assert (cache.length(sequence), used(cache)) == (keep, blocks * BLOCK)
    append(model, cache, (sequence, ids))
    cache.truncate(sequence, 70)
    got = append(model, cache, (sequence, ids[70:]))
    oracle.assert_same_bits(got[0], alone(model, ids))


def test_sequences_come_and_go(model: GPT) -> None:
    cache = model.new_cache(40)
    assert cache.info() == {"capacity": 64, "used": 0, "bytes": 4 * 2 * 64 * 48 * 3}
    before = _core.allocated_bytes()
    for seed in range(20):
        sequence = cache.add_sequence()
        oracle.assert_same_bits(append(model, cache, (sequence, tokens(40, seed)))[0], alone(model, tokens(40, seed)))
        assert used(cache) == 64
        cache.free_sequence(sequence)
        assert used(cache) == 0
    assert _core.allocated_bytes() - before < 2**20
    keep = [cache.add_sequence() for _ in range(3)]
    append(model, cache, (keep[1], tokens(3)))
    cache.clear()
    assert used(cache) == 0
    for gone in keep:
        with pytest.raises(ValueError, match=f"there is no sequence {gone}"):
            cache.length(gone)


# --- limits


def state(cache: Any, *sequences: int) -> tuple[object, ...]:
    return (cache.info(), *[cache.length(s) for s in sequences])


def test_pool_exhausted_changes_nothing(model: GPT) -> None:
    cache, ids = model.new_cache(2 * BLOCK), tokens(64)
    first, second = cache.add_sequence(), cache.add_sequence()
    append(model, cache, (first, ids[:30]), (second, ids[:10]))
    before = state(cache, first, second)
    for pairs in ([(first, ids[30:64])], [(first, ids[30:31]), (second, ids[10:64])]):
        with pytest.raises(ValueError, match=r"\[kv_cache\] \d+ tokens of room are needed, 0 of 64 are free"):
            append(model, cache, *pairs)
        assert state(cache, first, second) == before
    got = append(model, cache, (first, ids[30:32]), (second, ids[10:32]))
    oracle.assert_same_bits(got[0], alone(model, ids[:32]))
    oracle.assert_same_bits(got[1], got[0])


def test_copy_on_write_needs_room(model: GPT) -> None:
    cache, ids = model.new_cache(BLOCK), tokens(20)
    first = cache.add_sequence()
    append(model, cache, (first, ids[:10]))
    second = cache.fork(first)
    with pytest.raises(ValueError, match="32 tokens of room are needed, 0 of 32 are free"):
        append(model, cache, (second, ids[10:11]))
    assert cache.length(second) == 10
    cache.free_sequence(first)  # now the block belongs to one alone
    oracle.assert_same_bits(append(model, cache, (second, ids[10:]))[0], alone(model, ids))


def test_past_the_context_changes_nothing(model: GPT) -> None:
    cache, ids = model.new_cache(10 * BLOCK), tokens(POSITIONS + 1)
    full, short = cache.add_sequence(), cache.add_sequence()
    append(model, cache, (full, ids[:POSITIONS]), (short, ids[:90]))
    before = state(cache, full, short)
    for pairs in ([(full, ids[:1])], [(short, ids[90:])], [(short, ids[90:91]), (full, ids[:1])]):
        with pytest.raises(ValueError, match="at most n_positions = 100 tokens, got 101"):
            append(model, cache, *pairs)
        assert state(cache, full, short) == before
    got = append(model, cache, (short, ids[90:POSITIONS]))
    oracle.assert_same_bits(got[0], alone(model, ids[:POSITIONS]))


def test_wrong_steps_change_nothing(model: GPT) -> None:
    cache, ids = model.new_cache(4 * BLOCK), tokens(5)
    sequence = cache.add_sequence()
    append(model, cache, (sequence, ids))
    before = state(cache, sequence)
    wrong: list[tuple[Any, Any, Any, str]] = [
        ([sequence], [VOCAB], [0, 1], r"ids in \[0, 60\), got 60"),
        ([sequence], [-1], [0, 1], "got -1"),
        ([sequence], [], [0, 0], "at least one token for sequence"),
        ([sequence + 1], [1], [0, 1], f"there is no sequence {sequence + 1}"),
        ([-1], [1], [0, 1], "there is no sequence -1"),
        ([sequence, sequence], [1, 1], [0, 1, 2], "is twice in one step"),
        ([sequence], [1, 1], [0, 1, 2], "expected 2 offsets for 1 sequences, got 3"),
        ([sequence], [1], [0, 2], "end at the number of tokens, 1, got 2"),
        ([sequence], [1], [1, 1], "start at 0"),
        ([sequence], [[1]], [0, 1], "expected flat ids"),
        ([sequence], [1.0], [0, 1], "ids to hold integers"),
    ]
    for sequences, step, offsets, message in wrong:
        with pytest.raises(ValueError, match=message):
            model.forward_cached(cache, sequences, step, offsets)
        assert state(cache, sequence) == before
    for call in (lambda: cache.truncate(sequence, 6), lambda: cache.truncate(sequence, -1)):
        with pytest.raises(ValueError, match="expected a length from 0 to 5"):
            call()
    for call in (cache.fork, cache.free_sequence, cache.length):
        with pytest.raises(ValueError, match="there is no sequence 9"):
            call(9)
    assert state(cache, sequence) == before
    assert model.forward_cached(cache, [], [], [0]).shape == (0, VOCAB)


def test_cache_of_another_model(model: GPT) -> None:
    other = GPT(GPTConfig(VOCAB, POSITIONS, 48, 2, 4))
    cache = other.new_cache(BLOCK)
    with pytest.raises(ValueError, match="the cache was made for another model"):
        append(model, cache, (cache.add_sequence(), tokens(3)))
    for capacity in (0, -5):
        with pytest.raises(ValueError, match=f"positive.*capacity.*{capacity}"):
            model.new_cache(capacity)


@pytest.mark.usefixtures("builtin_backend")
def test_packed_weights_give_the_same_bits(model: GPT) -> None:
    ids = tokens(80, seed=3)
    plain = alone(model, ids)
    model.pack()
    try:
        assert model.packed_as == "float32"
        np.testing.assert_array_equal(alone(model, ids), plain)
        model.pack("bf16")
        rounded = alone(model, ids)
        assert not np.array_equal(rounded, plain)
        np.testing.assert_allclose(rounded, plain, atol=0.05 * np.abs(plain).max())
    finally:
        model.unpack()
    np.testing.assert_array_equal(alone(model, ids), plain)


def test_gradients_drop_packed_weights() -> None:
    model = GPT(GPTConfig(VOCAB, POSITIONS, 16, 1, 2))
    model.pack()
    model.loss_backward(tokens(8)[None], tokens(8, seed=1)[None])
    assert model.packed_as is None


@pytest.mark.usefixtures("builtin_backend")
def test_bf16_cache_takes_half_and_does_not_depend_on_the_cut(model: GPT) -> None:
    ids = tokens(70, seed=4)
    found = []
    for cut in CUTS.values():
        cache = model.new_cache(POSITIONS, "bf16")
        sequence = cache.add_sequence()
        for part in np.split(ids, np.cumsum(cut)[:-1]):
            logits = append(model, cache, (sequence, part))[0]
        found.append(logits)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    assert cache.info()["bytes"] * 2 == model.new_cache(POSITIONS).info()["bytes"]
    np.testing.assert_allclose(found[0], alone(model, ids), atol=0.05 * np.abs(found[0]).max())
    with pytest.raises(ValueError, match=r'"float32" or "bf16", got "int8"'):
        model.new_cache(8, "int8")


def test_a_fork_of_a_bf16_cache_copies_its_last_block(model: GPT) -> None:
    ids = tokens(40, seed=5)
    cache = model.new_cache(3 * BLOCK, "bf16")
    first = cache.add_sequence()
    append(model, cache, (first, ids))
    second = cache.fork(first)
    append(model, cache, (second, tokens(5, seed=6)))
    alone_cache = model.new_cache(POSITIONS, "bf16")
    sequence = alone_cache.add_sequence()
    append(model, alone_cache, (sequence, ids))
    np.testing.assert_array_equal(
        append(model, cache, (first, ids[:3])), append(model, alone_cache, (sequence, ids[:3]))
    )

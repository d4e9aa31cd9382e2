# SPDX-License-Identifier: MIT
"""Weights that know the bigrams of the text: what they predict, how they come about, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from train_helpers import TEXTS, make_model, make_tokenizer

import miaobi
from miaobi.batches import TokenData
from miaobi.bigram_init import _PRIOR, _TOKENS_AT_ONCE, _count, _factors, _svd, bigram_init
from miaobi.model import GPT, GPTConfig

BOS, EOS = 2, 3


def markov_text(vocab: int, documents: int, length: int, seed: int = 0) -> tuple[TokenData, Any]:
    """Documents of a chain in which few tokens follow each one, and its matrix of probabilities."""
    rng = np.random.default_rng(seed)
    chain = rng.dirichlet(np.full(vocab, 0.03), vocab)
    chain[:, [BOS, EOS]] = 0
    chain /= chain.sum(axis=1, keepdims=True)
    texts = []
    for _ in range(documents):
        ids = [BOS]
        for _ in range(length):
            ids.append(int(rng.choice(vocab, p=chain[ids[-1]])))
        texts.append([*ids, EOS])
    return TokenData.from_ids(texts, [length] * documents), chain


def loss_of(model: GPT, data: TokenData) -> float:
    """Nats per token over whole documents."""
    total = sum(
        model.loss(document.ids[None, :-1], document.ids[None, 1:]) * (len(document.ids) - 1)
        for document in data.documents()
    )
    return total / data.predictions


def model_of(vocab: int, width: int = 64, **changes: Any) -> GPT:
    shape = {"n_positions": 64, "n_embd": width, "n_layer": 2, "n_head": 4, **changes}
    return GPT(GPTConfig(vocab_size=vocab, **shape), seed=3)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_the_model_predicts_by_the_bigrams_before_its_first_step(activation: str) -> None:
    """Far better than the frequencies of tokens, and not far from the counts themselves."""
    vocab = 60
    data, _ = markov_text(vocab, 400, 40)
    pairs, counts = _count(data, vocab)
    share = (counts + 0.5) / (counts.sum() + 0.5 * vocab)
    first = np.bincount(pairs.first, pairs.times, vocab)
    smoothed = (pairs.times + _PRIOR * share[pairs.second]) / (first[pairs.first] + _PRIOR)
    by_bigrams = -np.average(np.log(smoothed), weights=pairs.times)
    by_frequency = -np.average(np.log(share), weights=np.maximum(counts, 0))
    model = model_of(vocab, activation_function=activation)
    assert loss_of(model, data) > by_frequency
    bigram_init(model, data)
    loss = loss_of(model, data)
    assert by_bigrams < by_frequency - 1
    assert by_bigrams - 0.05 < loss < by_bigrams + 0.3 * (by_frequency - by_bigrams)


def test_all_of_it_can_be_trained() -> None:
    """No parameter of a block is cut off for good: after some steps each one has a gradient."""
    data, _ = markov_text(50, 60, 30)
    model = model_of(50)
    bigram_init(model, data)
    optimizer = miaobi.AdamW(model, lr=1e-3)
    first = loss_of(model, data)
    for document in list(data.documents())[:20]:
        model.zero_grad()
        model.loss_backward(document.ids[None, :-1], document.ids[None, 1:])
        optimizer.step(max_grad_norm=1.0)
    assert all(gradient.any() for gradient in model.gradients().values())
    assert loss_of(model, data) < first


def test_pairs_are_counted_within_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [[2, 5, 6, 5, 6, 3], [2, 6, 3], [2, 5, 6, 3]]
    data = TokenData.from_ids(documents, [4, 1, 2])
    want = {(2, 5): 2, (2, 6): 1, (5, 6): 3, (6, 5): 1, (6, 3): 3}
    for at_once in (_TOKENS_AT_ONCE, 1, 2, 3, 5):
        monkeypatch.setattr("miaobi.bigram_init._TOKENS_AT_ONCE", at_once)
        monkeypatch.setattr("miaobi.bigram_init._PARTS", 100)
        pairs, counts = _count(data, 7)
        found = dict(zip(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True), pairs.times, strict=True))
        assert found == want
        assert counts.tolist() == [0, 0, 0, 3, 0, 3, 4]


def test_of_a_long_text_a_part_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = markov_text(30, 100, 20)
    whole = _count(data, 30)[1].sum()
    assert whole == data.predictions
    monkeypatch.setattr("miaobi.bigram_init._TOKENS_AT_ONCE", 20)
    monkeypatch.setattr("miaobi.bigram_init._PARTS", 10)
    assert 0.07 * whole < _count(data, 30)[1].sum() < 0.1 * whole


@pytest.mark.parametrize("dense", [1 << 23, 130, 1])
def test_the_factors_are_those_of_the_svd(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miaobi.bigram_init._DENSE", dense)
    rng = np.random.default_rng(1)
    matrix = (rng.standard_normal((40, 5)) @ rng.standard_normal((5, 40))).astype(np.float32)
    matrix[rng.random((40, 40)) < 0.5] = 0
    first, second = np.nonzero(matrix)
    data, _ = markov_text(40, 50, 30)
    pairs = _count(data, 40)[0]._replace(first=first, second=second)
    u, s, v = _svd(pairs, matrix[first, second], 40, 12)
    exact = np.linalg.svd(matrix.astype(np.float64))
    np.testing.assert_allclose(s, exact[1][:12], rtol=1e-4)
    best = exact[0][:, :12] * exact[1][:12] @ exact[2][:12]
    np.testing.assert_allclose(u * s @ v.T, best, atol=1e-3 * np.abs(matrix).max())


def test_tied_factors_give_back_the_matrix() -> None:
    """With room for both sides, E and T lose nothing; with less, most is kept."""
    vocab = 40
    data, _ = markov_text(vocab, 300, 40)
    pairs, counts = _count(data, vocab)
    share = (counts + 0.5) / (counts.sum() + 0.5 * vocab)
    exact = np.zeros((vocab, vocab))
    exact[pairs.first, pairs.second] = np.log1p(pairs.times / (_PRIOR * share[pairs.second]))
    e, t = _factors(pairs, counts, share, vocab)
    np.testing.assert_allclose(t @ e.T, exact, atol=1e-3 * exact.max())
    e, t = _factors(pairs, counts, share, vocab // 2)
    assert np.linalg.norm(t @ e.T - exact) < 0.6 * np.linalg.norm(exact)


def test_any_number_of_threads_gives_the_same_weights() -> None:
    data, _ = markov_text(300, 40, 40)
    before = miaobi.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            miaobi.set_num_threads(threads)
            model = model_of(300)
            bigram_init(model, data)
            found.append(model.arena.tobytes())
    finally:
        miaobi.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("width", [4, 16, 64])
@pytest.mark.parametrize("inner", [1, 8, 256])
def test_small_texts_and_odd_shapes(width: int, inner: int) -> None:
    """A vocabulary larger or smaller than the model is wide, tokens that never come, an MLP of one unit."""
    tokenizer = make_tokenizer()
    data = TokenData.from_texts(TEXTS, tokenizer)
    model = make_model(tokenizer, n_embd=width, n_inner=inner)
    untrained = loss_of_pieces(model, data)
    bigram_init(model, data)
    assert np.isfinite(model.arena).all()
    assert loss_of_pieces(model, data) < untrained
    one = TokenData.from_ids([[BOS, EOS]], [0])
    bigram_init(model, one)
    assert np.isfinite(model.arena).all()


def loss_of_pieces(model: GPT, data: TokenData) -> float:
    context = model.config.n_positions
    ids = [document.ids[: context + 1] for document in data.documents()]
    return float(np.mean([model.loss(x[None, :-1], x[None, 1:]) for x in ids]))


def test_wrong_models_and_tokens() -> None:
    data, _ = markov_text(50, 5, 10)
    with pytest.raises(ValueError, match="tie_word_embeddings=False"):
        bigram_init(model_of(50, tie_word_embeddings=False), data)
    with pytest.raises(ValueError, match="got n_embd=2"):
        bigram_init(model_of(50, width=2, n_head=1), data)
    with pytest.raises(ValueError, match="tokens of a vocabulary of 20"):
        bigram_init(model_of(20), data)

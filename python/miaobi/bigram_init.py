# SPDX-License-Identifier: MIT
"""Weights to begin with that know which token follows which: in closed form, from the counts of pairs in the text.

Training from random weights spends its first epochs on the frequencies of tokens and of pairs. Both can be counted.

The target. Of C_ab pairs "b after a", C_a of them with a, and shares p_b of each token, the bigram model with a
Dirichlet prior (MacKay and Peto 1995) is p(b|a) = (C_ab + k p_b) / (C_a + k). A softmax does not see what is the same
for all b, so its logits are log p_b + L_ab with L_ab = log(1 + C_ab / (k p_b)): 0 for each pair that is never seen.

The factors. L, with rows and columns weighted by how often the tokens come, has a truncated SVD, found by randomized
subspace iteration (Halko, Martinsson and Tropp 2011): L ~ A B^T. Tied embeddings are both sides of that product. E
takes the leading directions of [a A, B], in which B has the larger say, so that L ~ T E^T with T in the same space.

The network. Two coordinates of the residual stream are set aside. Coordinate 0 of token b is (log p_b - mean) / s, and
the final norm gives s there whatever comes in: the logits have log p_b. E is in the others, and no block adds anything
to it but the last MLP. That maps LayerNorm(E_a) to T_a - E_a, a least-squares fit: GELU(x) - GELU(-x) = x (and ReLU
likewise), so 2 C units compute a linear map exactly. Its bias pushes coordinates 0 and 1 apart by enough that the final
norm divides all tokens by nearly the same. All of it is ordinary weights, and all of it is trained.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from miaobi import ops
from miaobi.batches import TokenData
from miaobi.model import GPT

__all__ = ["bigram_init", "bigram_init_memory"]

Floats = NDArray[np.float32]

_RESERVED: Final = 2  # coordinates of the residual stream for the frequencies and for the final norm
_PRIOR: Final = 200.0  # k above: on poems and on prose, 100 to 400 are within 1% of the best held-out loss
_UNIGRAM_SCALE: Final = 16.0  # s above: coordinate 0 is then as large as the others are, a few tenths
_RAREST: Final = -14.0  # log p_b of a token that is never seen, below that of the most frequent one
_WEIGHT_POWER: Final = 0.25  # of the counts: 0 spends the rank on rare tokens, 1/2 on the most frequent few
_WEIGHT_FLOOR: Final = 20.0  # counts below are noise, weighted alike
_INPUT_SHARE: Final = 0.3  # a above: E is read as input through a map that is learnt, as output directly
_OVERSAMPLING: Final = 24  # directions beside those wanted, and rounds: errors of the SVD are then far below
_ROUNDS: Final = 2  #       what the truncation leaves out
_RIDGE: Final = 1e-4  # of the map's least squares, relative
_DENSE: Final = 1 << 23  # elements of L at a time, 32 MB
_TOKENS_AT_ONCE: Final = 1 << 20
_PARTS: Final = 16  # of the text are counted at most, evenly spread


class _Pairs(NamedTuple):
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    times: NDArray[np.int64]


def bigram_init(model: GPT, data: TokenData) -> None:
    """Replaces the weights of a new model by such that predict each token of `data` from the one before it.

    Changes the token embeddings, the final norm, and all projections into the residual stream; positions, attention's
    queries, keys and values, and the inner weights of other MLPs stay as they are. Of texts of more than 16 million
    tokens so many are counted. Takes V^2 C multiply-adds a few times, about 40 MB, and 16 bytes for each pair. The
    result does not depend on the number of miaobi's threads; from one NumPy to another its last bits may differ.

    Raises ValueError for a model without tied embeddings, and for tokens outside the vocabulary.
    """
    config, parameters = model.config, model.parameters()
    if not config.tie_word_embeddings or config.n_embd < 2 * _RESERVED:
        raise ValueError(
            f"expected a model with tied embeddings of {2 * _RESERVED} coordinates or more, got "
            f"n_embd={config.n_embd}, tie_word_embeddings={config.tie_word_embeddings}"
        )
    vocab, width = config.vocab_size, config.n_embd
    pairs, counts = _count(data, vocab)
    log_share = np.log((counts + 0.5) / (counts.sum() + 0.5 * vocab))
    level = np.maximum(log_share, log_share.max() + _RAREST) - np.average(log_share, weights=np.exp(log_share))

    embedding, norm, shift = (parameters[f"transformer.{name}"] for name in ("wte.weight", "ln_f.weight", "ln_f.bias"))
    outputs, inputs = _factors(pairs, counts, np.exp(log_share), min(width - _RESERVED, vocab))
    embedding[:, 0] = level / _UNIGRAM_SCALE
    embedding[:, 1] = 0
    embedding[:, _RESERVED : _RESERVED + outputs.shape[1]] += outputs
    norm[:_RESERVED] = 0
    shift[0] = _UNIGRAM_SCALE
    for name, value in parameters.items():
        if ".c_proj." in name:
            value[...] = 0

    # With these two coordinates the final norm divides by nearly 1 / sqrt(1 + |T_a|^2 / C).
    wanted = -embedding.astype(np.float64)
    wanted[:, _RESERVED : _RESERVED + inputs.shape[1]] += inputs
    wanted[:, :_RESERVED] += np.array([1.0, -1.0]) * np.sqrt(width / 2)
    hidden = ops.layer_norm(
        embedding + parameters["transformer.wpe.weight"].mean(axis=0), np.ones(width), np.zeros(width)
    )
    weights, bias = _least_squares(hidden, wanted, np.sqrt(counts + 5.0))
    _set_linear(model, config.n_layer - 1, weights, bias)


def bigram_init_memory(vocab_size: int, width: int, tokens: int) -> float:
    """Bytes that `bigram_init` takes at most beside the model, to a fifth or so: it is over before training begins."""
    pairs = min(tokens, _PARTS * _TOKENS_AT_ONCE) / 4  # of tokens that come again and again
    columns = 8.0 * vocab_size * (width + _OVERSAMPLING)  # one set of directions in float64
    counting, factors = 103.0 * pairs, 36.0 * pairs + max(4.0 * _DENSE + 1.5 * columns, 5.0 * columns)
    return max(1.05 * counting, 3e7 + factors)  # 3e7: areas of NumPy's BLAS and of ours


def _count(data: TokenData, vocab: int) -> tuple[_Pairs, NDArray[np.int64]]:
    """The pairs within documents, ascending, and how often each token is one that is predicted."""
    tokens = len(data.tokens)
    chunks = -(-tokens // _TOKENS_AT_ONCE)
    keys, totals = np.empty(0, np.int64), np.empty(0, np.int64)
    for chunk in sorted({i * chunks // _PARTS for i in range(_PARTS)}):
        begin = chunk * _TOKENS_AT_ONCE
        part = np.asarray(data.tokens[begin : begin + _TOKENS_AT_ONCE + 1], np.int64)
        if part.min() < 0 or part.max() >= vocab:
            raise ValueError(f"expected tokens of a vocabulary of {vocab}, got {part.min()} to {part.max()}")
        inside = np.ones(max(len(part) - 1, 0), np.bool_)
        low, high = np.searchsorted(data.starts, [begin + 1, begin + len(part)])
        inside[data.starts[low:high] - begin - 1] = False  # from the end of a document to the next one
        found, count = np.unique((part[:-1] * vocab + part[1:])[inside], return_counts=True)
        merged, place = np.unique(np.concatenate([keys, found]), return_inverse=True)
        totals = np.bincount(place, np.concatenate([totals, count]), len(merged)).astype(np.int64)
        keys = merged
    pairs = _Pairs(keys // vocab, keys % vocab, totals)
    return pairs, np.bincount(pairs.second, totals, vocab).astype(np.int64)


def _factors(pairs: _Pairs, counts: NDArray[np.int64], share: NDArray[np.float64], rank: int) -> tuple[Floats, Floats]:
    """E and T, both (V, rank), with L ~ T E^T."""
    vocab = len(counts)
    first = np.bincount(pairs.first, pairs.times, vocab)
    rows, columns = ((n + _WEIGHT_FLOOR) ** _WEIGHT_POWER for n in (first, counts))
    rows, columns = rows / rows.max(), columns / columns.max()
    values = np.log1p(pairs.times / (_PRIOR * share[pairs.second])) * rows[pairs.first] * columns[pairs.second]
    left, scale, right = _svd(pairs, values.astype(np.float32), vocab, rank)
    left *= _INPUT_SHARE * np.sqrt(scale)  # in place, and no more copies than needed: they are what takes memory
    right *= np.sqrt(scale)
    left *= (columns / rows)[:, None]
    both = np.concatenate([left, right], axis=1)
    del left, right
    directions = np.linalg.eigh(both.T @ both)[1][:, ::-1][:, :rank]
    both /= columns[:, None]
    inputs = both[:, :rank] @ (directions[rank:] / _INPUT_SHARE)
    return (both @ directions).astype(np.float32), inputs.astype(np.float32)


def _svd(
    pairs: _Pairs, values: Floats, vocab: int, rank: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """U (V, rank), S, V (V, rank) of the sparse matrix with `values` at `pairs`."""
    size = min(rank + _OVERSAMPLING, vocab)
    basis = np.random.default_rng(0).standard_normal((vocab, size)).astype(np.float32)
    step = max(_DENSE // vocab, 1)
    bounds = np.searchsorted(pairs.first, np.arange(0, vocab + step, step))

    def multiply(basis: Floats, back: bool) -> Floats:
        """W basis, or W^T W basis: both sides of one block of rows while it is there."""
        result = np.zeros((vocab, size), np.float32)
        room = np.empty((min(step, vocab), vocab), np.float32)
        for i, (low, high) in enumerate(pairwise(bounds.tolist())):
            begin = i * step
            dense = room[: vocab - begin]
            dense[...] = 0
            dense[pairs.first[low:high] - begin, pairs.second[low:high]] = values[low:high]
            product = ops.matmul(dense, basis)
            if back:
                result += ops.matmul(dense, product, transpose_a=True)
            else:
                result[begin : begin + len(dense)] = product
        return result

    for _ in range(_ROUNDS):
        basis = _orthonormal(multiply(_orthonormal(basis), back=True))
    product = multiply(basis, back=False).astype(np.float64)
    squares, turn = np.linalg.eigh(product.T @ product)
    squares, turn = squares[::-1][:rank], turn[:, ::-1][:, :rank]
    scale = np.sqrt(np.maximum(squares, 1e-12 * max(squares[0], 1e-12)))
    return product @ turn / scale, scale, basis @ turn


def _orthonormal(x: Floats) -> Floats:
    """An orthonormal basis of the columns' space."""
    basis: Floats = np.linalg.qr(x.astype(np.float64))[0].astype(np.float32)
    return basis


def _least_squares(
    x: Floats, y: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The matrix and bias with x matrix + bias ~ y, rows weighted."""
    scaled = np.concatenate([x, np.ones((len(x), 1))], axis=1) * (weight / weight.mean())[:, None]
    gram = scaled.T @ scaled
    gram[np.diag_indices_from(gram)] += _RIDGE * len(x)
    solution = np.linalg.solve(gram, scaled.T @ (y * (weight / weight.mean())[:, None]))
    return solution[:-1], solution[-1]


def _set_linear(model: GPT, layer: int, weights: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
    """Has the MLP of a layer compute x weights + bias, as well as its inner size allows; other units stay idle."""
    parameters = model.parameters()
    inner, outer = (parameters[f"transformer.h.{layer}.mlp.{name}.weight"] for name in ("c_fc", "c_proj"))
    left, scale, right = np.linalg.svd(weights)
    n = min(len(scale), inner.shape[1] // 2)
    inner[:, :n], inner[:, n : 2 * n] = left[:, :n], -left[:, :n]
    outer[:n] = scale[:n, None] * right[:n]
    outer[n : 2 * n] = -outer[:n]
    parameters[f"transformer.h.{layer}.mlp.c_proj.bias"][...] = bias

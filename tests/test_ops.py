# SPDX-License-Identifier: MIT
"""The stateless ops: against the formulas in double precision, at empty and odd shapes, and on wrong input."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import oracle
import pytest

import miaobi
from miaobi import _core, ops

U = 2.0**-24  # half a unit in the last place of 1.0f
SIZES = [(1, 1, 1), (1, 7, 5), (2, 3, 65), (5, 33, 2), (31, 1, 32), (33, 67, 17), (97, 130, 64)]
TRANSPOSES = list(itertools.product([False, True], repeat=2))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- matmul


@pytest.mark.parametrize(("transpose_a", "transpose_b"), TRANSPOSES)
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_matmul(m: int, n: int, k: int, transpose_a: bool, transpose_b: bool) -> None:
    rng = np.random.default_rng(m * n * k)

    def stored(x: np.ndarray, transposed: bool) -> np.ndarray:
        return np.ascontiguousarray(x.T) if transposed else x

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        got = ops.matmul(
            stored(a, transpose_a), stored(b, transpose_b), transpose_a=transpose_a, transpose_b=transpose_b
        )
        assert got.dtype == np.float32
        assert got.flags.c_contiguous
        return got

    # Sums of small integers are exact in float32 in any order.
    a, b = rng.integers(-8, 9, (m, k)), rng.integers(-8, 9, (k, n))
    np.testing.assert_array_equal(product(a.astype(np.float32), b.astype(np.float32)), a @ b)
    # Otherwise each element keeps the bound of a sum of K rounded products (Higham 2002, 3.1).
    a, b = random(m, k, seed=1), random(k, n, seed=2)
    exact, size = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    assert np.all(np.abs(product(a, b) - exact) <= (k + 2) * U / (1 - (k + 2) * U) * size)


@pytest.mark.parametrize(("m", "n", "k"), [(0, 3, 4), (3, 0, 4), (0, 0, 0), (3, 4, 0)])
def test_matmul_of_nothing(m: int, n: int, k: int) -> None:
    np.testing.assert_array_equal(ops.matmul(np.ones((m, k)), np.ones((k, n))), np.zeros((m, n)))


def test_matmul_takes_what_a_numpy_user_passes() -> None:
    a, b = random(6, 4), random(4, 9, seed=1)
    want = ops.matmul(a, b)
    wide = np.repeat(a, 2, axis=1)
    for same in (a.astype(np.float64), np.asfortranarray(a), wide[:, ::2], a.astype(">f4"), a.tolist()):
        oracle.assert_same_bits(ops.matmul(same, b), want)
    np.testing.assert_array_equal(ops.matmul([[True, False]], [[2], [3]]), [[2]])


def test_matmul_into_an_array() -> None:
    a, b = random(6, 4), random(4, 9, seed=1)
    out = np.full((6, 9), np.nan, np.float32)
    got = ops.matmul(a, b, out=out)
    assert np.shares_memory(got, out)
    oracle.assert_same_bits(out, ops.matmul(a, b))
    square = random(4, 4)
    frozen = np.zeros((4, 4), np.float32)
    frozen.flags.writeable = False
    for wrong in (random(6, 8), random(9, 6).T, np.zeros((6, 9)), square, frozen):
        before = wrong.copy()
        with pytest.raises(ValueError, match="expected out"):
            ops.matmul(square, square, out=wrong)
        np.testing.assert_array_equal(wrong, before)


def test_matmul_passes_nan_and_infinity_on() -> None:
    a = np.ones((2, 3), np.float32)
    a[0, 1], a[1, 1] = np.nan, np.inf
    got = ops.matmul(a, np.ones((3, 20)))
    assert np.isnan(got[0]).all()
    assert np.isposinf(got[1]).all()


def test_bf16_precision_rounds_the_operands() -> None:
    a, b = random(9, 40), random(40, 19, seed=1)

    def rounded(x: np.ndarray) -> np.ndarray:  # to the nearest bfloat16, ties to even
        bits = x.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)

    miaobi.set_matmul_precision("bf16")
    got = ops.matmul(a, b)
    miaobi.set_matmul_precision("highest")
    assert np.any(got != ops.matmul(a, b))
    exact, size = rounded(a).astype(np.float64) @ rounded(b), np.abs(a).astype(np.float64) @ np.abs(b)
    assert np.all(np.abs(got - exact) <= 43 * U * size)


# --- row by row


@pytest.mark.parametrize("columns", [1, 2, 7, 8, 9, 31, 32, 33, 257])
def test_layer_norm(columns: int) -> None:
    x = 3 * random(5, columns) + 1
    gamma, beta = random(columns, seed=1), random(columns, seed=2)
    got = ops.layer_norm(x, gamma, beta)
    # A row of one column is its own mean: exactly beta.
    oracle.assert_close(got, oracle.layer_norm(x.astype(np.float64), gamma, beta), 16)
    oracle.assert_same_bits(ops.layer_norm(x.reshape(5, 1, columns), gamma, beta), got[:, None])
    oracle.assert_same_bits(ops.layer_norm(x[3], gamma, beta), got[3])
    oracle.assert_close(
        ops.layer_norm(x, gamma, beta, eps=0.5), oracle.layer_norm(x.astype(np.float64), gamma, beta, 0.5), 16
    )


def test_layer_norm_far_from_zero() -> None:
    """Two passes: the variance is not the difference of two large squares."""
    x = random(4, 64).astype(np.float64) + 1000
    stored = x.astype(np.float32)
    want = oracle.layer_norm(stored.astype(np.float64), np.ones(64), np.zeros(64))
    oracle.assert_close(ops.layer_norm(stored, np.ones(64), np.zeros(64)), want, 1000)


def test_gelu() -> None:
    x = np.concatenate([np.linspace(-12, 12, 2001), [0.0, -0.0, 1e-30, 1e30, -1e30]]).astype(np.float32)
    got = ops.gelu(x)
    want = oracle.gelu(np.clip(x.astype(np.float64), -100, None))
    assert np.all(np.abs(got - want) <= 1e-6 + 1e-6 * np.abs(x))
    assert ops.gelu(3.0).shape == ()
    assert ops.gelu(np.zeros((2, 0, 3))).shape == (2, 0, 3)
    np.testing.assert_array_equal(ops.gelu([np.inf, -np.inf])[:1], [np.inf])
    assert np.isnan(ops.gelu([np.nan])).all()


@pytest.mark.parametrize("columns", [1, 5, 8, 33, 1000])
def test_softmax(columns: int) -> None:
    x = 5 * random(3, 4, columns)
    got = ops.softmax(x)
    oracle.assert_close(got, oracle.softmax(x.astype(np.float64)), 32)
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-6)
    # Only differences count, however large the values are.
    oracle.assert_close(ops.softmax(np.round(x) + 2.0**20), oracle.softmax(np.round(x).astype(np.float64)), 32)


def test_softmax_of_masked_rows() -> None:
    got = ops.softmax([[0.0, -np.inf, 0.0], [1e4, -1e4, -1e4]])
    np.testing.assert_array_equal(got, [[0.5, 0, 0.5], [1, 0, 0]])
    assert ops.softmax(np.zeros((3, 0))).shape == (3, 0)
    assert ops.softmax(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("vocab", [1, 2, 9, 100, 1003])
def test_cross_entropy(vocab: int) -> None:
    logits = 4 * random(2, 6, vocab)
    targets = np.random.default_rng(1).integers(0, vocab, (2, 6))
    targets[0, 1] = targets[1, 5] = -100
    want = oracle.token_losses(logits.astype(np.float64), targets).sum() / 10
    assert ops.cross_entropy(logits, targets) == pytest.approx(want, rel=1e-6, abs=1e-6)
    logits[0, 1] = 1e5  # not scored, so it does not matter
    assert ops.cross_entropy(logits, targets) == pytest.approx(want, rel=1e-6, abs=1e-6)
    assert ops.cross_entropy(np.zeros(vocab), 0) == pytest.approx(np.log(vocab), abs=1e-6)


# --- attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "length", "size"), [(1, 1, 1, 1), (2, 3, 7, 5), (1, 2, 33, 8), (2, 1, 97, 16), (1, 1, 200, 3)]
)
def test_attention(batch: int, heads: int, length: int, size: int, causal: bool) -> None:
    q, k, v = (random(batch, heads, length, size, seed=s) for s in range(3))
    got = ops.attention(3 * q, k, v, causal=causal)
    want = oracle.attention(3 * q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), causal)
    oracle.assert_close(got, want, 40)


def test_attention_does_not_see_the_future() -> None:
    q, k, v = (random(1, 2, 50, 8, seed=s) for s in range(3))
    want = ops.attention(q, k, v)
    k[:, :, 30:], v[:, :, 30:] = -7, 1e30  # no NaN: a weight of 0 times NaN is NaN, as in PyTorch
    oracle.assert_same_bits(ops.attention(q, k, v)[:, :, :30], want[:, :, :30])


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_attention_of_nothing(shape: tuple[int, ...]) -> None:
    assert ops.attention(np.zeros(shape), np.zeros(shape), np.zeros(shape)).shape == shape


def test_attention_backward() -> None:
    batch, heads, length, size = 2, 2, 9, 8
    q, k, v, dy = (random(batch, heads, length, size, seed=s) for s in range(4))

    def flat(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(batch * length, heads * size)

    offsets = np.arange(batch + 1) * length
    inputs = [flat(x) for x in (q, k, v)]
    o, lse = _core.attention(*inputs, offsets, heads, True)
    got = _core.attention_backward(flat(dy), *inputs, o, lse, offsets, heads, True)
    for i in range(3):

        def loss(x: np.ndarray, i: int = i) -> Any:
            parts = [q, k, v]
            parts[i] = x
            return (oracle.attention(*parts) * dy.astype(np.float64)).sum()

        oracle.assert_close(got[i], flat(oracle.gradient(loss, [q, k, v][i].astype(np.float64))), 60)


LONG_ATTENTION = """
import numpy as np
import miaobi
from miaobi import _core
from miaobi.peak_memory import peak_memory as peak

T, D = 8192, 32
miaobi.set_num_threads(2)
rng = np.random.default_rng(0)
q, k, v, dy = (rng.standard_normal((T, D), dtype=np.float32) for _ in range(4))
_core.attention(q[:9], k[:9], v[:9], np.array([0, 9]), 1, True)
before = peak()
o, lse = _core.attention(q, k, v, np.array([0, T]), 1, True)
dq, dk, dv = _core.attention_backward(dy, q, k, v, o, lse, np.array([0, T]), 1, True)
took = peak() - before
p = np.exp(k.astype(float) @ q[-1] / D**0.5)  # the last query, which sees all keys
p /= p.sum()
ds = p * (v @ dy[-1] - o[-1] @ dy[-1])
assert np.abs(o[-1] - p @ v).max() < 1e-5, o[-1]
assert np.abs(dq[-1] - ds @ k / D**0.5).max() < 1e-5, dq[-1]
print(took)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_long_attention_takes_memory_linear_in_its_length() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LONG_ATTENTION], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    # Its four results take 4 MB, the working copies of two threads some more; T x T numbers would be 256 MB.
    assert int(done.stdout) < 24 << 20


# --- wrong input

ONE = np.ones((2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.matmul(np.ones((2, 3)), np.ones((2, 3))), r"\[matmul\].*\(2, 3\) x \(2, 3\)"),
        (lambda: ops.matmul(np.ones((2, 3)), np.ones((3, 2)), transpose_a=True), r"\(3, 2\) x \(3, 2\)"),
        (lambda: ops.matmul([1, 2], [3, 4]), "expected a with two dimensions, got 1"),
        (lambda: ops.matmul(ONE, 2.0), "expected b with two dimensions, got 0"),
        (lambda: ops.layer_norm(ONE, [1, 1, 1], [0, 0]), "expected gamma and beta with 2 elements, got 3 and 2"),
        (lambda: ops.layer_norm(ONE, [[1, 1]], [0, 0]), "expected gamma and beta with 2 elements"),
        (lambda: ops.layer_norm(ONE, [1, 1], [0, 0], eps=-1), "expected eps > 0, got -1"),
        (lambda: ops.layer_norm(np.ones((2, 0)), [], []), "layer_norm"),
        (lambda: ops.layer_norm(1.0, [1], [0]), "expected x with at least one dimension, got a number"),
        (lambda: ops.softmax(1.0), "expected x with at least one dimension, got a number"),
        (lambda: ops.cross_entropy(ONE, [0]), r"expected targets of shape \(2,\), got \(1,\)"),
        (lambda: ops.cross_entropy(ONE, [0, 2]), r"expected targets in \[0, 2\) or -100.*got 2 at position 1"),
        (lambda: ops.cross_entropy(ONE, [-1, 0]), "got -1 at position 0"),
        (lambda: ops.cross_entropy(ONE, [-100, -100]), "at least one target that counts, got none"),
        (lambda: ops.cross_entropy(np.ones((0, 4)), []), "at least one target that counts, got none"),
        (lambda: ops.cross_entropy(ONE, [0.0, 1.0]), "expected targets to hold integers, got dtype float64"),
        (lambda: ops.cross_entropy(ONE, [0, 2**40]), "expected targets to fit in 32 bits"),
        (lambda: ops.attention(np.ones((1, 1, 2, 3)), np.ones((1, 1, 2, 3)), np.ones((1, 1, 3, 3))), "one shape"),
        (lambda: ops.attention(ONE, ONE, ONE), r"\(B, H, T, D\)"),
    ],
)
def test_wrong_shapes_and_values(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("wrong", [[[1j]], [["1"]], [[None]], [[b"1"]], np.array([["2024-01-01"]], "datetime64[D]")])
def test_wrong_types(wrong: Any) -> None:
    for call in (ops.gelu, ops.softmax, lambda x: ops.matmul(x, [[1]]), lambda x: ops.layer_norm([[1]], [1], x)):
        with pytest.raises(ValueError, match=r"expected \w+ to hold real numbers, got dtype"):
            call(wrong)


def test_settings_are_validated() -> None:
    with pytest.raises(ValueError, match='expected "highest" or "bf16", got "fp8"'):
        miaobi.set_matmul_precision("fp8")
    with pytest.raises(ValueError, match="mkl"):
        miaobi.set_backend("mkl")
    assert miaobi.get_matmul_precision() == "highest"
    assert miaobi.get_backend() in miaobi.available_backends()

# SPDX-License-Identifier: MIT
"""GPT: loss and every gradient against double precision, ragged batches, accumulation, memory, and wrong input."""

from __future__ import annotations

import gc
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import oracle
import pytest

import miaobi
from miaobi import _core
from miaobi.model import GPT, AdamW, GPTConfig

IGNORED = -100
LENGTHS = [1, 17, 40, 3, 64]  # of a ragged batch
OFFSETS = np.cumsum([0, *LENGTHS])


def gpt(seed: int = 0, scale: float = 0.15, **changes: Any) -> GPT:
    """A model with every parameter random, so that nothing in it is nearly uniform, 0 or 1."""
    shape: dict[str, Any] = {"vocab_size": 200, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
    model = GPT(GPTConfig(**{**shape, **changes}))
    oracle.random_parameters(model, seed, scale)
    return model


def tokens(*shape: int, vocab: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, shape)


def gradients(model: GPT) -> dict[str, np.ndarray]:
    return {name: view.copy() for name, view in model.gradients().items()}


def assert_same_gradients(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        oracle.assert_same_bits(got[name], want[name])


# --- values and gradients

VARIANTS: dict[str, dict[str, Any]] = {
    "tied, gelu_new": {"n_inner": 12},
    "untied, relu": {"n_inner": 7, "tie_word_embeddings": False, "activation_function": "relu"},
    "one head, wide eps": {"n_head": 1, "n_layer": 1, "layer_norm_epsilon": 0.1},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_loss_and_every_gradient(changes: dict[str, Any]) -> None:
    shape = {"vocab_size": 11, "n_positions": 9, "n_embd": 8, "n_layer": 2, "n_head": 2, **changes}
    model = gpt(scale=0.4, **shape)
    ids, targets = tokens(2, 7, vocab=11), tokens(2, 7, vocab=11, seed=1)
    targets[0, 2] = targets[1, 6] = IGNORED
    p = oracle.double(model.parameters())

    oracle.assert_close(model.forward(ids), oracle.gpt(ids, p, model.config), 60)
    losses = oracle.token_losses(oracle.gpt(ids, p, model.config), targets)
    oracle.assert_close(model.token_losses(ids, targets), losses, 60)
    assert model.loss(ids, targets) == pytest.approx(losses.sum() / 12, rel=1e-6)

    model.zero_grad()
    total, count = model.loss_backward(ids, targets)
    assert (total, count) == (pytest.approx(losses.sum(), rel=1e-6), 12)
    for name, gradient in model.gradients().items():

        def loss(value: np.ndarray, name: str = name) -> Any:
            return oracle.token_losses(oracle.gpt(ids, {**p, name: value}, model.config), targets).sum() / 12

        oracle.assert_close(gradient, oracle.gradient(loss, p[name]), 100)


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.2, 0.0), (0.0, 0.05), (0.1, 0.02)])
def test_gradients_of_label_smoothing_and_z_loss(smoothing: float, z_loss: float) -> None:
    shape = {"vocab_size": 11, "n_positions": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}
    model = gpt(scale=0.4, **shape)
    ids, targets = tokens(2, 7, vocab=11), tokens(2, 7, vocab=11, seed=1)
    targets[0, 2] = targets[1, 6] = IGNORED
    p = oracle.double(model.parameters())
    plain = model.loss(ids, targets)
    model.zero_grad()
    total, count = model.loss_backward(ids, targets, label_smoothing=smoothing, z_loss=z_loss)
    assert total / count == pytest.approx(plain, rel=1e-6)  # what is reported is the loss of the text
    for name, gradient in model.gradients().items():

        def loss(value: np.ndarray, name: str = name) -> Any:
            logits = oracle.gpt(ids, {**p, name: value}, model.config)
            uniform = sum(oracle.token_losses(logits, np.where(targets >= 0, v, IGNORED)) for v in range(11)) / 11
            lse = np.log(np.exp(logits).sum(-1))
            terms = (1 - smoothing) * oracle.token_losses(logits, targets) + smoothing * uniform
            return (terms + z_loss * np.where(targets >= 0, lse**2, 0)).sum() / 12

        oracle.assert_close(gradient, oracle.gradient(loss, p[name]), 100)
    for wrong in ({"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"z_loss": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model.loss_backward(ids, targets, **wrong)


def test_the_likeliest_token_at_each_target() -> None:
    model = gpt(scale=0.4, vocab_size=3000, n_positions=9, n_embd=8, n_layer=1, n_head=2)
    ids, targets = tokens(20, 9, vocab=3000), tokens(20, 9, vocab=3000, seed=1)
    targets[3, 4] = IGNORED
    losses, predicted = model.score_tokens(ids, targets)
    oracle.assert_same_bits(losses, model.token_losses(ids, targets))
    want = model.forward(ids).argmax(-1)
    want[3, 4] = IGNORED
    np.testing.assert_array_equal(predicted, want)


def test_start_is_nearly_uniform() -> None:
    model = GPT(GPTConfig(1000, 32, 64, 3, 4), seed=3)
    p = model.parameters()
    ids, targets = tokens(4, 32, vocab=1000), tokens(4, 32, vocab=1000, seed=1)
    assert model.loss(ids, targets) == pytest.approx(math.log(1000), abs=0.1)
    assert p["transformer.wte.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert p["transformer.h.1.mlp.c_fc.weight"].std() == pytest.approx(0.02, rel=0.02)
    for name in ("attn", "mlp"):  # into the residual stream
        assert p[f"transformer.h.1.{name}.c_proj.weight"].std() == pytest.approx(0.02 / math.sqrt(6), rel=0.03)
    assert all((p[name] == (0 if name.endswith("bias") else 1)).all() for name in p if p[name].ndim == 1)
    oracle.assert_same_bits(GPT(model.config, seed=3).arena, model.arena)
    assert np.any(GPT(model.config, seed=4).arena != model.arena)


def test_parameters() -> None:
    config = GPTConfig(50, 16, 24, 2, 3, n_inner=40)
    tied, untied = GPT(config), GPT(GPTConfig(**{**asdict(config), "tie_word_embeddings": False}))
    block = {
        "ln_1.weight": (24,),
        "ln_1.bias": (24,),
        "attn.c_attn.weight": (24, 72),
        "attn.c_attn.bias": (72,),
        "attn.c_proj.weight": (24, 24),
        "attn.c_proj.bias": (24,),
        "ln_2.weight": (24,),
        "ln_2.bias": (24,),
        "mlp.c_fc.weight": (24, 40),
        "mlp.c_fc.bias": (40,),
        "mlp.c_proj.weight": (40, 24),
        "mlp.c_proj.bias": (24,),
    }
    want = {f"transformer.h.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    want |= {"transformer.wte.weight": (50, 24), "transformer.wpe.weight": (16, 24)}
    want |= {"transformer.ln_f.weight": (24,), "transformer.ln_f.bias": (24,)}
    assert {name: view.shape for name, view in tied.parameters().items()} == want
    want["lm_head.weight"] = (50, 24)
    assert {name: view.shape for name, view in untied.parameters().items()} == want
    for model in (tied, untied):
        views = model.parameters().values()
        assert model.num_parameters == sum(view.size for view in views)
        assert all(np.shares_memory(view, model.arena) for view in views)
        assert all(np.shares_memory(view, model.gradient_arena) for view in model.gradients().values())
        assert all(view.ctypes.data % 64 == 0 for view in views)
        model.arena[...] = 0
        assert not model.forward([[1, 2]]).any()


# --- batches


def test_ragged_batch_gives_each_sequence_what_it_gets_alone() -> None:
    model = gpt()
    ids, targets = tokens(OFFSETS[-1]), tokens(OFFSETS[-1], seed=1)
    logits, losses = model.forward(ids, OFFSETS), model.token_losses(ids, targets, OFFSETS)
    for begin, end in pairwise(OFFSETS):
        one = slice(begin, end)
        oracle.assert_same_bits(logits[one], model.forward(ids[None, one])[0])
        oracle.assert_same_bits(losses[one], model.token_losses(ids[None, one], targets[None, one])[0])


def test_equal_lengths_are_a_ragged_batch() -> None:
    model = gpt()
    ids, targets, offsets = tokens(5, 13), tokens(5, 13, seed=1), np.arange(6) * 13
    oracle.assert_same_bits(model.forward(ids.ravel(), offsets), model.forward(ids).reshape(65, 200))
    assert model.loss(ids.ravel(), targets.ravel(), offsets) == model.loss(ids, targets)
    found = []
    for arguments in ((ids, targets), (ids.ravel(), targets.ravel(), offsets)):
        model.zero_grad()
        model.loss_backward(*arguments)
        found.append(gradients(model))
    assert_same_gradients(found[0], found[1])


def test_empty_sequences_are_nothing() -> None:
    model = gpt()
    ids = tokens(9)
    want = model.forward(ids, [0, 4, 9])
    oracle.assert_same_bits(model.forward(ids, [0, 0, 4, 4, 9, 9]), want)
    assert model.forward([], [0]).shape == (0, 200)
    assert model.forward(np.zeros((0, 3), int)).shape == (0, 3, 200)
    assert model.forward(np.zeros((2, 0), int)).shape == (2, 0, 200)


@pytest.mark.parametrize("tied", [True, False])
def test_loss_then_backward_is_loss_backward(tied: bool) -> None:
    model = gpt(tie_word_embeddings=tied)
    ids, targets = tokens(OFFSETS[-1]), tokens(OFFSETS[-1], seed=1)
    targets[::3] = IGNORED
    model.zero_grad()
    total, count = model.loss_backward(ids, targets, OFFSETS)
    want = gradients(model)
    model.zero_grad()
    assert model.loss(ids, targets, OFFSETS) == pytest.approx(total / count, rel=1e-12)
    model.backward()
    assert_same_gradients(gradients(model), want)


def test_backward_wants_a_loss() -> None:
    model, ids = gpt(), tokens(2, 5)

    def refused() -> None:
        with pytest.raises(ValueError, match=r"expects a loss before it.*call loss\(\) first"):
            model.backward()

    refused()
    model.loss(ids, ids)
    model.backward()
    refused()  # once for each
    model.loss(ids, ids)
    model.forward(ids)
    refused()  # its activations are gone
    model.loss(ids, ids)
    with pytest.raises(ValueError, match="expected targets"):
        model.loss(ids, ids + 1000)
    refused()


@pytest.mark.usefixtures("builtin_backend")
@pytest.mark.parametrize("tied", [True, False])
def test_micro_batches_are_the_big_batch(tied: bool) -> None:
    """Bit for bit: every sum over tokens goes on where the last call left it. Only of tied embeddings, which get two
    sums (as the head, then as the embedding) in another order, the last bits may differ."""
    model = gpt(tie_word_embeddings=tied)
    ids, targets = tokens(OFFSETS[-1]), tokens(OFFSETS[-1], seed=1)
    targets[5:9] = IGNORED
    model.zero_grad()
    total, count = model.loss_backward(ids, targets, OFFSETS)
    want = gradients(model)
    for cut in (1, 3):
        model.zero_grad()
        parts = 0.0
        for part in np.split(np.arange(len(LENGTHS)), [cut]):
            bounds = OFFSETS[part[0] : part[-1] + 2]
            one = slice(bounds[0], bounds[-1])
            parts += model.loss_backward(ids[one], targets[one], bounds - bounds[0], normalizer=count)[0]
        assert parts == pytest.approx(total, rel=1e-12)
        got = gradients(model)
        if tied:
            oracle.assert_close(got.pop("transformer.wte.weight"), want["transformer.wte.weight"], 20)
        assert_same_gradients(got, {name: want[name] for name in got})


def test_normalizer_scales_the_gradient() -> None:
    model, ids = gpt(), tokens(3, 8)
    model.loss_backward(ids, ids, normalizer=24)
    want = gradients(model)
    model.zero_grad()
    assert model.loss_backward(ids, ids, normalizer=96)[1] == 24
    for name, gradient in gradients(model).items():
        oracle.assert_same_bits(4 * gradient, want[name])  # a power of two is exact


def test_a_long_vocabulary_goes_through_the_head_in_chunks() -> None:
    """2**21 logits are held at a time: here two chunks of rows, whose boundary leaves no mark."""
    model = gpt(vocab_size=30_000, n_embd=16, n_layer=1, tie_word_embeddings=False)
    ids, targets = tokens(2, 48, vocab=30_000), tokens(2, 48, vocab=30_000, seed=1)
    logits = model.forward(ids).astype(np.float64)
    oracle.assert_close(model.token_losses(ids, targets), oracle.token_losses(logits, targets), 20)
    model.zero_grad()
    model.loss_backward(ids, targets)
    want = gradients(model)
    model.zero_grad()
    for i in range(2):
        model.loss_backward(ids[i : i + 1], targets[i : i + 1], normalizer=96)
    assert_same_gradients(gradients(model), want)


# --- memory and threads


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("one_pass", [True, False])
def test_no_allocation_in_a_step_after_the_first_of_its_size(one_pass: bool, threads: int) -> None:
    miaobi.set_num_threads(threads)
    ids, targets = tokens(OFFSETS[-1]), tokens(OFFSETS[-1], seed=1)

    def steps() -> list[tuple[int, int]]:
        model = gpt(n_layer=3)
        optimizer = AdamW(model, lr=1e-3)
        made = []
        for sequences in (5, 5, 3, 5, 3, 1, 5, 1, 3):
            before = _core.allocation_count()
            end = OFFSETS[sequences]
            batch = ids[:end], targets[:end], OFFSETS[: sequences + 1]
            model.zero_grad()
            if one_pass:
                model.loss_backward(*batch)
            else:
                model.loss(*batch)
                model.backward()
            optimizer.step(max_grad_norm=1.0)
            made.append((sequences, _core.allocation_count() - before))
        return made

    with ThreadPoolExecutor(1) as pool:  # scratch belongs to a thread: this one comes without any
        made = pool.submit(steps).result()
    assert made[0][1] > 0
    seen = set()
    for sequences, allocations in made:
        assert allocations == 0 or sequences not in seen, made
        seen.add(sequences)


def held_bytes() -> int:
    gc.collect()
    return _core.allocated_bytes()


def test_memory_goes_with_the_model() -> None:
    gpt().forward(tokens(1, 8))  # the scratch of the threads stays
    before = held_bytes()
    model = gpt()
    optimizer = AdamW(model, lr=1.0)
    arena = model.arena.nbytes
    view = model.parameters()["transformer.ln_f.bias"]
    del model
    assert held_bytes() == before + 4 * arena  # parameters, gradients and two moments
    optimizer.step()  # its model is still there
    del optimizer
    assert np.isfinite(view).all()
    assert held_bytes() == before + 2 * arena
    del view
    assert held_bytes() == before


@contextmanager
def counting_thread() -> Iterator[Callable[[], int]]:
    """A thread that counts, but only while nobody holds the interpreter: it is never forced out of a hand."""
    interval, stop, count = sys.getswitchinterval(), threading.Event(), [0]

    def run() -> None:
        while not stop.is_set():
            count[0] += 1
            time.sleep(0.0002)

    thread = threading.Thread(target=run)
    thread.start()
    sys.setswitchinterval(1000)
    try:
        yield lambda: count[0]
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


def test_other_python_threads_run_meanwhile() -> None:
    # The core itself, with arrays of its types: NumPy's conversions too let others run.
    model = gpt(n_embd=96)
    core, ids, offsets = model._core, tokens(16 * 64).astype(np.int32), np.arange(17) * 64
    one, two = np.array([0, 64]), np.array([0, 300])
    optimizer = AdamW(model, lr=0.0)
    cache = model.new_cache(64)
    sequence = cache.add_sequence()
    x = np.zeros((300, 300), np.float32)
    layer, attention = miaobi.FeedForward(300, 600), miaobi.SelfAttention(300, 3)
    attention.enable_kv_cache()

    def nothing() -> None:
        pass

    calls: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {  # what goes before it, and the call
        "forward": (nothing, lambda: core.forward(ids, offsets)),
        "token_losses": (nothing, lambda: core.token_losses(ids, ids, offsets)),
        "backward": (lambda: core.token_losses(ids, ids, offsets), core.backward),
        "loss_backward": (nothing, lambda: core.loss_backward(ids, ids, offsets, None)),
        "AdamW": (nothing, optimizer.step),
        "forward_cached": (
            lambda: cache.truncate(sequence, 0),
            lambda: _core.forward_cached(core, cache, [sequence], ids[:64], one),
        ),
        "matmul": (nothing, lambda: _core.matmul(x, x)),
        "attention": (nothing, lambda: _core.attention(x, x, x, two, 3, True)),
        "layer_norm": (nothing, lambda: _core.layer_norm(x, x[0], x[0], 1e-5)),
        "softmax": (nothing, lambda: _core.softmax(x)),
        "gelu": (nothing, lambda: _core.gelu(x)),
        "layer forward": (nothing, lambda: layer.forward(x)),
        "layer backward": (nothing, lambda: layer.backward(x)),
        "layer cache": (attention.clear_kv_cache, lambda: attention.forward_with_kv_cache(x)),
    }
    with counting_thread() as count:
        for name, (prepare, call) in calls.items():
            for _ in range(300):  # one call is enough, unless the machine has no processor to spare
                prepare()
                before = count()
                call()
                if count() > before:
                    break
            else:
                pytest.fail(f"{name} holds the interpreter")


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_no_allocation_where_later_documents_are_longer(threads: int) -> None:
    miaobi.set_num_threads(threads)
    model = GPT(GPTConfig(50, n_positions=64, n_embd=48, n_layer=2, n_head=4))
    optimizer = AdamW(model, lr=1e-3)
    ids = tokens(256) % 50
    made = []
    for length in (8, 16, 64, 32, 64):
        before = _core.allocation_count()
        model.zero_grad()
        model.loss_backward(ids, ids, np.arange(0, 257, length))
        optimizer.step(max_grad_norm=1.0)
        made.append(_core.allocation_count() - before)
    assert made[1:] == [0] * 4


def test_gradients_in_bf16_are_near_those_in_float32_and_leave_the_setting_alone() -> None:
    model = GPT(GPTConfig(40, 16, 32, 2, 4))
    ids, targets = np.random.default_rng(0).integers(0, 40, (2, 3, 16))
    found: dict[str | None, np.ndarray] = {}
    for precision in ("float32", "bf16", None):
        model.zero_grad()
        model.loss_backward(ids, targets, precision=precision)
        found[precision] = model.gradient_arena.copy()
    np.testing.assert_array_equal(found[None], found["float32"])
    assert miaobi.get_matmul_precision() == "highest"
    error = np.linalg.norm(found["bf16"] - found["float32"]) / np.linalg.norm(found["float32"])
    assert 1e-4 < error < 0.03
    with pytest.raises(ValueError, match='"bf16", got "fp16"'):
        model.loss_backward(ids, targets, precision="fp16")

# SPDX-License-Identifier: MIT
"""The same bits at any number of threads, in any process and beside other threads; the instruction set in force."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest

import miaobi
from miaobi import ops
from miaobi.model import GPT, AdamW, GPTConfig

pytestmark = pytest.mark.usefixtures("builtin_backend")

KNOWN_ISAS = ("generic", "avx2", "avx512", "avx512_bf16", "neon")
THREADS = (1, 2, 3, 8)
OFFSETS = np.cumsum([0, 250, 1, 33, 130])  # one sequence is longer than any tile


def run_python(code: str, isa: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "MIAOBI_ISA"}
    if isa is not None:
        env["MIAOBI_ISA"] = isa
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [env.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def model_of(tied: bool = True) -> GPT:
    model = GPT(GPTConfig(700, 256, 96, 2, 4, tie_word_embeddings=tied))
    oracle.random_parameters(model, seed=3, scale=0.05)
    return model


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids, targets = np.random.default_rng(4).integers(0, 700, (2, OFFSETS[-1]))
    return ids, targets, OFFSETS


def training() -> list[np.ndarray]:
    """Losses, gradients and parameters of two steps, and the logits of a decoder afterwards."""
    found = []
    for tied in (True, False):
        model = model_of(tied)
        optimizer = AdamW(model, lr=1e-2)
        for _ in range(2):
            model.zero_grad()
            found.append(model.token_losses(*batch()))
            model.backward()
            found.append(model.gradient_arena.copy())
            found.append(np.array(optimizer.step(max_grad_norm=1.0)))
        found += [model.arena.copy(), model.forward(batch()[0], OFFSETS)]
        cache = model.new_cache(1000)
        sequences = [cache.add_sequence() for _ in range(len(OFFSETS) - 1)]
        found.append(model.forward_cached(cache, sequences, batch()[0], OFFSETS))
        for token in range(3):
            found.append(model.forward_cached(cache, sequences, [token] * 4, np.arange(5)))
    return found


LAYERS: dict[str, Callable[[], Any]] = {
    "Linear": lambda: miaobi.Linear(120, 200),
    "LayerNorm": lambda: miaobi.LayerNorm(120),
    "FusedLayerNormLinear": lambda: miaobi.FusedLayerNormLinear(120, 200),
    "FusedGELULinear": lambda: miaobi.FusedGELULinear(120, 200),
    "SelfAttention": lambda: miaobi.SelfAttention(120, 4),
    "FeedForward": lambda: miaobi.FeedForward(120, 300),
    "TransformerBlock": lambda: miaobi.TransformerBlock(120, 300, 4),
}


def layer_pass(make: Callable[[], Any]) -> list[np.ndarray]:
    layer = make()
    oracle.random_parameters(layer, seed=1)
    rng = np.random.default_rng(2)
    found = []
    for shape in ((3, 130, 120), (1, 700, 120), (1, 1, 120)):
        y = layer.forward(rng.standard_normal(shape))
        found += [y, layer.backward(rng.standard_normal(y.shape))]
        found += [view.copy() for view in layer.gradients().values()]
    return found


def op_pass() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    a, b, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((300, 257), (257, 190), (70, 1000)))
    q = rng.standard_normal((3, 1, 2, 300, 24)).astype(np.float32)
    found = [ops.matmul(a, b), ops.matmul(a[:1], b), ops.matmul(b, a, transpose_a=True, transpose_b=True)]
    found += [ops.gelu(x), ops.softmax(x), ops.layer_norm(x, x[0], x[1])]
    found += [ops.attention(*q), ops.attention(*q, causal=False)]
    return found


PASSES: dict[str, Callable[[], list[np.ndarray]]] = {
    "training": training,
    "ops": op_pass,
    **{name: (lambda make=make: layer_pass(make)) for name, make in LAYERS.items()},
}


@pytest.mark.parametrize("run", PASSES.values(), ids=PASSES.keys())
def test_number_of_threads_changes_no_bit(run: Callable[[], list[np.ndarray]]) -> None:
    miaobi.set_num_threads(THREADS[0])
    want = run()
    for threads in THREADS[1:]:
        miaobi.set_num_threads(threads)
        assert miaobi.get_num_threads() == threads
        for got, expected in zip(run(), want, strict=True):
            oracle.assert_same_bits(got, expected)


def test_python_threads_do_not_disturb_each_other() -> None:
    """Each with objects of its own, and one in the engine's pool while others run beside it."""
    miaobi.set_num_threads(2)
    passes = [training, op_pass, PASSES["TransformerBlock"], PASSES["SelfAttention"]] * 2
    want = [run() for run in passes]
    start = threading.Barrier(len(passes))

    def go(run: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
        start.wait()
        return run()

    with ThreadPoolExecutor(len(passes)) as pool:
        for got, expected in zip(pool.map(go, passes), want, strict=True):
            for one, other in zip(got, expected, strict=True):
                oracle.assert_same_bits(one, other)


def test_python_threads_may_share_objects() -> None:
    """One model, one layer, one cache: calls wait for each other."""
    model, layer = model_of(), miaobi.TransformerBlock(64, 100, 4)
    oracle.random_parameters(layer, seed=1)
    cache = model.new_cache(8 * 64)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 700, n) for n in (5, 60, 33, 12, 50, 1, 40, 64)]
    inputs = [rng.standard_normal((len(text), 64)).astype(np.float32) for text in texts]

    def go(i: int) -> list[list[np.ndarray]]:
        found = []
        for _ in range(5):
            sequence = cache.add_sequence()
            cached = model.forward_cached(cache, [sequence], texts[i], [0, len(texts[i])])
            cache.free_sequence(sequence)
            found.append([model.forward(texts[i][None]), layer.forward(inputs[i]), cached])
        return found

    want = [go(i)[0] for i in range(len(texts))]
    with ThreadPoolExecutor(len(texts)) as pool:
        for expected, rounds in zip(want, pool.map(go, range(len(texts))), strict=True):
            for got in rounds:
                for one, other in zip(got, expected, strict=True):
                    oracle.assert_same_bits(one, other)


@pytest.mark.parametrize("count", [0, -1, 257, 10**6])
def test_number_of_threads_is_checked(count: int) -> None:
    before = miaobi.get_num_threads()
    with pytest.raises(ValueError, match=f"expected 1 to 256 threads, got {count}"):
        miaobi.set_num_threads(count)
    assert miaobi.get_num_threads() == before == miaobi.build_info()["threads"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processor affinity")
def test_threads_start_as_the_processors_of_this_process() -> None:
    assert 1 <= miaobi.build_info()["processors"] <= len(os.sched_getaffinity(0))
    done = run_python(
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import miaobi; print(miaobi.get_num_threads(), miaobi.build_info()['processors'])"
    )
    assert done.stdout.split() == ["1", "1"], done.stderr


# --- processes

FORKED = """
import multiprocessing, os, threading
import miaobi
from test_determinism import batch, model_of, step

def threads():
    return len(os.listdir("/proc/self/task"))

def child(kept, want):
    alone = threads()
    kept.loss_backward(*batch())  # an object from before the fork
    ok = step() == kept.gradient_arena.tobytes() == want and miaobi.get_num_threads() == 3
    return ok and (alone, threads()) == (1, 3)  # a pool of its own

if __name__ == "__main__":
    miaobi.set_num_threads(3)
    kept, want = model_of(), step()
    stop = threading.Event()

    def keep_busy():  # a fork in the middle of its loops finds the pool's locks in any state
        while not stop.is_set():
            step()

    busy = threading.Thread(target=keep_busy)
    for round in range(5):
        if round == 1:
            busy.start()
        pid = os.fork()
        if pid == 0:
            os._exit(0 if child(kept, want) else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert step() == want  # the parent goes on
    stop.set()
    busy.join()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(step, range(3)) == [want] * 3
    print("done")
"""
SPAWNED = """
import multiprocessing
from test_determinism import step

if __name__ == "__main__":
    want = step()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(step) == want
    print("done")
"""


def step(_: object = None) -> bytes:
    model = model_of()
    model.loss_backward(*batch())
    return model.gradient_arena.tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork, and NumPy to survive it")
def test_forked_children_compute() -> None:
    done = run_python(FORKED)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


def test_spawned_children_compute() -> None:
    done = run_python(SPAWNED)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


# --- instruction sets

REPORT = """
import json, miaobi
from test_determinism import loss_and_gradient
print(json.dumps([miaobi.build_info()["isa"], *loss_and_gradient()]))
"""


def loss_and_gradient() -> list[float]:
    model = model_of()
    total, count = model.loss_backward(*batch())
    return [total / count, *(float(np.abs(view).sum(dtype=np.float64)) for view in model.gradients().values())]


def test_forced_instruction_set_is_in_force() -> None:
    """For runs of the whole suite with MIAOBI_ISA: they must not test another one without a word."""
    info = miaobi.build_info()
    assert info["isa"] == (os.environ.get("MIAOBI_ISA") or info["isas"][0])
    assert "generic" in info["isas"]
    assert set(info["isas"]) <= set(KNOWN_ISAS)


def test_instruction_sets_agree() -> None:
    here = loss_and_gradient()
    for isa in miaobi.build_info()["isas"]:
        done = run_python(REPORT, isa)
        assert done.returncode == 0, done.stderr
        in_force, *found = json.loads(done.stdout)
        assert in_force == isa
        if isa == miaobi.build_info()["isa"]:
            assert found == here  # the same bits in another process
        assert found[0] == pytest.approx(here[0], rel=1e-6)
        assert found[1:] == pytest.approx(here[1:], rel=1e-5)


@pytest.mark.parametrize("kind", ["unknown", "unsupported"])
def test_wrong_instruction_set_is_told_at_import(kind: str) -> None:
    available = miaobi.build_info()["isas"]
    isa = "sse9" if kind == "unknown" else next(name for name in KNOWN_ISAS if name not in available)
    done = run_python("import miaobi._core", isa)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert f"MIAOBI_ISA={isa}" in last
    assert last.endswith("can run: " + ", ".join(available))
    assert ("is unknown" in last) == (kind == "unknown")

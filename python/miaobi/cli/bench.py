# SPDX-License-Identifier: MIT
"""`miaobi bench`: what this build does on this machine, in under a minute."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from miaobi.cli import options as opt

__all__ = ["bench"]

_SHAPES = (  # name, M, K, N
    ("square", 512, 512, 512),
    ("square", 1024, 1024, 1024),
    ("nano, feed-forward of a batch", 2048, 256, 512),
    ("small, feed-forward of a batch", 2048, 384, 1536),
    ("nano, head for one token", 1, 256, 8000),
)
_FUSED_ROWS = (1, 128, 2048)  # decoding, a short text, a training batch
_WRITTEN_TOKENS = (16, 112)  # the second fills the context of nano
_PRECISION = {"highest": "float32", "bf16": "bf16"}
_MIN_SAMPLES = 20
_PAUSE = 0.005  # threads of NumPy's BLAS go on spinning for less than that after a product
_SAMPLE_FLOP = 1e8  # a sample of some milliseconds, longer than the clock's noise


def bench(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here, too.")
    ] = None,
    threads: opt.Threads = None,
) -> None:
    """Measure this machine: matrix products, fused ops, the tokenizer and its cache, writing and training with nano.

    Takes under a minute. The figures are medians of calls in turns; they are lower while other programs compute.
    """
    _prepare_numpy(threads)
    opt.set_threads(threads)
    import numpy as np

    from miaobi._core import build_info

    build = {**build_info(), "numpy": np.__version__, "numpy_blas": _numpy_blas()}
    typer.secho(f"miaobi {build['version']} on {build['cpu']}, {build['processors']} processors", bold=True)
    typer.echo(
        f"{build['isa']}, {build['backend']} matrix products in {_PRECISION[build['matmul_precision']]}, "
        f"threads: {build['threads']}, {build['compiler']}\nnumpy {build['numpy']} with {build['numpy_blas']}"
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        typer.secho(f"Other programs compute now (load {load:.1f}): the figures will be too low.", fg="yellow")
    results: dict[str, Any] = {"build": build, "load_before": load}
    for name, title, measure in (
        ("matmul", "Matrix products, GFLOP/s", _bench_matmul),
        ("fused", "Fused ops at the widths of nano, microseconds", _bench_fused),
        ("tokenizer", "Tokenizer and its cache, characters/s", _bench_tokenizer),
        ("decode", "Writing with nano and its KV cache, tokens/s", _bench_decode),
        ("train", "Training nano, tokens/s", _bench_train),
    ):
        typer.secho(f"\n{title}", bold=True)
        results[name] = measure()
    if json_file is not None:
        from miaobi.files import write_atomic

        write_atomic(json_file, (json.dumps(results, ensure_ascii=False, indent=2) + "\n").encode())
        typer.echo(f"\nAll figures are in {json_file}.")


def _prepare_numpy(threads: int | None) -> None:
    """Settings of NumPy's BLAS, which reads them when it is loaded: the engine's bindings load it, too."""
    if "numpy" in sys.modules:
        return
    if threads is not None:  # without a wish both take all processors
        for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
            os.environ[name] = str(threads)
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # would make it slower than it is by itself
        os.environ.pop(name, None)
    # OpenBLAS's threads spin for 2**n cycles after a product, by default some 50 ms, which would slow ours down.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")


def _bench_matmul() -> list[dict[str, Any]]:
    import numpy as np

    from miaobi.ops import matmul

    rng = np.random.default_rng(0)
    rows = []
    typer.echo(f"{'':32}{'M x K x N':>18}{'miaobi':>10}{'numpy':>10}{'ratio':>8}")
    for name, m, k, n in _SHAPES:
        a = rng.standard_normal((m, k), dtype=np.float32)
        b = rng.standard_normal((k, n), dtype=np.float32)
        if not np.allclose(matmul(a, b), a @ b, rtol=1e-3, atol=1e-3):
            raise ValueError(f"[bench] the products of {m} x {k} x {n} are not equal: this build does not work here")
        repeat = max(int(_SAMPLE_FLOP / (2 * m * k * n)), 1)
        out = np.empty((m, n), np.float32)

        def ours(a: Any = a, b: Any = b, out: Any = out, repeat: int = repeat) -> None:
            for _ in range(repeat):
                matmul(a, b, out=out)

        def theirs(a: Any = a, b: Any = b, out: Any = out, repeat: int = repeat) -> None:
            for _ in range(repeat):
                np.matmul(a, b, out=out)

        gflop = 2e-9 * m * k * n * repeat
        us, them = (gflop / _median(times) for times in _alternate([ours, theirs], seconds=1.2, pause=_PAUSE))
        typer.echo(f"{name:32}{f'{m} x {k} x {n}':>18}{us:10.1f}{them:10.1f}{us / them:8.2f}")
        rows.append({"name": name, "m": m, "k": k, "n": n, "miaobi_gflops": us, "numpy_gflops": them})
    return rows


def _bench_fused() -> list[dict[str, Any]]:
    import numpy as np

    from miaobi import _core
    from miaobi.layers import FusedGELULinear, FusedLayerNormLinear, LayerNorm, Linear
    from miaobi.presets import PRESETS

    preset = PRESETS["nano"]
    rng = np.random.default_rng(0)
    rows = []
    typer.echo(f"{'forward and backward':32}{'rows x in x out':>18}{'fused':>10}{'unfused':>10}{'ratio':>8}")
    for name, wide, narrow in (
        ("LayerNorm + linear", preset.n_embd, preset.n_inner),
        ("GELU + linear", preset.n_inner, preset.n_embd),
    ):
        fused = (FusedLayerNormLinear if name.startswith("LayerNorm") else FusedGELULinear)(wide, narrow)
        norm = LayerNorm(wide) if name.startswith("LayerNorm") else None
        linear = Linear(wide, narrow)
        linear.parameters()["weight"][:] = fused.parameters()["weight"]
        for m in _FUSED_ROWS:
            x = rng.standard_normal((m, wide), dtype=np.float32)
            dy = rng.standard_normal((m, narrow), dtype=np.float32)
            repeat = max(int(_SAMPLE_FLOP / (6 * m * wide * narrow)), 1)

            def together(x: Any = x, dy: Any = dy, layer: Any = fused, repeat: int = repeat) -> Any:
                for _ in range(repeat):
                    result = layer.forward(x), layer.backward(dy)
                return result

            def apart(x: Any = x, dy: Any = dy, f: Any = norm, linear: Any = linear, repeat: int = repeat) -> Any:
                for _ in range(repeat):
                    y = linear.forward(_core.gelu(x) if f is None else f.forward(x))
                    df = linear.backward(dy)
                    result = y, _core.gelu_backward(df, x) if f is None else f.backward(df)
                return result

            if not all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(together(), apart(), strict=True)):
                raise ValueError(f"[bench] {name} gives something else when it is fused: this build does not work here")
            us, them = (1e6 * _median(times) / repeat for times in _alternate([together, apart], seconds=0.8))
            typer.echo(f"{name:32}{f'{m} x {wide} x {narrow}':>18}{us:10.1f}{them:10.1f}{them / us:8.2f}")
            rows.append({"op": name, "rows": m, "in": wide, "out": narrow, "fused_us": us, "unfused_us": them})
    return rows


def _bench_tokenizer() -> dict[str, float]:
    from miaobi.tokenizer import JiebaTokenizer

    texts = _demo_texts()
    characters = sum(map(len, texts))
    tokenizer = JiebaTokenizer.train(texts, vocab_size=8000, shrink=True)

    def encode() -> None:
        tokenizer.encode_batch(texts)

    def encode_anew() -> None:
        tokenizer.cache_clear()
        encode()

    new, known = (characters / _median(times) for times in _alternate([encode_anew, encode], seconds=2.0))
    ids = tokenizer.encode_batch(texts)
    begin = time.perf_counter()
    decoded = [tokenizer.decode(document) for document in ids]
    back = characters / (time.perf_counter() - begin)
    if decoded != texts:
        raise ValueError("[bench] text did not survive encoding and decoding: this build does not work here")
    typer.echo(f"{'new text':32}{new:18,.0f}")
    typer.echo(f"{'text in its cache':32}{known:18,.0f}{known / new:10.0f} times")
    typer.echo(f"{'back to text':32}{back:18,.0f}")
    tokenizer.cache_clear()
    before = tokenizer.cache_info()
    encode()
    encode()
    held = tokenizer.cache_info()
    hits, misses = held.hits - before.hits, held.misses - before.misses
    share = hits / (hits + misses)
    typer.echo(f"{'hits when all comes twice':32}{share:18.0%}   {held.bytes / 1e6:.1f} MB for {len(texts)} texts")
    return {
        "cache_hits": hits,
        "cache_misses": misses,
        "cache_bytes": held.bytes,
        "encode": new,
        "encode_cached": known,
        "decode": back,
        "vocab_size": tokenizer.vocab_size,
    }


def _bench_decode() -> list[dict[str, float]]:
    import numpy as np

    from miaobi._core import Sampler
    from miaobi.decoding import Decoder, advance
    from miaobi.model import GPT
    from miaobi.presets import PRESETS

    model = GPT(PRESETS["nano"].model_config(8000))
    context = model.config.n_positions
    prompt = np.arange(300, 316, dtype=np.int32)
    rows = []
    typer.echo(f"{'after 16 tokens of prompt':32}{'':>8}{'cache':>10}{'no cache':>10}{'ratio':>8}")
    for tokens in _WRITTEN_TOKENS:

        def write(cached: bool, tokens: int = tokens) -> list[int]:
            decoder = Decoder(model, context, model.new_cache(context) if cached else None)
            sampler = Sampler(temperature=0.8, top_p=0.95, seed=1)
            sampler.accept(prompt, written=False)
            new, written = prompt, []
            for _ in range(tokens):
                written.append(sampler.sample(advance([decoder], [new])[0]))
                new = np.asarray(written[-1:], np.int32)
            return written

        if write(True) != write(False):
            raise ValueError("[bench] the text with and without cache is not equal: this build does not work here")
        times = _alternate([lambda: write(True), lambda: write(False)], seconds=3.0)
        with_cache, without = (tokens / _median(samples) for samples in times)
        typer.echo(f"{f'{tokens} tokens':32}{'':>8}{with_cache:10,.0f}{without:10,.0f}{with_cache / without:8.1f}")
        rows.append({"tokens": tokens, "cache": with_cache, "no_cache": without})
    return rows


def _bench_train() -> dict[str, float]:
    import numpy as np

    from miaobi.model import GPT, AdamW
    from miaobi.presets import PRESETS

    preset = PRESETS["nano"]
    model = GPT(preset.model_config(8000))
    optimizer = AdamW(model, lr=preset.learning_rate)
    shape = (preset.batch_size, preset.n_positions)
    ids = np.random.default_rng(0).integers(300, 8000, shape, dtype=np.int32)
    targets = np.roll(ids, -1, axis=1)

    def step() -> None:
        model.zero_grad()
        model.loss_backward(ids, targets)
        optimizer.step(max_grad_norm=1.0)

    (times,) = _alternate([step], seconds=6.0)
    speed = ids.size / _median(times)
    flops = 6 * model.num_parameters * speed / 1e9
    typer.echo(
        f"{'{} x {} tokens a step'.format(*shape):32}{speed:18,.0f}"
        f"   ({1e3 * _median(times):.0f} ms a step, about {flops:.0f} GFLOP/s)"
    )
    return {"batch": shape[0], "context": shape[1], "tokens_per_second": speed}


def _alternate(functions: list[Callable[[], object]], seconds: float, pause: float = 0.0) -> list[list[float]]:
    """Times of the functions, called in turns for about `seconds`, and at least 20 times unless that takes too long.

    With more than one thread, `pause` seconds and an untimed call go before each, so that no function pays for threads
    that the one before it left spinning, nor for waking its own.
    """
    from miaobi._core import get_num_threads

    pause = pause if get_num_threads() > 1 else 0.0
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    begin = time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds or (len(times[0]) < _MIN_SAMPLES and spent < 2 * seconds):
        for function, samples in zip(functions, times, strict=True):
            if pause:
                time.sleep(pause)
                function()
            start = time.perf_counter()
            function()
            samples.append(time.perf_counter() - start)
    return times


def _median(times: list[float]) -> float:
    ordered = sorted(times)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _demo_texts() -> list[str]:
    from importlib.resources import files

    return (files("miaobi") / "resources" / "demo_statements.txt").read_text("utf-8").splitlines()


def _numpy_blas() -> str:
    """The library that NumPy multiplies with."""
    import numpy as np

    try:
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"{blas['name']} {blas['version']}"
    except (TypeError, KeyError):
        return "unknown BLAS"

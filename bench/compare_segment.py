# SPDX-License-Identifier: MIT
"""Our segmenter, tokenizer and cache beside jieba and jieba-rs (rjieba), on the same lines, in one run.

    pip install jieba rjieba
    python bench/compare_segment.py text.txt [more.txt ...] [--lines N] [--only PART ...] [--json FILE]

Agreement first: every line of the files in both modes, against jieba.lcut; a difference is printed and the exit code
is 1 then. Then speed (one thread, the lines one by one, the three in turns, medians), loading time in new processes,
memory, batches on threads, text of 10 MB, and the cache. The last line is JSON, which --json also keeps: parts that are
measured one by one are put together there.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import miaobi

warnings.simplefilter("ignore")  # jieba's own
import jieba  # noqa: E402
import rjieba  # noqa: E402


def jieba_tokenizer() -> Any:
    """jieba with its cache file in a folder of our own."""
    jieba.setLogLevel(60)
    tokenizer = jieba.Tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.tmp_dir = folder
        tokenizer.initialize()
    return tokenizer


def read_lines(path: str) -> list[str]:
    """Lines with their ends, as they are in the file."""
    with open(path, encoding="utf-8", newline="") as file:
        return file.read().splitlines(keepends=True)


def spread(lines: list[str], characters: int) -> list[str]:
    """Lines from all over the file, about so many characters."""
    step = max(1, sum(map(len, lines)) // characters)
    return lines[::step]


def agreement(files: list[str], reference: Any, limit: int | None) -> list[dict[str, Any]]:
    """Lines compared and those that differ, for each file and mode; rjieba's differences beside ours."""
    print(
        f"{'agreement with jieba ' + jieba.__version__:40}{'mode':>8}{'lines':>10}{'differ':>8}{'rjieba differs':>16}"
    )
    rows = []
    for path in files:
        lines = read_lines(path)
        lines = lines if limit is None else lines[:: max(1, len(lines) // limit)]
        for hmm in (False, True):
            differ = theirs = 0
            for line in lines:
                expected = reference.lcut(line, HMM=hmm)
                if miaobi.segment(line, hmm=hmm) != expected:
                    differ += 1
                    print(f"  {path}: {line!r}")
                theirs += rjieba.cut(line, hmm) != expected
            rows.append({"file": Path(path).name, "hmm": hmm, "lines": len(lines), "differ": differ, "rjieba": theirs})
            mode = "HMM" if hmm else "no HMM"
            print(f"{Path(path).name:40}{mode:>8}{len(lines):>10,}{differ or 'none':>8}{theirs:>16,}", flush=True)
    return rows


def alternate(runs: Sequence[Callable[[], object]], samples: int) -> list[float]:
    """The median seconds of each of `runs`, taken in turns after a round to warm up."""
    times: list[list[float]] = [[] for _ in runs]
    for sample in range(samples + 1):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if sample:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def speed(files: list[str], reference: Any, samples: int) -> list[dict[str, Any]]:
    """Characters a second of the three, in both modes, and of our encode without cache; one thread."""
    miaobi.set_num_threads(1)
    print(f"\n{'million characters/s':28}{'mode':>8}{'jieba':>8}{'rjieba':>8}{'miaobi':>8}{'ratio':>7}{'encode':>8}")
    rows = []
    for path in files:
        lines = spread(read_lines(path), 100_000)
        few = spread(lines, 10_000)
        characters, part = sum(map(len, lines)), sum(map(len, few)) / sum(map(len, lines))
        for hmm in (False, True):
            tokenizer = miaobi.JiebaTokenizer.train(lines, 8000, shrink=True, hmm=hmm)
            slow, theirs, ours, encode = alternate(
                [
                    lambda few=few, hmm=hmm: [reference.lcut(line, HMM=hmm) for line in few],
                    lambda lines=lines, hmm=hmm: [rjieba.cut(line, hmm) for line in lines],
                    lambda lines=lines, hmm=hmm: [miaobi.segment(line, hmm) for line in lines],
                    lambda lines=lines, encode=tokenizer.encode_ordinary: [encode(line) for line in lines],
                ],
                samples,
            )
            row = {"jieba": part / slow, "rjieba": 1 / theirs, "miaobi": 1 / ours, "encode": 1 / encode}
            row = {name: characters * value / 1e6 for name, value in row.items()}
            rows.append({"file": Path(path).name, "hmm": hmm, "ratio": theirs / ours, **row})
            print(
                f"{Path(path).name:28}{'HMM' if hmm else 'no HMM':>8}{row['jieba']:>8.2f}{row['rjieba']:>8.2f}"
                f"{row['miaobi']:>8.2f}{theirs / ours:>7.2f}{row['encode']:>8.2f}",
                flush=True,
            )
    return rows


def threads(path: str, samples: int) -> dict[str, float]:
    """How many times as fast batches are on two threads and on all."""
    lines = spread(read_lines(path), 1_000_000)
    tokenizer = miaobi.JiebaTokenizer.train(lines, 8000, shrink=True)
    tokenizer.cache_resize(0)
    result = {}
    calls: dict[str, Callable[[list[str]], object]] = {
        "segment_batch": miaobi.segment_batch,
        "encode_batch": tokenizer.encode_batch,
        "encode_arrays": tokenizer.encode_arrays,
    }
    for name, run in calls.items():

        def on(count: int, run: Callable[[list[str]], object] = run) -> Callable[[], object]:
            def go() -> None:
                miaobi.set_num_threads(count)
                run(lines)

            return go

        one, two = alternate([on(1), on(2)], samples)
        result[name] = one / two
    print("\non two threads: " + ", ".join(f"{name} {value:.2f}x" for name, value in result.items()))
    return result


def linear() -> list[dict[str, Any]]:
    """Seconds for 1 MB and 10 MB of UTF-8: one character, one sentence again and again, random characters."""
    miaobi.set_num_threads(1)
    rng = random.Random(0)
    sentence = "他来到了网易杭研大厦，小明硕士毕业于中国科学院计算所。"
    noise = "".join(map(chr, (c for c in rng.choices(range(0x110000), k=3_000_000) if not 0xD800 <= c < 0xE000)))
    rows = []
    print()
    for name, text in (("one character", "的" * 3_400_000), ("one sentence", sentence * 130_000), ("noise", noise)):
        data = text.encode()
        texts = [data[: size * 10**6].decode(errors="ignore") for size in (1, 10)]
        for hmm in (False, True):
            small, large = alternate([lambda t=t, hmm=hmm: miaobi.segment(t, hmm) for t in texts], 5)
            rows.append({"text": name, "hmm": hmm, "1 MB": small, "10 MB": large})
            mode = "HMM" if hmm else "no HMM"
            print(
                f"{name:16}{mode:>8}: 1 MB {1e3 * small:.0f} ms, 10 MB {1e3 * large:.0f} ms, {large / small:.1f} times"
            )
    return rows


def loading() -> dict[str, float]:
    """Milliseconds of import and first cut in a new process, and of the first cut alone; medians of five."""
    programs = {
        "jieba": (
            "import jieba; t = jieba.Tokenizer()",
            "jieba.setLogLevel(60); t.tmp_dir = sys.argv[1]; t.lcut('今天')",
        ),
        "rjieba": ("import rjieba", "rjieba.cut('今天', True)"),
        "miaobi": ("import miaobi._core, miaobi.segmenter", "miaobi.segment('今天', hmm=True)"),
    }
    result = {}
    print()
    for name, (before, program) in programs.items():
        code = f"import sys, time, warnings; warnings.simplefilter('ignore'); a = time.perf_counter()\n{before}\n"
        code += f"b = time.perf_counter()\n{program}\nprint(time.perf_counter() - a, time.perf_counter() - b)"
        taken = []
        for _ in range(5):
            with tempfile.TemporaryDirectory() as folder:  # empty: no cache file
                done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
            taken.append([1e3 * float(seconds) for seconds in done.stdout.split()])
        whole, cut = (statistics.median(column) for column in zip(*taken, strict=True))
        result[name], result[f"{name}, first cut"] = whole, cut
        print(f"{name}: import and first cut {whole:.0f} ms, the first cut alone {cut:.0f} ms")
    return result


def memory() -> float:
    """Megabytes that the first cut and a second segmenter add to a process (Linux; elsewhere 0)."""
    code = (
        "import re, miaobi._core, miaobi.segmenter\n"
        "held = lambda: int(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "a = held(); miaobi.segment('今天', hmm=True); other = miaobi.Segmenter(); print(held() - a)"
    )
    if sys.platform != "linux":
        return 0.0
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    megabytes = int(done.stdout) * 1024 / 1e6
    print(f"memory of dictionary and tables, two segmenters: {megabytes:.0f} MB")
    return megabytes


def cache(path: str, reference: Any, samples: int) -> dict[str, float]:
    """A hit beside a cold encode of ours and jieba's; the original's scenarios; memory of 10,000 sentences."""
    text = "".join(read_lines(path))
    sentences = list(dict.fromkeys(text[i : i + 30] for i in range(0, min(len(text), 900_000), 30)))
    tokenizer = miaobi.JiebaTokenizer.train([text[:1_000_000]], 8000, shrink=True)
    ids = {word: i for i, word in enumerate(tokenizer.tokens)}
    sample = sentences[:500]

    def by_jieba(texts: list[str]) -> None:
        for text in texts:
            for word in reference.cut(text, HMM=False):
                if ids.get(word) is None:
                    [ids.get(character) for character in word]

    def cold(texts: list[str]) -> None:
        for text in texts:
            tokenizer.encode_ordinary(text)

    def cached(texts: list[str]) -> None:
        for text in texts:
            tokenizer.encode(text)

    cached(sample)
    slow, ours, hit = alternate([lambda: by_jieba(sample), lambda: cold(sample), lambda: cached(sample)], samples)
    result = {name: 1e6 * taken / len(sample) for name, taken in (("jieba", slow), ("cold", ours), ("hit", hit))}
    print("\n30 characters, microseconds: " + ", ".join(f"{name} {value:.2f}" for name, value in result.items()))
    rng = random.Random(0)
    for repetition in (0.0, 0.5, 0.9):
        calls: list[str] = []
        fresh = iter(sentences)
        for _ in range(1_000):
            calls.append(rng.choice(calls) if calls and rng.random() < repetition else next(fresh))

        def from_empty(calls: list[str] = calls) -> None:
            tokenizer.cache_clear()
            cached(calls)

        slow, ours, kept = alternate(
            [lambda calls=calls: by_jieba(calls), lambda calls=calls: cold(calls), from_empty], samples
        )
        name = f"{repetition:.0%} repeated"
        result[f"{name}, over jieba"], result[f"{name}, over ours uncached"] = slow / kept, ours / kept
        print(f"{name}: with the cache {slow / kept:.1f}x jieba without, {ours / kept:.2f}x our own without")
    tokenizer.cache_clear()
    cached(sentences[:10_000])
    info = tokenizer.cache_info()
    result["bytes of 10,000"] = info.bytes / max(info.entries, 1) * 10_000
    print(f"cache of {info.entries:,} sentences of 30 characters: {info.bytes / 1e6:.2f} MB")
    return result


def main() -> int:
    """Everything in turn; 1 if a line differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="UTF-8 text")
    parser.add_argument("--lines", type=int, help="compare only about so many lines of each file")
    parts: dict[str, Callable[[], Any]] = {
        "agreement": lambda: agreement(options.files, reference, options.lines),
        "speed": lambda: speed(options.files, reference, options.samples),
        "threads": lambda: threads(options.files[0], options.samples),
        "linear": linear,
        "loading_ms": loading,
        "memory_mb": memory,
        "cache": lambda: cache(options.files[0], reference, options.samples),
    }
    parser.add_argument("--only", nargs="+", choices=list(parts), help="only these parts")
    parser.add_argument("--samples", type=int, default=21, help="timings of each kind (default 21)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="put the results into this file")
    options = parser.parse_args()
    build = miaobi.build_info()
    machine = f"{build['cpu']}, {build['compiler']}, Python {sys.version.split()[0]}"
    print(f"miaobi {build['version']}, {machine}\n")
    reference = jieba_tokenizer()
    result: dict[str, Any] = {"machine": machine, "jieba": jieba.__version__}
    if options.json is not None and options.json.exists():
        result = json.loads(options.json.read_text("utf-8")) | result
    for name in options.only or parts:
        result[name] = parts[name]()
    if options.json is not None:
        options.json.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False))
    return int(any(row["differ"] for row in result.get("agreement", ())))


if __name__ == "__main__":
    sys.exit(main())

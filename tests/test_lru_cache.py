# SPDX-License-Identifier: MIT
"""The text cache: limits, order of eviction, and counts that stay exact under threads."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from miaobi.lru_cache import LRUCache, get_cache_hit_rate, reset_cache_stats


@pytest.fixture(autouse=True)
def fresh_counts() -> Iterator[None]:
    """Each test starts from zero and switches threads as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    reset_cache_stats()
    yield
    sys.setswitchinterval(interval)


def test_least_recently_used_goes_first() -> None:
    cache = LRUCache(max_entries=2)
    cache.put("一", (1,))
    cache.put("二", (2,))
    assert cache.get("一") == (1,)
    cache.put("三", (3,))
    assert cache.get("二") is None
    assert cache.get("一") == (1,)
    assert cache.get("三") == (3,)
    assert cache.info()[:4] == (3, 1, 2, 2)


def test_an_empty_result_is_a_hit() -> None:
    cache = LRUCache()
    cache.put("", ())
    assert cache.get("") == ()
    assert cache.info()[:2] == (1, 0)


def test_bytes_are_bounded_and_accounted() -> None:
    cache = LRUCache(max_bytes=10_000, max_entry_bytes=2_000)
    for i in range(200):
        cache.put(f"句子{i}", (i,) * (i % 50))
        assert cache.info().bytes <= 10_000
    assert 0 < cache.info().entries < 200
    held = cache.info()
    cache.put("长" * 1_000, (1,))
    assert cache.get("长" * 1_000) is None
    assert cache.info()[2:] == held[2:]
    cache.clear()
    assert (cache.info().entries, cache.info().bytes) == (0, 0)


def test_replacing_an_entry_does_not_count_it_twice() -> None:
    cache, other = LRUCache(), LRUCache()
    cache.put("一", (1, 2, 3))
    cache.put("一", (1,))
    other.put("一", (1,))
    assert cache.info().bytes == other.info().bytes
    assert cache.info().entries == 1


def test_no_entries_switches_it_off() -> None:
    cache = LRUCache(max_entries=0)
    cache.put("一", (1,))
    assert cache.get("一") is None
    assert cache.info()[:3] == (0, 1, 0)


def test_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="max_entries=-1"):
        LRUCache(max_entries=-1)


def test_hit_rate_sums_over_all_caches_of_the_process_also_those_that_are_gone() -> None:
    assert get_cache_hit_rate() == (0, 0, 0.0)
    kept = LRUCache()
    for cache in (kept, LRUCache()):
        cache.put("一", (1,))
        cache.get("一")
        cache.get("二")
    cache = kept
    assert get_cache_hit_rate() == (2, 2, 0.5)
    reset_cache_stats()
    assert get_cache_hit_rate() == (0, 0, 0.0)
    assert kept.info()[:3] == (0, 0, 1)


def test_counts_and_limits_are_exact_under_threads() -> None:
    caches = [LRUCache(max_entries=20, max_bytes=5_000), LRUCache(max_entries=20)]
    calls_per_thread, num_threads = 4_000, 8
    failures: list[str] = []

    def work(seed: int) -> None:
        for i in range(calls_per_thread):
            number = (i * i + seed * 7) % 40
            cache = caches[i % 2]
            ids = cache.get(str(number))
            if ids is None:
                cache.put(str(number), (number,))
            elif ids != (number,):
                failures.append(f"{number} gave {ids}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    calls = calls_per_thread * num_threads
    assert [cache.info().hits + cache.info().misses for cache in caches] == [calls / 2, calls / 2]
    hits, misses, rate = get_cache_hit_rate()
    assert hits + misses == calls
    assert rate == hits / calls
    for cache in caches:
        info = cache.info()
        assert 0 < info.entries <= 20
        one = LRUCache()
        for number in range(40):
            if cache.get(str(number)) is not None:
                one.put(str(number), (number,))
        assert one.info()[2:5:2] == info[2:5:2]  # entries and bytes, counted anew


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_the_lock_is_held_does_not_wait_for_ever() -> None:
    from miaobi import lru_cache

    cache = LRUCache()
    with lru_cache._lock:
        child = os.fork()
        if child == 0:
            worker = threading.Thread(target=cache.get, args=("一",), daemon=True)
            worker.start()
            worker.join(timeout=10)
            os._exit(int(worker.is_alive()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

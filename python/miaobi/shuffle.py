# SPDX-License-Identifier: MIT
"""Permutations that depend on nothing but their seeds, so that a run can go on anywhere as it would have here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["permutation"]


def permutation(n: int, *seeds: int) -> NDArray[np.int64]:
    """The numbers 0 to n-1 in an order that is the same for the same seeds with every version of NumPy.

    Sorts by SplitMix64 (Steele, Lea and Flood 2014), a bijection on 64 bits, so that no two numbers tie.
    """
    key = np.uint64(0)
    for seed in seeds:
        key = _mix(np.array([key ^ np.uint64(seed % 2**64)]))[0]
    return np.argsort(_mix(np.arange(n, dtype=np.uint64) ^ key), kind="stable")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step for each element; arithmetic is modulo 2**64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed

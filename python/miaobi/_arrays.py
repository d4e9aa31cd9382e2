# SPDX-License-Identifier: MIT
"""Conversion of what a NumPy user would pass into what the core takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["as_float32", "as_ids", "as_offsets"]


def as_float32(x: npt.ArrayLike, name: str) -> npt.NDArray[np.float32]:
    """x as C-contiguous float32, without a copy where it already is. ValueError for what is not numeric."""
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"expected {name} to hold real numbers, got dtype {array.dtype}")
    return np.asarray(array, dtype=np.float32, order="C")


def as_ids(x: npt.ArrayLike, name: str) -> npt.NDArray[np.int32]:
    """x as C-contiguous int32. ValueError for what is not integral or does not fit."""
    array: npt.NDArray[Any] = np.asarray(x)
    if array.size == 0:
        return np.zeros(array.shape, dtype=np.int32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"expected {name} to hold integers, got dtype {array.dtype}")
    if array.dtype != np.int32:
        limits = np.iinfo(np.int32)
        if array.max() > limits.max or array.min() < limits.min:
            raise ValueError(f"expected {name} to fit in 32 bits, got values from {array.min()} to {array.max()}")
    return np.asarray(array, dtype=np.int32, order="C")


def as_offsets(x: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Sequence offsets as C-contiguous int64."""
    array = np.asarray(x)
    if array.dtype.kind not in "iu":
        raise ValueError(f"expected offsets to hold integers, got dtype {array.dtype}")
    return np.asarray(array, dtype=np.int64, order="C")

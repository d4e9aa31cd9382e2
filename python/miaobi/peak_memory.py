# SPDX-License-Identifier: MIT
"""How much memory this process has taken."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["peak_memory"]


def peak_memory() -> int | None:
    """Bytes that this process had in memory at most, or None where the system does not tell."""
    if sys.platform == "linux":  # getrusage would count what the process that started this one had
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 if "VmHWM:" in status else None
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

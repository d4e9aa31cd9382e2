# SPDX-License-Identifier: MIT
"""Ctrl-C and SIGTERM while a long computation runs: the first asks it to end well, the second ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Interruption", "stop_on_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interruption:
    """The signal that came, or None."""

    signal_number: int | None = None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 0 if self.signal_number is None else 128 + self.signal_number


@contextlib.contextmanager
def stop_on_signals(stop: Callable[[], object], quit_at_once: Callable[[], object]) -> Iterator[Interruption]:
    """Within the block, the first signal calls `stop`; the second calls `quit_at_once` and ends the process.

    Python runs its own handlers between two instructions of the main thread, which may be deep in native code for a
    minute. The handler below it writes to a socket at once, and a thread reads there.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    received = Interruption()

    def watch() -> None:
        while data := reader.recv(1):
            if data[0] not in _SIGNALS:
                continue
            if received.signal_number is None:
                received.signal_number = data[0]
                stop()
            else:
                quit_at_once()
                os._exit(128 + data[0])  # files are replaced as a whole, so that no moment is a bad one

    thread = threading.Thread(target=watch, name="miaobi-signals", daemon=True)
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield received
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        thread.join()
        reader.close()

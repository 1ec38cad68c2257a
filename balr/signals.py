"""Signals that end a run in order: what is being computed is finished and saved, and the lists are written."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # SLURM sends the last before a time limit, where it is told to


class StoppedError(KeyboardInterrupt):
    """Tell by which signal a run was stopped; `exit_code` is 128 and its number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Raise StoppedError in the main thread at the first signal, and end the process at once at a second one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()
    stopped = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopped
        if os.getpid() != owner:  # in a process forked a moment ago, which this one ends
            return
        if stopped:
            os._exit(128 + number)
        stopped = True
        raise StoppedError(number)

    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Let signals wait until what is inside is done, such as a file that is written and then noted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    before: dict[int, Any] = {}
    try:
        for name in _NAMES:
            if hasattr(signal, name):
                number = getattr(signal, name)
                before[number] = signal.getsignal(number) or signal.SIG_DFL
                signal.signal(number, lambda number, frame: waiting.append((number, frame)))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, frame in waiting:
            if callable(before[number]):
                before[number](number, frame)
            elif before[number] == signal.SIG_DFL:
                os.kill(os.getpid(), number)

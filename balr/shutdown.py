"""The stop flag: the first signal asks a run to end in order, a second one ends the process at once.

Nothing is raised out of a handler while a run works: the pipeline looks at the flag between batches.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # SLURM can send the last before a time limit
_REQUEUE = "SIGUSR2"  # so does submitit, whose handler starts the job again
_PR_SET_PDEATHSIG = 1


class Stop:
    """Hold whether, and by which signal, a run is asked to end. `set` asks for it without a signal."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.number: int | None = None

    def set(self) -> None:
        """Ask the run to end after the batches that are being computed."""
        self._event.set()

    def is_set(self) -> bool:
        """Return whether the run is to end."""
        return self._event.is_set()

    @property
    def signal_name(self) -> str | None:
        """Return the name of the signal that asked for it, None where none did."""
        return None if self.number is None else signal.Signals(self.number).name

    @property
    def is_requeue(self) -> bool:
        """Return whether a launcher asked for it that has a handler of its own, to be called when all is saved."""
        return self.signal_name == _REQUEUE

    @property
    def exit_code(self) -> int | None:
        """Return 128 and the number of the signal, as shells have it, None where none came."""
        return None if self.number is None else 128 + self.number

    def handle(self, number: int, _: FrameType | None) -> None:
        """Take a signal: set the flag, or end the process where it is set by one already."""
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        self._event.set()


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Give a flag that SIGINT, SIGTERM and SIGUSR1 set; in a thread that gets no signals, nothing sets it."""
    stop = Stop()
    with handle_signals(stop.handle):
        yield stop


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGUSR1 handled, and SIGUSR2 where a launcher does, if this thread gets signals."""
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)] if is_main else []
    if is_main and callable(signal.getsignal(getattr(signal, _REQUEUE, signal.SIGINT))) and hasattr(signal, _REQUEUE):
        numbers.append(signal.SIGUSR2)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}
    for number in numbers:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def end_children(number: int) -> None:
    """Send a signal to the processes that this one started, where the system lists them."""
    with suppress(OSError):
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
        for child in children.split():
            os.kill(int(child), number)


def end_with_process(parent: int | None, number: int) -> None:
    """Have this process sent a signal when the one that started it ends, where the system can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it was too late to ask for it
            os.kill(os.getpid(), number)

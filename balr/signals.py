"""Signals that end a run in order: what is being computed is finished and saved, and the lists are written.

Handlers belong to a process, and so does the state here: there is one of it.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # SLURM sends the last before a time limit, where it is told to
_PASSED_ON = "SIGUSR2"  # none of those, which a terminal and SLURM send to a sweep and to its jobs alike
_PR_SET_PDEATHSIG = 1


class StoppedError(KeyboardInterrupt):
    """Tell by which signal a run was stopped; `exit_code` is 128 and its number, as shells have it."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__("the end of its sweep" if name == _PASSED_ON else name)
        self.exit_code = 128 + number


class JobStoppedError(Exception):
    """Tell a sweep that its job in another process was stopped; a launcher waits for the others and passes it on."""


@dataclass
class _Stop:
    """Hold which signal stopped the process `owner`, and whether it was told: not while it is held back.

    `sweep` is the process that this one does jobs for; `is_working` while it does one in itself.
    """

    owner: int | None = None
    sweep: int | None = None
    number: int | None = None
    received: int = 0
    is_told: bool = False
    is_working: bool = False
    holds: int = 0

    def listen(self, *names: str) -> dict[int, Any]:
        """Take over the handling of signals and return what handled them before."""
        self.owner, self.number, self.received, self.is_told = os.getpid(), None, 0, False
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        return {number: signal.signal(number, self.take) for number in numbers}

    def take(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self.owner:  # in a process forked a moment ago, which this one ends
            return
        passed_on: int | None = getattr(signal, _PASSED_ON, None)
        self.received += number != passed_on
        if self.received > 1 or (self.number is not None and self.is_orphaned()):
            os._exit(128 + number)
        self.number = self.number or number
        jobs = () if self.is_working else _jobs_elsewhere()
        for job in jobs:
            with suppress(ProcessLookupError):
                os.kill(job, passed_on or number)
        if not jobs:  # else they end first
            self.tell()

    def tell(self) -> None:
        if self.number is not None and not self.is_told and not self.holds:
            self.is_told = True
            raise StoppedError(self.number)

    def is_orphaned(self) -> bool:
        return self.sweep is not None and os.getppid() != self.sweep


def _jobs_elsewhere() -> list[int]:
    """Return the processes that joblib's launcher started; others that this one has are nobody's business here."""
    children = multiprocessing.active_children()
    return [child.pid for child in children if child.pid is not None and type(child).__name__.startswith("Loky")]


_stop = _Stop()


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Raise StoppedError in the main thread at the first signal, and end the process at once at a second one.

    Where a sweep has jobs in processes of their own, they are told first, and end before it does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _stop.listen(*_NAMES)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stop.owner = None
        _stop.tell()


@contextmanager
def ending_with_the_sweep() -> Iterator[None]:
    """Do the same for a job, also in a process of its own, and there also when its sweep is gone.

    There it raises JobStoppedError instead, which a launcher takes for the result of the job.
    """
    sweep = multiprocessing.parent_process()
    if threading.current_thread() is not threading.main_thread():
        yield
    elif sweep is None or sweep.pid is None or (_stop.owner == os.getpid() and _stop.sweep is None):
        with _job_here():
            yield
    else:
        with _job_elsewhere(sweep.pid):
            yield


@contextmanager
def _job_here() -> Iterator[None]:
    _stop.tell()
    _stop.is_working = True
    try:
        yield
    finally:
        _stop.is_working = False


@contextmanager
def _job_elsewhere(sweep: int) -> Iterator[None]:
    if _stop.owner != os.getpid():
        # Handlers stay: between two jobs a signal only keeps the next one from starting, as a process that ended there
        # would be the end of all others.
        _stop.holds, _stop.sweep = 1, sweep
        _stop.listen(*_NAMES, _PASSED_ON)
        end_with(sweep, signal.SIGTERM)
    _stop.holds -= 1
    try:
        if _stop.number is not None:
            raise StoppedError(_stop.number)
        with _job_here():
            yield
    except StoppedError as stop:
        raise JobStoppedError(f"stopped by {stop}") from None
    finally:
        _stop.holds += 1
        if _stop.number is not None and _stop.is_orphaned():
            os._exit(128 + _stop.number)


@contextmanager
def held_back() -> Iterator[None]:
    """Let a signal wait until what is inside is done, such as a file that is written and then noted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _stop.holds += 1
    try:
        yield
    finally:
        _stop.holds -= 1
        _stop.tell()


def end_with(parent: int | None, number: int) -> None:
    """Have this process sent a signal when the one that started it ends, where the system can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it was too late to ask for it
            os.kill(os.getpid(), number)

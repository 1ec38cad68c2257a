"""Signals that end a run in order: what is being computed is finished and saved, and the lists are written.

Handlers belong to a process, and so does the state here: there is one of it.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import FrameType

log = logging.getLogger(__name__)

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

    `jobs_for` is the process that this one does jobs for, `sweep` the name of what they belong to, and `is_over` tells
    that it was stopped; `is_working` while a job is done in this process.
    """

    owner: int | None = None
    number: int | None = None
    received: int = 0
    holds: int = 0
    is_told: bool = False
    is_working: bool = False
    jobs_for: int | None = None
    sweep: str | None = None
    is_over: bool = False

    def listen(self, names: Sequence[str]) -> None:
        """Take over the handling of signals."""
        self.owner = os.getpid()
        self.begin()
        for number in _numbers(names):
            signal.signal(number, self.take)

    def begin(self) -> None:
        self.number, self.received, self.is_told = None, 0, False

    def take(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self.owner:  # in a process forked a moment ago, which this one ends
            return
        is_passed_on = number in _numbers([_PASSED_ON])
        self.received += not is_passed_on
        self.is_over = self.is_over or is_passed_on
        if self.received > 1 or (self.is_orphaned() and (self.number is not None or not self.is_working)):
            os._exit(128 + number)
        if self.jobs_for is not None and not self.is_working:
            self.received = 0  # between two jobs; the process must stay, or all others of the sweep would end
            return
        self.number = self.number or number
        elsewhere = () if self.is_working else _jobs_elsewhere()
        for job in elsewhere:
            with suppress(ProcessLookupError):
                os.kill(job, (*_numbers([_PASSED_ON]), number)[0])
        if not elsewhere:  # else they end first
            self.tell()

    def tell(self) -> None:
        if self.number is not None and not self.is_told and not self.holds:
            self.is_told = True
            raise StoppedError(self.number)

    def is_orphaned(self) -> bool:
        return self.jobs_for is not None and os.getppid() != self.jobs_for


def _numbers(names: Sequence[str]) -> list[int]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


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
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in _numbers(_NAMES)}
    try:
        _stop.listen(_NAMES)
        yield
    finally:
        _stop.holds += 1
        for number, handler in before.items():
            signal.signal(number, handler)
        _stop.owner = None
        _stop.holds -= 1
        _stop.tell()


@contextmanager
def ending_with(sweep: str) -> Iterator[None]:
    """Do the same for a job of a sweep, also in a process of its own, and there also when the sweep is gone.

    There it raises JobStoppedError instead, which a launcher takes for the result of the job.
    """
    parent = multiprocessing.parent_process()
    if threading.current_thread() is not threading.main_thread():
        yield
    elif parent is not None and parent.pid is not None and (_stop.owner != os.getpid() or _stop.jobs_for is not None):
        with _job_elsewhere(sweep, parent.pid):
            yield
    else:  # in the process of the sweep, or one that neither knows
        with nullcontext() if _stop.owner == os.getpid() else ending_in_order(), _job_here():
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
def _job_elsewhere(sweep: str, parent: int) -> Iterator[None]:
    if _stop.owner != os.getpid():
        _stop.jobs_for = parent
        _stop.listen((*_NAMES, _PASSED_ON))
        end_with_process(parent, signal.SIGTERM)
    if _stop.sweep != sweep:  # processes are kept from one sweep to the next
        _stop.sweep, _stop.is_over = sweep, False
    if _stop.is_over:
        log.error("not begun, as the sweep was stopped.")
        raise JobStoppedError("not begun")
    _stop.begin()
    try:
        with _job_here():
            yield
    except StoppedError as stop:
        if _stop.is_orphaned():
            os._exit(stop.exit_code)
        raise JobStoppedError(f"stopped by {stop}") from None


@contextmanager
def held_back() -> Iterator[None]:
    """Let a signal wait until what is inside is done, such as a file that is written and then noted.

    It holds back what `ending_in_order` takes, and nothing where that is not at work.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _stop.holds += 1
    try:
        yield
    finally:
        _stop.holds -= 1
        _stop.tell()


def end_with_process(parent: int | None, number: int) -> None:
    """Have this process sent a signal when the one that started it ends, where the system can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it was too late to ask for it
            os.kill(os.getpid(), number)

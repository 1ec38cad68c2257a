"""The stop flag: the first signal asks a run to end in order, a second one ends the process at once.

Nothing is raised out of a handler while a run works: the pipeline looks at the flag between batches.
"""

import atexit
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

_TIME_LIMIT = ("SIGUSR1", "SIGUSR2")  # SLURM can send the first before a time limit; submitit has it send the second
_NAMES = ("SIGINT", "SIGTERM", *_TIME_LIMIT)
_PR_SET_PDEATHSIG = 1


class Stop(threading.Event):
    """Hold whether, and by which signal, a run is asked to end. `set` asks for it without a signal."""

    number: int | None = None

    @property
    def signal_name(self) -> str | None:
        """Return the name of the signal that asked for it, None where none did."""
        return None if self.number is None else signal.Signals(self.number).name

    @property
    def exit_code(self) -> int | None:
        """Return 128 and the number of the signal, as shells have it, one for a time limit; None where none came."""
        if self.signal_name in _TIME_LIMIT:
            return 128 + signal.SIGUSR1
        return None if self.number is None else 128 + self.number

    def handle(self, number: int, _: FrameType | None) -> None:
        """Take a signal: set the flag, or end the process where it is set by one already.

        SIGHUP counts as none: at the end of a process above, Linux sends it once for each of its threads.
        """
        if self.number is None:
            self.number = number
            self.set()  # once: a handler that interrupts it would wait for its lock
        elif signal.SIGHUP not in (self.number, number):
            os._exit(128 + number)
        elif number != signal.SIGHUP:
            self.number = number


@contextmanager
def stop_on_signals(*, parent: int | None = None) -> Iterator[Stop]:
    """Give a flag that SIGINT, SIGTERM, SIGUSR1, SIGUSR2 and the end of the process `parent` above this one set.

    In a thread that gets no signals, nothing sets it.
    """
    stop = Stop()
    with handle_signals(stop.handle, (*_NAMES, "SIGHUP") if parent else _NAMES):
        if parent:
            end_with_process(parent, signal.SIGHUP)
        yield stop


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None], names: Sequence[str] = _NAMES) -> Iterator[None]:
    """Have SIGINT, SIGTERM, SIGUSR1 and SIGUSR2, or other signals, handled, where this thread gets signals."""
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)] if is_main else []
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}
    for number in numbers:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def end_with_process(parent: int | None, number: int) -> None:
    """Have this process sent a signal when the one that started it ends, where the system can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it was too late to ask for it
            os.kill(os.getpid(), number)


def end_process(code: int) -> NoReturn:
    """Exit at once if no other thread works: to free the modules of torch one by one takes half a second."""
    if threading.active_count() == 1:
        atexit._run_exitfuncs()
        with suppress(OSError, ValueError):  # a stream that cannot be written is reported by a usual exit
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)

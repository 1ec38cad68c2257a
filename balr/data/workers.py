"""Processes that read files. One that dies or hangs costs the file that it was at, and another takes its place.

torch's DataLoader does not do that: there, a worker that dies ends all, and nothing tells at which utterance.
"""

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from balr.data.batching import Batch
from balr.data.dataset import AnnotatedAudio
from balr.data.read_ahead import ReadAhead
from balr.errors import ConfigError
from balr.signals import end_with_process, held_back

_Item = TypeVar("_Item")

_BLOCK_BYTES = 1 << 20
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_OF_A_NAP = 5.0
_SECONDS_TO_BEGIN = 30.0
_AT_NONE = float("inf")


@dataclass(frozen=True)
class Loss:
    """Tell at which utterance of the dataset a process was lost, and how."""

    index: int
    reason: str


@dataclass(eq=False)
class _Worker:
    """Hold a process and the way to it; `at` is shared with it: since when it decodes, and which one of its batch."""

    process: BaseProcess
    connection: "Connection[Any, Any]"
    at: Any
    batch: Batch | None = None
    is_late: bool = False


@contextmanager
def at_work(
    decode: Callable[[int], _Item],
    *,
    number: int,
    timeout_seconds: float,
    quiet: Callable[[], None],
    idle: Callable[[], object] = lambda: None,
) -> "Iterator[Workers[_Item]]":
    """Start `Workers` and end them, whatever comes between: they take no signal, and Python would wait for them."""
    workers = None
    try:
        with held_back():
            workers = Workers(decode, number=number, timeout_seconds=timeout_seconds, quiet=quiet, idle=idle)
        yield workers
    finally:
        if workers is not None:
            workers.end()


class Workers(Generic[_Item]):
    """Call `decode` with each index of a plan in `number` processes, and give it `timeout_seconds` each time.

    `decode` raises nothing; the waveform of an AnnotatedAudio comes through without being pickled. `quiet` is called
    before a process is forked beside threads that compute, and has to wait until they rest: a lock that one of them
    holds would never be free in the new process. `idle` is called now and then while there is nothing but to wait.
    Raises ConfigError where none can be started.
    """

    def __init__(
        self,
        decode: Callable[[int], _Item],
        *,
        number: int,
        timeout_seconds: float,
        quiet: Callable[[], None],
        idle: Callable[[], object] = lambda: None,
    ) -> None:
        self._decode = decode
        self._timeout_seconds = timeout_seconds
        self._quiet = quiet
        self._idle = idle
        # Forked where that is possible, processes are there at once and share the memory of the dataset.
        self._context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._lost_at_none: set[Batch] = set()
        self._awake_since = 0.0
        self._workers: list[_Worker] = []
        try:
            for _ in range(number):
                self._start()
        except BaseException:
            self.end()
            raise

    def decoded(
        self, plan: Sequence[Batch], *, ahead: int, read_ahead: ReadAhead | None = None
    ) -> Iterator[list[_Item] | Loss | None]:
        """Yield the items of each batch, whichever is ready first, and never more than `ahead` batches early.

        An utterance at which a process was lost comes as a Loss, and the others of its batch in one of their own. None
        comes where nothing can be decoded until `read_ahead` has room.
        """
        left, ready = deque(plan), deque[list[_Item]]()
        while left or ready or any(worker.batch for worker in self._workers):
            self._hand_out(left, ahead - len(ready), read_ahead)
            if not ready and not any(worker.batch for worker in self._workers):
                yield None
                continue
            for worker in self._with_news(at_once=bool(ready)):
                try:
                    ready.append(_taken(worker.connection))
                    worker.batch = None
                except (EOFError, OSError):
                    loss, again = self._blamed(worker)
                    left.extendleft(again)
                    if loss is not None:
                        yield loss
                    self._replace(worker)
            self._hand_out(left, ahead - len(ready), read_ahead)  # decoded while what is yielded is worked on
            if ready:
                yield ready.popleft()

    def end(self) -> None:
        """End all processes at once; nothing that they hold is missed."""
        with held_back():
            for worker in self._workers:
                worker.process.kill()
                worker.connection.close()
            for worker in self._workers:
                worker.process.join()
            self._workers.clear()

    def _start(self) -> None:
        try:
            with held_back(), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which rest
                ours, theirs = self._context.Pipe()
                at = self._context.RawArray("d", [_AT_NONE, 0])
                arguments = (self._decode, theirs, at, os.getpid())
                process = self._context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours, at))
        except OSError as error:
            raise ConfigError(
                f"a process that decodes cannot be started: {error.strerror or error}; "
                "data.num_workers=0 decodes in this one."
            ) from error

    def _replace(self, lost: _Worker) -> None:
        self._workers.remove(lost)
        self._quiet()
        try:
            self._start()
        except ConfigError:
            if not self._workers:
                raise

    def _hand_out(self, left: deque[Batch], room: int, read_ahead: ReadAhead | None) -> None:
        """Give batches to the processes that have none, as long as there is room for what they decode."""
        free = [worker for worker in self._workers if worker.batch is None]
        room -= len(self._workers) - len(free)
        for worker in free[: max(0, min(room, len(left)))]:
            if read_ahead is not None and not read_ahead.reserve(left[0]):
                return
            worker.batch = left.popleft()
            with suppress(OSError):  # it is gone, and is found so in a moment
                worker.connection.send(worker.batch)

    def _with_news(self, *, at_once: bool) -> list[_Worker]:
        """Wait for processes that have a batch ready, are gone, or are ended here as they take too long."""
        busy = [worker for worker in self._workers if worker.batch is not None]
        began = time.monotonic()
        while busy:
            asked = time.monotonic()
            ready = wait([worker.connection for worker in busy], 0 if at_once else _SECONDS_BETWEEN_LOOKS)
            now = time.monotonic()
            if now - asked > _SECONDS_OF_A_NAP:  # all were suspended: that was no time to decode in
                self._awake_since = now
            heard = [worker for worker in busy if worker.connection in ready]
            for worker in busy:
                since, patience = worker.at[0], self._timeout_seconds
                if since == _AT_NONE:  # it waits, most likely, for a lock that nobody holds any more
                    since, patience = began, max(patience, _SECONDS_TO_BEGIN)
                if worker not in heard and now - max(since, self._awake_since) > patience:
                    worker.is_late = True
                    worker.process.kill()
                    heard.append(worker)
            if heard or at_once:
                return heard
            self._idle()
        return []

    def _blamed(self, worker: _Worker) -> tuple[Loss | None, list[Batch]]:
        """Say at which utterance a process was lost, and which batches are to be decoded again."""
        worker.process.join()
        worker.connection.close()
        assert worker.batch is not None
        batch, (since, position) = worker.batch, worker.at
        reason = self._how_it_ended(worker)
        if since != _AT_NONE:
            rest = (*batch[: int(position)], *batch[int(position) + 1 :])
            return Loss(batch[int(position)], reason), [rest] if rest else []
        if batch not in self._lost_at_none:  # not while it decoded: killed by somebody, as it seems
            self._lost_at_none.add(batch)
            return None, [batch]
        return (Loss(batch[0], reason), []) if len(batch) == 1 else (None, [(index,) for index in batch])

    def _how_it_ended(self, worker: _Worker) -> str:
        if worker.is_late:
            return f"reading it took over {self._timeout_seconds:g} s (data.decode_timeout_seconds) and was ended"
        code = worker.process.exitcode or 0
        if code >= 0:
            return f"the process that read it ended with exit code {code}"
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
        return f"the process that read it was ended by {name}" + (
            " (out of memory?)" if name == "SIGKILL" else ": the file crashes its decoder"
        )


def _taken(connection: "Connection[Any, Any]") -> list[Any]:
    """Receive a batch. Raises EOFError or OSError where the process is gone."""
    items = []
    for item, samples in connection.recv():
        if samples is None:
            items.append(item)
            continue
        waveform = torch.empty(samples)
        content = _bytes_of(waveform)
        for start in range(0, len(content), _BLOCK_BYTES):
            connection.recv_bytes_into(content[start:])
        items.append(replace(item, audio=waveform))
    return items


def _work(decode: Callable[[int], object], connection: "Connection[Any, Any]", at: Any, parent: int) -> None:
    _live_for(parent)
    torch.set_num_threads(1)
    try:
        while True:
            items = []
            for position, index in enumerate(connection.recv()):
                at[1] = position
                at[0] = time.monotonic()
                items.append(decode(index))
            at[0] = _AT_NONE
            _hand_over(connection, items)
    except (EOFError, OSError):  # nobody is there to decode for
        return
    except Exception:  # of memory, most likely: told as the loss of this process, not as a traceback
        raise SystemExit(1) from None


def _hand_over(connection: "Connection[Any, Any]", items: Sequence[object]) -> None:
    waveforms = [item.audio if isinstance(item, AnnotatedAudio) else None for item in items]
    heads = [replace(item, audio=None) if isinstance(item, AnnotatedAudio) else item for item in items]
    sizes = [None if waveform is None else waveform.numel() for waveform in waveforms]
    connection.send(list(zip(heads, sizes, strict=True)))
    for waveform in waveforms:
        if waveform is not None:
            content = _bytes_of(waveform.contiguous())
            for start in range(0, len(content), _BLOCK_BYTES):
                connection.send_bytes(content[start : start + _BLOCK_BYTES])


def _bytes_of(waveform: torch.Tensor) -> memoryview:
    return waveform.numpy().data.cast("B")


def _live_for(parent: int) -> None:
    """Leave signals to the process that this one works for, end with it, and be the first to go for want of memory."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # not those of a progress bar, with its locks
    if sys.__stderr__ is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write there of every damaged file
    end_with_process(parent, signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")

"""Processes that read files, one utterance a task: one that dies or hangs costs the file it was reading.

torch's DataLoader ends with its first dead worker and does not say at which file. Here the parent knows what each
process reads and since when. Results come back as JSON or raw float32, never as pickles: a hostile file may have
taken over the process that read it.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from balr.data.batching import Batch
from balr.data.read_ahead import ReadAhead
from balr.errors import ConfigError, UtteranceError
from balr.shutdown import Stop, end_with_process

Result = Any  # what a task gives: a float32 array (samples,), or what JSON can hold
Read = Callable[[Any], Result]

_BLOCK_BYTES = 1 << 20
_TASKS_EACH = 2  # the next one waits beside the process, so that it never waits for this one
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_OF_A_NAP = 5.0


@dataclass(eq=False)
class _Worker:
    """Hold a process, the way to it, and the tasks that it has; it reads the first one since `since`."""

    process: BaseProcess
    connection: "Connection[Any, Any]"
    tasks: deque[tuple[int, int]] = field(default_factory=deque)
    since: float = 0.0
    is_late: bool = False


class DecoderPool:
    """Call `read` with each task of a plan in `processes` processes and give it `timeout_seconds` each time.

    A context: its processes take no signals and end with it. `read` raises UtteranceError where a file is bad. The
    processes are forked before anything computes; one that is lost is replaced through a fork server, as a fork beside
    threads may copy a lock that nobody will release. Raises ConfigError where none can be started.
    """

    def __init__(self, read: Read, *, processes: int, timeout_seconds: float) -> None:
        self._read = read
        self._timeout_seconds = timeout_seconds
        self._awake_since = 0.0
        self._workers: list[_Worker] = []
        try:
            for _ in range(processes):
                self._start("fork" if sys.platform == "linux" else "spawn")
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """End all processes at once; nothing that they hold is missed."""
        for worker in self._workers:
            worker.process.kill()
            worker.connection.close()
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()

    def results(
        self, plan: Sequence[Batch], tasks: Sequence[Any], *, ahead: int, read_ahead: ReadAhead, stop: Stop
    ) -> Iterator[tuple[Batch, list[Result | UtteranceError]]]:
        """Yield each batch of indices with the results of its tasks, whichever batch is complete first.

        At most `ahead` batches are begun and not yielded, and no more than `read_ahead` has room for. A task at which a
        process was lost gives an UtteranceError. Ends early when `stop` is set.
        """
        left = deque(range(len(plan)))
        waiting: deque[tuple[int, int]] = deque()
        begun: dict[int, dict[int, Result | UtteranceError]] = {}
        while (left or begun) and not stop.is_set():
            while (
                left and len(begun) < ahead and len(waiting) < len(self._workers) and read_ahead.reserve(plan[left[0]])
            ):
                number = left.popleft()
                begun[number] = {}
                waiting.extend((number, index) for index in plan[number])
            self._hand_out(waiting, tasks)
            if not any(worker.tasks for worker in self._workers):
                read_ahead.wait(_SECONDS_BETWEEN_LOOKS)
            for worker in self._with_news():
                (number, index), result = self._result_of(worker, waiting)
                begun[number][index] = result
                if len(begun[number]) == len(plan[number]):
                    found = begun.pop(number)
                    yield plan[number], [found[index] for index in plan[number]]
                    del found
                del result

    def _hand_out(self, waiting: deque[tuple[int, int]], tasks: Sequence[Any]) -> None:
        for depth in range(1, _TASKS_EACH + 1):
            for worker in self._workers:
                if waiting and len(worker.tasks) < depth:
                    if not worker.tasks:
                        worker.since = time.monotonic()
                    worker.tasks.append(waiting.popleft())
                    with suppress(OSError):  # it is gone, and found so in a moment
                        worker.connection.send(tasks[worker.tasks[-1][1]])

    def _with_news(self) -> list[_Worker]:
        """Wait a moment for processes that have a result, are gone, or are ended here as they take too long."""
        busy = [worker for worker in self._workers if worker.tasks]
        if not busy:
            return []
        asked = time.monotonic()
        ready = wait([worker.connection for worker in busy], _SECONDS_BETWEEN_LOOKS)
        now = time.monotonic()
        if now - asked > _SECONDS_OF_A_NAP:  # all were suspended: that was no time to read in
            self._awake_since = now
        found = [worker for worker in busy if worker.connection in ready]
        for worker in busy:
            if worker not in found and now - max(worker.since, self._awake_since) > self._timeout_seconds:
                worker.is_late = True
                worker.process.kill()
                found.append(worker)
        return found

    def _result_of(
        self, worker: _Worker, waiting: deque[tuple[int, int]]
    ) -> tuple[tuple[int, int], Result | UtteranceError]:
        """Return the result that a process has ready, or how it was lost; its other tasks are handed out again."""
        task = worker.tasks.popleft()
        try:
            result = _receive(worker.connection)
            worker.since = time.monotonic()
        except (EOFError, OSError):
            worker.process.join()
            worker.connection.close()
            self._workers.remove(worker)
            waiting.extendleft(reversed(worker.tasks))
            self._replace()
            result = UtteranceError(self._how_it_ended(worker))
        return task, result

    def _replace(self) -> None:
        try:
            self._start("forkserver" if sys.platform == "linux" else "spawn")
        except ConfigError:
            if not self._workers:
                raise

    def _start(self, method: str) -> None:
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["balr.data.decoding"])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads of libraries, which rest
                ours, theirs = context.Pipe()
                parent = os.getpid() if method == "fork" else None  # else it is the fork server
                process = context.Process(target=_work, args=(self._read, theirs, parent), daemon=True)
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours))
        except OSError as error:
            raise ConfigError(
                f"a process that decodes cannot be started: {error.strerror or error}; "
                "data.num_workers=0 decodes in this one."
            ) from error

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


def _receive(connection: "Connection[Any, Any]") -> Result | UtteranceError:
    """Receive a result. Raises EOFError or OSError where the process is gone."""
    kind, value = json.loads(connection.recv_bytes())
    if kind == "error":
        return UtteranceError(value)
    if kind == "value":
        return value
    waveform = np.empty(value, np.float32)
    content = waveform.data.cast("B")
    for start in range(0, len(content), _BLOCK_BYTES):
        connection.recv_bytes_into(content[start : start + _BLOCK_BYTES])
    return waveform


def _work(read: Read, connection: "Connection[Any, Any]", parent: int | None) -> None:
    _live_for(parent)
    try:
        while True:
            _send(connection, _result(read, connection.recv()))
    except (EOFError, OSError):  # nobody is there to read for
        return


def _result(read: Read, task: Any) -> tuple[str, Result]:
    try:
        result = read(task)
    except Exception as error:
        return "error", str(error) if isinstance(error, UtteranceError) else f"{type(error).__name__}: {error}"
    return ("waveform" if isinstance(result, np.ndarray) else "value"), result


def _send(connection: "Connection[Any, Any]", result: tuple[str, Result]) -> None:
    kind, value = result
    connection.send_bytes(json.dumps([kind, value.size if kind == "waveform" else value]).encode())
    if kind == "waveform":
        content = np.ascontiguousarray(value).data.cast("B")
        for start in range(0, len(content), _BLOCK_BYTES):
            connection.send_bytes(content[start : start + _BLOCK_BYTES])


def _live_for(parent: int | None) -> None:
    """Leave signals to the process that this one reads for, end with it, and be the first to go for want of memory."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # not those of a progress bar, with its locks
    if sys.__stderr__ is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write there of every damaged file
    end_with_process(os.getppid() if parent is None else parent, signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    import torch

    torch.set_num_threads(1)

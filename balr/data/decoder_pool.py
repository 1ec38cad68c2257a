"""Worker processes that read files, an utterance per task: one that crashes or hangs costs what it was reading.

torch's DataLoader ends with its first dead worker and does not say at which file. Here the parent knows what each
worker reads and for how long.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self

import numpy as np

from balr.data.batching import Batch
from balr.data.decoder_worker import Empty, Read, Result, receive, work
from balr.errors import ConfigError, UtteranceError
from balr.shutdown import Stop

_TASKS_EACH = 2  # the second one waits in the pipe, so that a worker never waits for the parent
_POLL_SECONDS = 0.05
_LONGEST_COUNTED_SECONDS = 0.2  # between two looks at the workers: a run that is suspended costs no file its time
_SECONDS_TO_DIE = 5.0
_FORK = "fork"
_BESIDE_THREADS = "forkserver" if sys.platform == "linux" else "spawn"
_STARTING = threading.Lock()  # what a new process inherits is changed for a moment


@contextmanager
def _without_main_script() -> Iterator[None]:
    """Keep new processes from importing, and so running, a script that calls balr without a guard around its work."""
    main = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main.pop(name) for name in ("__spec__", "__file__") if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main |= hidden


@dataclass(eq=False)
class _Worker:
    """Hold a process, its pipe, its tasks as (batch number, index), and how long its first was waited for."""

    process: BaseProcess
    connection: "Connection[Any, Any]"
    tasks: deque[tuple[int, int]] = field(default_factory=deque)
    waited_seconds: float = 0.0


class DecoderPool:
    """Call `read` on each task of a plan in worker processes, with a timeout for each task.

    A context manager: its workers ignore signals and end with it. `read` raises UtteranceError if a file is bad. The
    first workers are forked unless it starts `beside_threads` that compute; these, and the ones that replace lost ones,
    come from a fork server, as a fork beside threads can copy a lock that is never released. Waveforms are received in
    memory from `empty`. Raises ConfigError if no worker can be started.
    """

    def __init__(
        self,
        read: Read,
        *,
        processes: int,
        timeout_seconds: float,
        beside_threads: bool = False,
        empty: Empty = lambda samples: np.empty(samples, np.float32),
    ) -> None:
        self._read, self._empty, self._timeout_seconds = read, empty, timeout_seconds
        self._looked_at = 0.0
        self._workers: list[_Worker] = []
        try:
            for _ in range(processes):
                self._start(_FORK if sys.platform == "linux" and not beside_threads else _BESIDE_THREADS)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.connection.close()
        for worker in self._workers:
            _end(worker.process)
        self._workers.clear()

    def results(
        self,
        plan: Sequence[Batch],
        tasks: Sequence[Any],
        *,
        ahead: int,
        stop: Stop,
        may_start: Callable[[int], bool] = lambda _: True,
    ) -> Iterator[tuple[int, list[Result | UtteranceError]]]:
        """Yield the number of each batch with the results of its tasks, as soon as all of them are there.

        At most `ahead` batches are started and not yet yielded, each as soon as `may_start` accepts its number. A task
        that cost its worker gives an UtteranceError. Ends early when `stop` is set.
        """
        left = deque(range(len(plan)))
        waiting: deque[tuple[int, int]] = deque()
        started: dict[int, dict[int, Result | UtteranceError]] = {}
        while (left or started) and not stop.is_set():
            while left and len(started) < ahead and len(waiting) < len(self._workers) and may_start(left[0]):
                number = left.popleft()
                started[number] = {}
                waiting.extend((number, index) for index in plan[number])
            self._send_tasks(waiting, tasks)
            for worker in self._ready_workers():
                (number, index), result = self._result_of(worker, waiting)
                started[number][index] = result
                if len(started[number]) == len(plan[number]):
                    found = started.pop(number)
                    yield number, [found[index] for index in plan[number]]
                    del found  # frees the waveforms before the next batch is awaited
                del result

    def _send_tasks(self, waiting: deque[tuple[int, int]], tasks: Sequence[Any]) -> None:
        for depth in range(1, _TASKS_EACH + 1):
            for worker in list(self._workers):
                if waiting and len(worker.tasks) < depth:
                    worker.tasks.append(waiting.popleft())
                    try:
                        worker.connection.send(tasks[worker.tasks[-1][1]])
                    except OSError:
                        if len(worker.tasks) == 1:  # it died with nothing to do; if at a task, `_result_of` finds it
                            self._replace(worker, waiting)

    def _ready_workers(self) -> list[_Worker]:
        """Wait for workers that have a result or died, and kill any that exceeds the timeout."""
        busy = [worker for worker in self._workers if worker.tasks]
        ready = wait([worker.connection for worker in busy], _POLL_SECONDS)
        now = time.monotonic()
        passed_seconds, self._looked_at = min(now - self._looked_at, _LONGEST_COUNTED_SECONDS), now
        found = [worker for worker in busy if worker.connection in ready]
        for worker in busy:
            if worker not in found:
                worker.waited_seconds += passed_seconds
                if worker.waited_seconds > self._timeout_seconds:
                    worker.process.kill()
                    worker.connection.close()  # what it may still answer is too late
                    found.append(worker)
        return found

    def _result_of(
        self, worker: _Worker, waiting: deque[tuple[int, int]]
    ) -> tuple[tuple[int, int], Result | UtteranceError]:
        """Return a worker's first task with its result; a dead worker is replaced, and its other tasks wait again."""
        task = worker.tasks.popleft()
        try:
            result = receive(worker.connection, self._empty)
            worker.waited_seconds = 0.0
        except Exception:  # it is dead or late, or a hostile file speaks for it
            result = UtteranceError(self._replace(worker, waiting))
        return task, result

    def _replace(self, worker: _Worker, waiting: deque[tuple[int, int]]) -> str:
        """Start another worker with the tasks of a lost one, and return what became of that."""
        _end(worker.process)
        cause = self._cause_of_death(worker)
        worker.connection.close()
        self._workers.remove(worker)
        waiting.extendleft(reversed(worker.tasks))
        try:
            self._start(_BESIDE_THREADS)
        except ConfigError:
            if not self._workers:
                raise
        return cause

    def _start(self, method: str) -> None:
        context: Any = multiprocessing.get_context(method)
        context.set_forkserver_preload(["balr.data.decoding"])
        try:
            with _STARTING, _without_main_script():
                connection, worker_connection = context.Pipe()
                parent = os.getpid() if method == _FORK else None  # otherwise the parent is the fork server
                process = context.Process(target=work, args=(self._read, worker_connection, parent), daemon=True)
                process.start()
                worker_connection.close()
                self._workers.append(_Worker(process, connection))
        except OSError as error:
            raise ConfigError(
                f"a decoder process cannot be started: {error.strerror or error}; "
                "data.num_workers=0 decodes in this process."
            ) from error

    def _cause_of_death(self, worker: _Worker) -> str:
        if worker.connection.closed:
            return f"reading it took over {self._timeout_seconds:g} s (data.decode_timeout_seconds) and was ended"
        code = worker.process.exitcode or 0
        if code >= 0:
            return f"the process that read it ended with exit code {code}"
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
        hint = " (out of memory?)" if name == "SIGKILL" else ": the file crashes its decoder"
        return f"the process that read it was ended by {name}{hint}"


def _end(process: BaseProcess) -> None:
    process.kill()
    process.join(_SECONDS_TO_DIE)
    if process.exitcode is None:  # it waits for a disk or a network, for ever perhaps; Python's exit would wait, too
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]

"""From decoded batches to saved embeddings: threads that compute, one that saves, bounded queues between them.

The thread that calls this decodes. Everything ends in order when the stop flag is set, which is looked at between
batches: what is being computed is finished and saved. An error of any thread sets the flag and is raised at the end.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from balr.records import Failure
from balr.shutdown import Stop

_Batch = TypeVar("_Batch")
_Outcome = TypeVar("_Outcome")

_MOST_UNSAVED = 64  # batches that wait for the thread that saves
_SECONDS_TO_GATHER = 0.25
SAVED_TOGETHER = 32  # each flush costs the less the more there are; each file is open until then


@dataclass
class _Threads(Generic[_Batch, _Outcome]):
    embed: Callable[[_Batch], Sequence[_Outcome]]
    deliver: Callable[[Sequence[_Outcome]], None]
    stop: Stop
    todo: "queue.Queue[_Batch | None]" = field(default_factory=lambda: queue.Queue(1))
    done: "queue.Queue[Sequence[_Outcome] | None]" = field(default_factory=lambda: queue.Queue(_MOST_UNSAVED))
    errors: list[BaseException] = field(default_factory=list)

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)
        self.stop.set()

    def compute(self, prepare: Callable[[], None]) -> None:
        try:
            prepare()
        except BaseException as error:
            self.fail(error)
        while (batch := self.todo.get()) is not None:
            try:
                if not self.stop.is_set():
                    self.done.put(self.embed(batch))
            except BaseException as error:
                self.fail(error)
            del batch  # free its memory before waiting for the next one

    def save(self) -> None:
        is_last, can_save = False, True
        while not is_last:
            outcomes, is_last = self._next_to_save()
            if not can_save:
                continue
            try:
                self.deliver(outcomes)
            except BaseException as error:
                can_save = False
                self.fail(error)

    def _next_to_save(self) -> tuple[list[_Outcome], bool]:
        """Wait for the outcomes of a batch, and take with them what comes within a moment: it is saved in one go."""
        outcomes: list[_Outcome] = []
        found = self.done.get()
        deadline = time.monotonic() + _SECONDS_TO_GATHER
        while found is not None:
            outcomes += found
            left = deadline - time.monotonic()
            if len(outcomes) >= SAVED_TOGETHER or left <= 0 or any(isinstance(one, Failure) for one in found):
                return outcomes, False
            try:
                found = self.done.get(timeout=left)
            except queue.Empty:
                return outcomes, False
        return outcomes, True


def run_pipeline(
    batches: Iterable[_Batch],
    embed: Callable[[_Batch], Sequence[_Outcome]],
    deliver: Callable[[Sequence[_Outcome]], None],
    *,
    threads: int,
    prepare: Callable[[], None],
    stop: Stop,
) -> None:
    """Embed batches in several threads and deliver what becomes of them in one, in the order in which they are done.

    A Failure is delivered at once, other outcomes a few together. `prepare` is called first in each thread that
    computes. Raises the first error of any thread, when what could be saved is saved.
    """
    work = _Threads(embed, deliver, stop)
    computing = [threading.Thread(target=work.compute, args=(prepare,), name=f"embed-{n}") for n in range(threads)]
    saving = threading.Thread(target=work.save, name="save")
    for thread in (*computing, saving):
        thread.start()
    try:
        for batch in batches:
            if stop.is_set():
                break
            work.todo.put(batch)
            del batch
    except BaseException as error:
        work.fail(error)
    for _ in computing:
        work.todo.put(None)
    for thread in computing:
        thread.join()
    work.done.put(None)
    saving.join()
    if work.errors:
        raise work.errors[0]

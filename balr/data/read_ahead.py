"""How much audio may be decoded before its embeddings are there: the bound of a run's memory."""

import threading
from collections.abc import Iterable, Sequence

from balr.data.batching import Batch


class ReadAhead:
    """Count the seconds of audio from the moment a process begins to decode it until it is embedded.

    `seconds` are those of each utterance by index, as its header has it, and `most_seconds` the bound for all that are
    on their way. A batch that is longer than the bound goes alone.
    """

    def __init__(self, ids: Sequence[str], seconds: Sequence[float], *, most_seconds: float) -> None:
        self._index = {id_: index for index, id_ in enumerate(ids)}
        self._seconds = seconds
        self._most_seconds = most_seconds
        self._on_the_way: dict[int, float] = {}
        self._total = 0.0
        self._changed = threading.Condition()

    def reserve(self, batch: Batch) -> bool:
        """Count a batch in and return True, or return False where there is no room for it now."""
        with self._changed:
            new = {index: self._seconds[index] for index in batch}
            seconds = sum(new.values())
            if self._on_the_way and self._total + seconds > self._most_seconds:
                return False
            self._on_the_way |= new
            self._total += seconds
            return True

    def release(self, ids: Iterable[str]) -> None:
        """Count utterances out."""
        with self._changed:
            for id_ in ids:
                self._total -= self._on_the_way.pop(self._index[id_], 0.0)
            if not self._on_the_way:
                self._total = 0.0  # rounding does not add up
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until utterances are counted out, but not for long."""
        with self._changed:
            self._changed.wait(seconds)

"""How much audio may be decoded ahead of the network, which bounds a run's memory."""

import threading
from collections.abc import Sequence

from balr.data.batching import Batch


class ReadAhead:
    """Count the seconds of audio that are decoded, or being decoded, and not embedded yet.

    `seconds` is the length of each utterance by its header, and `most_seconds` the most that may be reserved at a time.
    A batch that is longer than that is reserved when nothing else is.
    """

    def __init__(self, seconds: Sequence[float], *, most_seconds: float) -> None:
        self._seconds = seconds
        self._most_seconds = most_seconds
        self._reserved: dict[int, float] = {}
        self._total = 0.0
        self._changed = threading.Condition()

    def reserve(self, batch: Batch) -> bool:
        """Reserve room for a batch of indices; return False if there is not enough now."""
        with self._changed:
            new = {index: self._seconds[index] for index in batch}
            seconds = sum(new.values())
            if self._reserved and self._total + seconds > self._most_seconds:
                return False
            self._reserved |= new
            self._total += seconds
            return True

    def release(self, batch: Batch) -> None:
        """Free the room of a batch."""
        with self._changed:
            for index in batch:
                self._total -= self._reserved.pop(index, 0.0)
            if not self._reserved:
                self._total = 0.0  # rounding errors do not add up
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until room is freed, or for so many seconds."""
        with self._changed:
            self._changed.wait(seconds)

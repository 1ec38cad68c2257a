"""How much audio may be decoded ahead of the network, which bounds a run's memory."""

import threading


class ReadAhead:
    """Count the seconds of audio that are decoded, or being decoded, and not embedded yet, by batch.

    `most_seconds` is the most that may be reserved at a time. A batch that is longer than that is reserved when nothing
    else is.
    """

    def __init__(self, *, most_seconds: float) -> None:
        self._most_seconds = most_seconds
        self._batches = 0
        self._total = 0.0
        self._changed = threading.Condition()

    def reserve(self, seconds: float) -> bool:
        """Reserve room for a batch; return False if there is not enough now."""
        with self._changed:
            if self._batches and self._total + seconds > self._most_seconds:
                return False
            self._batches += 1
            self._total += seconds
            return True

    def release(self, seconds: float) -> None:
        """Free the room of a batch."""
        with self._changed:
            self._batches -= 1
            self._total = self._total - seconds if self._batches else 0.0  # rounding errors do not add up
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until room is freed, or for so many seconds."""
        with self._changed:
            self._changed.wait(seconds)

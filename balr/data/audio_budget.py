"""How many seconds of audio may be in one stage of a run at a time, which bounds its memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class AudioBudget:
    """Share `most_seconds` of audio among threads; what is longer than that has its turn when nothing else has."""

    def __init__(self, most_seconds: float = 0.0) -> None:
        self._most_seconds = most_seconds
        self._count = 0
        self._total = 0.0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, seconds: float, *, of: float | None = None) -> Iterator[None]:
        """Reserve some seconds, of another limit if given, as soon as they are free."""
        with self._changed:
            self._changed.wait_for(lambda: self.try_reserve(seconds, of=of))
        try:
            yield
        finally:
            self.release(seconds)

    def try_reserve(self, seconds: float, *, of: float | None = None) -> bool:
        """Reserve some seconds, of another limit if given; return False if there is not enough now."""
        with self._changed:
            if self._count and self._total + seconds > (self._most_seconds if of is None else of):
                return False
            self._count += 1
            self._total += seconds
            return True

    def release(self, seconds: float) -> None:
        """Give back what was reserved."""
        with self._changed:
            self._count -= 1
            self._total = self._total - seconds if self._count else 0.0  # rounding errors do not add up
            self._changed.notify_all()

"""AudioBudget for long audio: how much of it threads may hold at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class AudioBudget:
    """Let threads take seconds of audio from a limit that they share, and wait where there are too few left."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0.0

    @contextmanager
    def reserve(self, seconds: float, *, of: float) -> Iterator[None]:
        """Hold so many seconds of a limit; what is longer than the limit has it for itself."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + seconds <= of)
            self._taken += seconds
        try:
            yield
        finally:
            with self._changed:
                self._taken -= seconds
                if abs(self._taken) < 1e-6:
                    self._taken = 0.0
                self._changed.notify_all()

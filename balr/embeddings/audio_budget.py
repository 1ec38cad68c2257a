"""How many seconds of audio the threads of a run may embed at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class AudioBudget:
    """Share a number of seconds of audio among threads, which wait until enough of them are free."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reserved: list[float] = []

    @contextmanager
    def reserve(self, seconds: float, *, of: float) -> Iterator[None]:
        """Reserve some seconds of a limit; audio longer than the limit waits until nothing else is reserved."""
        with self._changed:
            self._changed.wait_for(lambda: not self._reserved or sum(self._reserved) + seconds <= of)
            self._reserved.append(seconds)
        try:
            yield
        finally:
            with self._changed:
                self._reserved.remove(seconds)
                self._changed.notify_all()

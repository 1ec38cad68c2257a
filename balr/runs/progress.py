"""Progress of a run: a bar on a terminal, else a log line every half minute."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from balr.errors import one_line
from balr.records import Failure
from balr.runs.summary import duration, utterances

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0


class Tally:
    """Count what becomes of `todo` utterances and show it; `job` is the name of a job in a sweep."""

    def __init__(self, *, todo: int, job: str = "embedding") -> None:
        self.todo = todo
        self.embedded_count = 0
        self.upsampled = 0
        self.audio_seconds = 0.0
        self.failures: list[Failure] = []
        self._planned_seconds = 0.0
        self._under_way_seconds = 0.0
        self._started: float | None = None
        self._ended: float | None = None
        self._last_line = 0.0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(job, total=None, count="", pace="")

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended = time.monotonic()
        self._bar.stop()

    @property
    def wall_seconds(self) -> float:
        return 0.0 if self._started is None else (self._ended or time.monotonic()) - self._started

    def planned(self, audio_seconds: float, *, upsampled: int) -> None:
        """Begin to measure: the headers of all files are read."""
        self._planned_seconds = audio_seconds
        self.upsampled = upsampled
        self._start()

    def embedded(self, audio_seconds: float) -> None:
        """Count an embedding."""
        self.embedded_count += 1
        self.audio_seconds += audio_seconds
        self._show()

    def failed(self, failure: Failure) -> None:
        """Count a failure and log it."""
        self.failures.append(failure)
        log.warning("%s: %s: %s", one_line(failure.id), failure.stage, failure.reason)
        self._show()

    def _start(self) -> None:
        self._started = self._last_line = time.monotonic()

    def _show(self) -> None:
        if not self._bar.live.is_started and not self._bar.disable:
            self._bar.start()  # not before the first result: a thread must not run while workers are forked
        done = self.embedded_count + len(self.failures)
        speed = self.audio_seconds / max(self.wall_seconds, 1e-9)
        pace = f"{duration(self.audio_seconds)} of audio, {speed:.0f} x real time"
        if self.failures:
            pace += f", {len(self.failures)} failed"
        # By audio, not by utterances: the longest come first.
        planned = max(self._planned_seconds, self.audio_seconds)
        count = f"{done}/{self.todo}"
        self._bar.update(self._task, total=planned, completed=self.audio_seconds, count=count, pace=pace)
        if self._bar.disable and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = self.wall_seconds * (planned / self.audio_seconds - 1) if self.audio_seconds else None
            ending = "" if left is None else f", {duration(left)} left"
            log.info("%s of %s, %s%s", f"{done:,}", utterances(self.todo), pace, ending)

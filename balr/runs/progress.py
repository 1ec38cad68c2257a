"""Progress of a run: a bar on a terminal, else a log line every half minute.

Jobs side by side cannot share a terminal, so each leaves its progress in a file and their sweep draws a bar for each.
"""

import json
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from balr.errors import one_line
from balr.records import Failure, Utterance
from balr.runs.summary import duration, utterances

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_REPORTS = 0.5
_REPORT = "progress.json"


class Tally:
    """Count what becomes of `todo` utterances and show it, on a bar that is called `job` or in the file `report_to`."""

    def __init__(self, *, todo: int, job: str = "embedding", report_to: Path | None = None) -> None:
        self.todo = todo
        self.embedded_count = 0
        self.upsampled = 0
        self.audio_seconds = 0.0
        self.failures: list[Failure] = []
        self._planned_seconds = 0.0
        self._under_way_seconds = 0.0
        self._started: float | None = None
        self._ended: float | None = None
        self._last_line = self._last_report = 0.0
        self._lock = threading.Lock()
        self._report_to = report_to
        self._bar = _bar(disable=report_to is not None or not sys.stderr.isatty())
        self._job = job
        self._task = self._bar.add_task(job, total=None, count="", pace="")

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended = time.monotonic()
        self._last_report = 0.0
        self._show()
        self._bar.stop()

    @property
    def wall_seconds(self) -> float:
        return 0.0 if self._started is None else (self._ended or time.monotonic()) - self._started

    @property
    def shown_seconds(self) -> float:
        """Return the seconds of audio that are done, parts of utterances included."""
        return self.audio_seconds + self._under_way_seconds

    def planned(self, audio_seconds: float, *, upsampled: int) -> None:
        """Begin to measure: headers are read, of a large corpus those of its next part."""
        if not self._planned_seconds:
            self._start()
        self._planned_seconds += audio_seconds
        self.upsampled += upsampled

    def under_way(self, audio_seconds: float) -> None:
        """Show that so much of a long utterance is done."""
        with self._lock:
            self._under_way_seconds += audio_seconds
        self._show()

    def embedded(self, _: Utterance, audio_seconds: float) -> None:
        """Count an embedding."""
        self.embedded_count += 1
        self.audio_seconds += audio_seconds
        with self._lock:  # a part of it may have been shown; never take back more, so that the bar only grows
            self._under_way_seconds -= min(audio_seconds, self._under_way_seconds)
        self._show()

    def failed(self, failure: Failure) -> None:
        """Count a failure and log it."""
        self.failures.append(failure)
        log.warning("%s: %s: %s", one_line(failure.id), failure.stage, failure.reason)
        self._show()

    def _start(self) -> None:
        self._started = self._last_line = time.monotonic()

    def _show(self) -> None:
        if self.shown_seconds and not self._bar.live.is_started and not self._bar.disable:
            self._bar.start()  # not before the first result: a thread must not run while workers are forked
        done = self.embedded_count + len(self.failures)
        seconds = self.shown_seconds
        speed = seconds / max(self.wall_seconds, 1e-9)
        pace = f"{duration(seconds)} of audio, {speed:.0f} x real time"
        if self.failures:
            pace += f", {len(self.failures)} failed"
        # By audio, not by utterances: the longest come first.
        planned = max(self._planned_seconds, seconds)
        count = f"{done}/{self.todo}"
        fields: dict[str, Any] = {"total": planned, "completed": seconds, "count": count, "pace": pace}
        self._bar.update(self._task, **fields)
        if self._report_to is not None and time.monotonic() - self._last_report > _SECONDS_BETWEEN_REPORTS:
            self._last_report = time.monotonic()
            with suppress(OSError):  # a full disk is reported by what has to be saved
                self._report_to.write_text(json.dumps({"description": self._job, **fields}), encoding="utf-8")
        if self._bar.disable and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = self.wall_seconds * (planned / seconds - 1) if seconds else None
            ending = "" if left is None else f", {duration(left)} left"
            log.info("%s of %s, %s%s", f"{done:,}", utterances(self.todo), pace, ending)


class SweepBars:
    """Draw a bar for each job of a sweep that leaves its progress below a folder."""

    process: int | None = None  # the one that follows jobs, which have others

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bar = _bar(disable=not sys.stderr.isatty())
        self._tasks: dict[Path, TaskID] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="bars", daemon=True)

    def start(self) -> None:
        """Begin to look for jobs; not in a process that forks, as a fork may copy a lock that the thread has."""
        SweepBars.process = os.getpid()
        self._thread.start()

    def stop(self) -> None:
        """Leave the bars as they are."""
        self._end.set()
        self._thread.join()
        self._bar.stop()

    def _watch(self) -> None:
        while not self._end.wait(_SECONDS_BETWEEN_REPORTS):
            for file in sorted(self._folder.glob(f"*/{_REPORT}")):
                with suppress(OSError, ValueError):  # it is being written
                    fields = json.loads(file.read_text(encoding="utf-8"))
                    if file not in self._tasks:
                        self._bar.start()
                        self._tasks[file] = self._bar.add_task(**fields)
                    self._bar.update(self._tasks[file], **fields)


def is_in_job_process() -> bool:
    """Return whether a launcher has started this process, here or on another machine, for a job of a sweep."""
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    is_alone = hydra is None or hydra.mode != RunMode.MULTIRUN or hydra.runtime.choices["hydra/launcher"] == "basic"
    return not is_alone and SweepBars.process != os.getpid()


def report_file(run_dir: Path) -> Path | None:
    """Return where a job leaves its progress, if another process draws the bars."""
    return run_dir / _REPORT if is_in_job_process() else None


def _bar(*, disable: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        disable=disable,
    )

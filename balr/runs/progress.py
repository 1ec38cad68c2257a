"""What a run tells: progress while it goes on, and a closing summary that adds up."""

import io
import logging
import os
import sys
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table

from balr.errors import Failure, one_line, redacted

log = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_SECONDS_BETWEEN_LINES = 30.0


def open_missing_streams() -> None:
    """Put nothing in the place of a standard stream that is closed: the next file opened would pass for it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


class TerminalHandler(logging.Handler):
    """Write log lines to what stderr is at that moment, above a progress bar; tracebacks go to the log file only."""

    def emit(self, record: logging.LogRecord) -> None:
        kept, record.exc_info, record.exc_text = record.exc_info, None, None
        try:
            sys.stderr.write(self.format(record) + "\n")
        except OSError:  # nobody reads, or its disk is full: the log file has it
            pass
        finally:
            record.exc_info = kept


class LogFile(logging.FileHandler):
    """Write the log of a run; a disk that is full is told of once, by what needs it, not at every line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Do without the line."""

    def flush(self) -> None:
        """Write what is held back, where there is room."""
        with suppress(OSError):  # or logging would not close the file
            super().flush()


class PlainFormatter(logging.Formatter):
    """Format log lines, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or lines of a record."""
        return redacted(super().format(record))


@dataclass(frozen=True)
class Report:
    """Add up a run: `total` = embedded + already_there + without_audio + failed + not_reached."""

    total: int
    embedded: int
    already_there: int
    without_audio: int
    failures: tuple[Failure, ...]
    upsampled: int
    audio_seconds: float
    wall_seconds: float
    vectors_in: str
    lists_in: Path | None

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def not_reached(self) -> int:
        return self.total - self.embedded - self.already_there - self.without_audio - self.failed

    def tolerated(self, max_failures: str) -> bool:
        """Tell whether as many failures as there are may be: a number of utterances, or a share of all such as `1%`."""
        share = max_failures.endswith("%")
        most = float(max_failures.rstrip("%")) / 100 * self.total if share else int(max_failures)
        return self.failed <= most and not self.not_reached

    def facts(self) -> dict[str, Any]:
        """Return what goes into the record of the run."""
        names = ("total", "embedded", "already_there", "without_audio", "failed", "not_reached", "upsampled")
        return {
            "counts": {name: getattr(self, name) for name in names},
            "audio_hours": round(self.audio_seconds / 3600, 6),
            "embedding_seconds": round(self.wall_seconds, 3),
            "x_real_time": round(self.audio_seconds / max(self.wall_seconds, 1e-9), 1),
        }


class Tally:
    """Count what a model does and show it: a bar on a terminal, else a line every half minute."""

    def __init__(self, *, todo: int) -> None:
        self.todo = todo
        self.embedded_count = 0
        self.upsampled = 0
        self.audio_seconds = 0.0
        self.failures: list[Failure] = []
        self._planned_seconds = 0.0
        self._started: float | None = None
        self._ended: float | None = None
        self._last_line = 0.0
        self._bar = Progress(
            TextColumn("embedding"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=None, count="", pace="")

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
        self._planned_seconds = audio_seconds
        self.upsampled = upsampled
        self._start()  # headers are read

    def embedded(self, audio_seconds: float) -> None:
        self.embedded_count += 1
        self.audio_seconds += audio_seconds
        self._show()

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)
        log.warning("%s: %s: %s", one_line(failure.id), failure.stage, failure.reason)
        self._show()

    def _start(self) -> None:
        self._started = self._last_line = time.monotonic()

    def _show(self) -> None:
        if not self._bar.live.is_started and not self._bar.disable:
            self._bar.start()  # not before the first result: a thread must not run while workers are forked
        done = self.embedded_count + len(self.failures)
        pace = f"{_hours(self.audio_seconds)} of audio, {_pace(self.audio_seconds, self.wall_seconds)} real time"
        if self.failures:
            pace += f", {len(self.failures)} failed"
        # By audio, not by utterances: the longest come first.
        planned = max(self._planned_seconds, self.audio_seconds)
        count = f"{done}/{self.todo}"
        self._bar.update(self._task, total=planned, completed=self.audio_seconds, count=count, pace=pace)
        if self._bar.disable and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = self.wall_seconds * (planned / self.audio_seconds - 1) if self.audio_seconds else None
            log.info("%s utterances, %s%s", count, pace, "" if left is None else f", {left / 60:.0f} min left")


def tracked(items: Collection[_Item], what: str) -> Iterable[_Item]:
    """Yield items and show on a terminal how many are left."""
    hidden = not sys.stderr.isatty()
    return track(items, what, console=Console(stderr=True), transient=True, disable=hidden)


def shown(path: Path) -> str:
    """Return a path as a person in the current folder would type it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def summary(report: Report) -> str:
    """Render a report as a small table."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("utterances in", f"{report.total:,}")
    table.add_row("  embedded", f"{report.embedded:,}")
    table.add_row("  already there", f"{report.already_there:,}")
    for name, count in (("without audio", report.without_audio), ("not reached", report.not_reached)):
        if count:
            table.add_row(f"  {name}", f"{count:,}")
    table.add_row("  failed", f"{report.failed:,}")
    if report.embedded:
        table.add_row("audio embedded", _hours(report.audio_seconds))
        table.add_row("speed", f"{_pace(report.audio_seconds, report.wall_seconds)} real time")
    table.add_row("embeddings", report.vectors_in)
    if report.lists_in is not None:
        table.add_row("list", shown(report.lists_in / "metadata.csv"))
        if report.failed:
            table.add_row("failures", shown(report.lists_in / "failures.csv"))
    return as_text(table)


def as_text(table: Table) -> str:
    """Render a table as plain lines."""
    text = io.StringIO()
    Console(file=text, width=1000, no_color=True, markup=False, emoji=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.1f} s"


def _pace(audio_seconds: float, wall_seconds: float) -> str:
    return f"{audio_seconds / max(wall_seconds, 1e-9):.0f} x"

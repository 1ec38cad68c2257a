"""What became of a run, added up: the summary on the terminal and the counts in run.json."""

import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from balr.records import Failure


@dataclass(frozen=True)
class Summary:
    """Add up a run: `total` = embedded + already_there + without_audio + failed + not_reached.

    `lists` are the paths of metadata.csv and failures.csv, None where nothing was to be saved.
    """

    total: int
    embedded: int
    already_there: int
    without_audio: int
    failures: tuple[Failure, ...]
    upsampled: int
    audio_seconds: float
    wall_seconds: float
    embeddings_in: str
    lists: tuple[Path, Path] | None

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def not_reached(self) -> int:
        return self.total - self.embedded - self.already_there - self.without_audio - self.failed

    @property
    def x_real_time(self) -> float:
        return self.audio_seconds / max(self.wall_seconds, 1e-9)

    def is_tolerated(self, max_failures: str) -> bool:
        """Return whether all were reached and no more failed than a number of utterances, or a share such as `1%`."""
        is_share = max_failures.endswith("%")
        most = float(max_failures.rstrip("%")) / 100 * self.total if is_share else int(max_failures)
        return self.failed <= most and not self.not_reached

    def facts(self) -> dict[str, Any]:
        """Return what goes into the record of the run."""
        names = ("total", "embedded", "already_there", "without_audio", "failed", "not_reached", "upsampled")
        return {
            "counts": {name: getattr(self, name) for name in names},
            "audio_hours": round(self.audio_seconds / 3600, 6),
            "embedding_seconds": round(self.wall_seconds, 3),
            "x_real_time": round(self.x_real_time, 1),
        }

    def as_text(self) -> str:
        """Render as a small table."""
        rows = [("utterances in", f"{self.total:,}"), ("  embedded", f"{self.embedded:,}")]
        rows += [("  already there", f"{self.already_there:,}")]
        few = (("without audio", self.without_audio), ("not reached", self.not_reached))
        rows += [(f"  {name}", f"{count:,}") for name, count in few if count]
        rows += [("  failed", f"{self.failed:,}")]
        if self.embedded:
            rows += [("audio embedded", duration(self.audio_seconds)), ("speed", f"{self.x_real_time:.0f} x real time")]
        rows += [("embeddings", self.embeddings_in)]
        if self.lists is not None:
            rows += [("list", relative(self.lists[0]))]
            rows += [("failures", relative(self.lists[1]))] if self.failed else []
        return as_text(rows)


def utterances(count: int) -> str:
    """Return a count with its noun: `1 utterance`, `2,000 utterances`."""
    return f"{count:,} utterance{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def relative(path: Path) -> str:
    """Return a path as a person in the current folder would type it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def as_text(rows: Iterable[Sequence[str]], columns: Sequence[str] = (), *, left: Collection[str] = ()) -> str:
    """Render a table as plain lines; named columns are set to the right, but for those in `left`."""
    table = Table(show_header=bool(columns), box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right")
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=1000, no_color=True, markup=False, emoji=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

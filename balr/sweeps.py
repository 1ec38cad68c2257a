"""The jobs of a sweep: each leaves its result in its run folder, and the sweep ends with a table of all."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.table import Table

from balr.atomic import whole_file
from balr.runs.summary import Summary, as_text

SOME_FAILED = 1
_RESULT = "job.json"


@dataclass(frozen=True)
class JobResult:
    """What became of a job: its exit code, the counts of its run if it got so far, else the reason why not."""

    job: str
    exit_code: int
    embedded: int | None = None
    failed: int | None = None
    x_real_time: float | None = None
    folder: str = ""
    reason: str = ""

    @classmethod
    def of(cls, job: str, exit_code: int, result: Summary | str) -> "JobResult":
        """Return the result of a job that has a summary, or of one that ended with an error message."""
        if isinstance(result, str):
            return cls(job, exit_code, reason=result)
        return cls(job, exit_code, result.embedded, result.failed, result.x_real_time, result.embeddings_in)

    def write(self, run_dir: Path) -> None:
        """Leave the result where the sweep looks for it. Raises OutputError."""
        with whole_file(run_dir / _RESULT) as file:
            file.write(json.dumps(asdict(self)).encode())

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        if self.embedded is None or self.failed is None:
            return (self.job, "-", "-", "-", self.reason)
        speed = f"{self.x_real_time:.0f} x" if self.embedded else "-"
        return (self.job, f"{self.embedded:,}", f"{self.failed:,}", speed, self.folder)


class SweepTable(Callback):
    """Print what became of each job when all have ended; exit code 1 where one of them has another than 0."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Read the results of the jobs and print them."""
        files = Path(config.hydra.sweep.dir).rglob(_RESULT)
        results = [JobResult(**json.loads(file.read_text(encoding="utf-8"))) for file in sorted(files, key=_number)]
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("job", "embedded", "failed", "x real time", "embeddings"):
            table.add_column(name, justify="right" if name in ("embedded", "failed", "x real time") else "left")
        for result in results:
            table.add_row(*result.cells())
        sys.stderr.write(f"{as_text(table)}\n")
        bad = [result.job for result in results if result.exit_code]
        if bad:
            sys.stderr.write(f"ERROR {len(bad)} of {len(results)} jobs failed: {', '.join(bad)}\n")
            raise SystemExit(SOME_FAILED)


def _number(file: Path) -> tuple[int, str]:
    name = file.parent.name
    return (int(name) if name.isdecimal() else 0, name)

"""A job of Hydra's: check, run, exit code. Jobs of a sweep leave their results, and it ends with a table of all."""

import json
import logging
import multiprocessing
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table

from balr.atomic import whole_file
from balr.composition import check, register
from balr.config import RunConfig
from balr.errors import BalrError, CheckpointError, one_line
from balr.launchers import end_as_stopped, fetch_models, kill_children, process_above
from balr.logs import name_lines
from balr.runs.progress import SweepBars
from balr.runs.summary import Summary, as_text
from balr.shutdown import Stop, end_with_process, handle_signals, stop_on_signals

log = logging.getLogger(__name__)

DONE, SOME_FAILED, REFUSED = 0, 1, 2
_RESULT = "job.json"
_REASON_CHARACTERS = 60  # the whole is in the log of the job


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
            return (self.job, "-", "-", "-", self.reason[:_REASON_CHARACTERS])
        speed = f"{self.x_real_time:.0f} x" if self.embedded else "-"
        above = self.folder.removesuffix(self.job)  # the table would be too wide with the name twice
        return (self.job, f"{self.embedded:,}", f"{self.failed:,}", speed, f"{above}…" if above else self.folder)


def run_job(cfg: DictConfig) -> None:
    """Do one job of Hydra's and end the process with its exit code; a job of a sweep leaves its result instead."""
    register()  # again, as a job of a parallel sweep runs in a process of its own
    is_of_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    is_elsewhere = is_of_sweep and SweepTable.process != os.getpid()
    starter = process_above() if is_elsewhere else None
    with stop_on_signals() as stop:
        if starter is not None:
            end_with_process(starter, signal.SIGTERM)
        result = _run(cfg, stop, is_of_sweep=is_of_sweep)
    if starter not in (None, os.getppid()):  # a launcher's process would wait for more work, and none will come
        os._exit(result.exit_code)
    if is_of_sweep and (stop.exit_code is None or is_elsewhere):
        result.write(_run_dir())
    elif result.exit_code:
        raise SystemExit(result.exit_code)
    if is_elsewhere and stop.number is not None and multiprocessing.parent_process() is None:
        end_as_stopped(stop.number, result.exit_code)


def _run(cfg: DictConfig, stop: Stop, *, is_of_sweep: bool) -> JobResult:
    name = f"job {HydraConfig.get().job.num}" if is_of_sweep else "embedding"
    try:
        settings = check(cfg)
        if is_of_sweep and settings.save_dir:
            name = "/".join(Path(settings.save_dir).parts[-2:])
            name_lines(name)

        from balr.extraction import run  # not for --help or --cfg

        summary = run(settings, run_dir=_run_dir(), stop=stop, job=name)
    except (BalrError, OmegaConfBaseException) as error:
        log.error("%s", one_line(error))
        return JobResult.of(name, REFUSED, one_line(error))
    except Exception as error:
        reason = f"unexpected {type(error).__name__}: {one_line(error)}"
        log.exception("%s (traceback in %s)", reason, _run_dir() / f"{HydraConfig.get().job.name}.log")
        return JobResult.of(name, REFUSED, reason)
    return JobResult.of(name, _close(settings, summary, stop), summary)


def _close(settings: RunConfig, summary: Summary, stop: Stop) -> int:
    """Log the summary of a run and return its exit code."""
    if stop.exit_code is not None:
        way_on = "the same command goes on from there" if settings.save_output else "nothing was to be saved"
        log.error("stopped by %s; %s\n%s", stop.signal_name, way_on, summary.as_text())
        return stop.exit_code
    log.info("%s\n%s", "stopped at the first failure" if summary.not_reached else "done", summary.as_text())
    if summary.is_tolerated(str(settings.max_failures)):
        return DONE
    log.warning("%d failed, and max_failures is %s: exit code %d", summary.failed, settings.max_failures, SOME_FAILED)
    return SOME_FAILED


def _run_dir() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


class SweepTable(Callback):
    """Draw a bar for each job of a parallel sweep; print what became of each job when all have ended.

    The exit code is 1 where a job has another than 0, or theirs where all that do were stopped by the same signal.
    """

    process: int | None = None  # that a sweep was started in; jobs may have others

    def __init__(self) -> None:
        self._at_the_end = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # it goes to the processes of the jobs, without bars and handlers

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Follow jobs in processes of their own; at a signal end at once, which each job takes as a graceful stop."""
        SweepTable.process = os.getpid()
        if config.hydra.runtime.choices["hydra/launcher"] == "basic":
            return
        try:
            fetch_models(config)
        except CheckpointError as error:
            sys.stderr.write(f"ERROR {error}\n")
            raise SystemExit(REFUSED) from error
        self._at_the_end.enter_context(env_override({"HF_HUB_OFFLINE": "1"}))
        self._at_the_end.enter_context(handle_signals(partial(self._exit, config.hydra.launcher._target_)))
        bars = SweepBars(Path(config.hydra.sweep.dir))
        bars.start()
        self._at_the_end.callback(bars.stop)

    def _exit(self, launcher: str, number: int, _: FrameType | None) -> None:
        self._at_the_end.close()
        if launcher.endswith(".LocalLauncher"):  # submitit's, whose processes would go on
            kill_children()
        os._exit(128 + number)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Read the results of the jobs and print them."""
        self._at_the_end.close()
        files = Path(config.hydra.sweep.dir).rglob(_RESULT)
        results = [JobResult(**json.loads(file.read_text(encoding="utf-8"))) for file in sorted(files, key=_number)]
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("job", "embedded", "failed", "x real time", "embeddings"):
            table.add_column(name, justify="right" if name in ("embedded", "failed", "x real time") else "left")
        for result in results:
            table.add_row(*result.cells())
        sys.stderr.write(f"{as_text(table)}\n")
        # Place for what needs all jobs, such as the merge of shards.
        bad = {result.job: result.exit_code for result in results if result.exit_code}
        if bad:
            sys.stderr.write(f"ERROR {len(bad)} of {len(results)} jobs failed: {', '.join(bad)}\n")
            is_stopped = len(set(bad.values())) == 1 and min(bad.values()) > 128
            raise SystemExit(min(bad.values()) if is_stopped else SOME_FAILED)


def _number(file: Path) -> tuple[int, str]:
    name = file.parent.name
    return (int(name) if name.isdecimal() else 0, name)

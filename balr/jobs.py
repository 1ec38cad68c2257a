"""A job of Hydra's: check, run, exit code. A job of a sweep leaves its result in a file."""

import json
import logging
import math
import multiprocessing
import os
import re
import signal
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from balr.atomic import whole_file
from balr.composition import check, register
from balr.config import RunConfig
from balr.errors import BalrError, one_line
from balr.logs import name_lines
from balr.runs.progress import is_in_job_process
from balr.runs.summary import Summary
from balr.shutdown import Stop, stop_on_signals

log = logging.getLogger(__name__)

DONE, SOME_FAILED, REFUSED = 0, 1, 2
RESULT = "job.json"
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
    eer: float | None = None

    @property
    def objective(self) -> float:
        """Return what a sweeper minimises: the EER, or without evaluation the seconds for a second of audio."""
        if self.eer is not None:
            return self.eer
        return 1 / self.x_real_time if self.x_real_time else math.inf

    def cells(self) -> dict[str, str]:
        """Return the row of the table by its columns."""
        above = self.folder.removesuffix(self.job)  # the table would be too wide with the name twice
        return {
            "job": self.job,
            "embedded": "-" if self.embedded is None else f"{self.embedded:,}",
            "failed": "-" if self.failed is None else f"{self.failed:,}",
            "x real time": f"{self.x_real_time:.0f} x" if self.embedded else "-",
            "EER": "-" if self.eer is None else f"{100 * self.eer:.2f}%",
            "embeddings": (f"{above}…" if above else self.folder) or self.reason[:_REASON_CHARACTERS],
        }


def run_job(cfg: DictConfig) -> float:
    """Do one job of Hydra's and end the process with its exit code; a job of a sweep leaves its result instead.

    Returns what a sweeper minimises.
    """
    register()  # again, as a job of a parallel sweep runs in a process of its own
    is_of_sweep, is_elsewhere = HydraConfig.get().mode == RunMode.MULTIRUN, is_in_job_process()
    pool = multiprocessing.parent_process() if is_elsewhere else None  # joblib's, whose end is that of the sweep
    with stop_on_signals(parent=None if pool is None else pool.pid) as stop:
        result = _run(cfg, stop, is_of_sweep=is_of_sweep)
    if pool is not None and pool.pid != os.getppid():  # this process would wait for more work, and none will come
        os._exit(result.exit_code)
    if is_of_sweep and (stop.exit_code is None or is_elsewhere):
        with whole_file(_run_dir() / RESULT) as file:
            file.write(json.dumps(asdict(result)).encode())
    elif result.exit_code:
        raise SystemExit(result.exit_code)
    if is_elsewhere and stop.number is not None and pool is None:
        end_as_stopped(stop.number, result.exit_code)
    return result.objective


def _run(cfg: DictConfig, stop: Stop, *, is_of_sweep: bool) -> JobResult:
    name = f"job {HydraConfig.get().job.num}" if is_of_sweep else "embedding"
    try:
        settings = check(cfg)
        if is_of_sweep and settings.save_dir:
            shard = f" {settings.shard.index}/{settings.shard.count}" if settings.shard.tag else ""
            name = f"{'/'.join(Path(settings.save_dir).parts[-2:])}{shard}"
            name_lines(name)

        from balr.extraction import run  # not for --help or --cfg

        summary = run(settings, run_dir=_run_dir(), stop=stop, job=name)
        code = _close(settings, summary, stop)
        eer = None if stop.is_set() else _evaluated(settings)
    except (BalrError, OmegaConfBaseException) as error:
        log.error("%s", one_line(error))
        return JobResult(name, REFUSED, reason=one_line(error))
    except Exception as error:
        reason = f"unexpected {type(error).__name__}: {one_line(error)}"
        log.exception("%s (traceback in %s)", reason, _run_dir() / f"{HydraConfig.get().job.name}.log")
        return JobResult(name, REFUSED, reason=reason)
    speed, folder = summary.x_real_time, summary.embeddings_in
    return JobResult(name, code, summary.embedded, summary.failed, speed, folder=folder, eer=eer)


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


def _evaluated(settings: RunConfig) -> float | None:
    """Judge the embeddings of a run where asked for, and return the EER."""
    if settings.evaluation is None or settings.save_dir is None:
        return None
    from balr.evaluate import as_text, evaluate

    judgement, folder = evaluate(Path(settings.save_dir).expanduser(), settings.evaluation)
    log.info("evaluated\n%s", as_text(judgement, folder))
    return judgement.metrics["eer"]


def _run_dir() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def end_as_stopped(number: int, exit_code: int) -> None:
    """Pass a signal on to the launcher, which may have the job started again, and end without a result for it.

    Returns where it will not be started again: submitit says so by an exception.
    """
    try:
        signal.raise_signal(number)
    except Exception as error:  # or SLURM, which is starting the job again, has ended the command that asked for it
        log.error("%s", one_line(error))
        if type(error).__name__ == "UncompletedJobError":
            return
    if not _is_cancelled():
        raise SystemExit(exit_code)  # with a result, the sweep would take the job for done


def _is_cancelled() -> bool:
    """Return whether SLURM ends this job for good, and counts no new start of it."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    job, starts = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")
    command = ["scontrol", "show", "job", "--oneliner", job]  # one line for each job of an array
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603
    return bool(re.search(rf"^JobId={job} .*JobState=COMPLETING .* Restarts={starts} ", shown, re.MULTILINE))

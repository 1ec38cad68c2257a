"""Jobs below submitit, SLURM and joblib: whose end is theirs, and which of them are started again."""

import logging
import multiprocessing
import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from balr.errors import one_line

log = logging.getLogger(__name__)


def process_above() -> int | None:
    """Return the process that started this one, where its end is the end of the sweep: joblib's and submitit's here."""
    pool = multiprocessing.parent_process()
    controller = os.environ.get("SUBMITIT_LOCAL_JOB_ID")
    return pool.pid if pool else int(controller) if controller else None


def kill_children() -> None:
    """Kill the processes that this one has started, where the system lists them."""
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text(encoding="ascii").split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)


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

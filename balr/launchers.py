"""What the launchers of sweeps need: models before jobs start, jobs that end with their sweep, or are started again."""

import logging
import multiprocessing
import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from balr.checkpoints import find_checkpoint
from balr.errors import one_line

log = logging.getLogger(__name__)


def fetch_models(sweep: DictConfig) -> None:
    """Have the Hub's files of every model that a sweep names on this machine.

    Raises CheckpointError. What is wrong with overrides, Hydra says when it composes the jobs.
    """
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (OmegaConf.select(sweep, "hydra.sweeper.params") or {}).items()]
    about_models = ("embeddings", "experiment")  # other keys may have thousands of values
    with suppress(HydraException, OmegaConfBaseException):
        given = OverridesParser.create(loader).parse_overrides([*params, *sweep.hydra.overrides.task])
        chosen = [one for one in given if not one.is_sweep_override() or one.key_or_group.startswith(about_models)]
        for job in BasicSweeper.split_arguments(chosen, max_batch_size=None)[0]:
            model = loader.load_sweep_config(sweep, job).embeddings.model
            folder = Path(model.model_dir or "").expanduser()
            is_local = model.model_dir and folder.is_dir() and any(folder.iterdir())
            if model.model_repo and not is_local:
                keys = ("model_repo", "model_name", "config_name", "model_dir", "revision")
                find_checkpoint(**{key: model[key] for key in keys})


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
        raise SystemExit(exit_code)  # a result would tell the sweep that the job is over


def _is_cancelled() -> bool:
    """Return whether SLURM ends this job for good, and counts no new start of it."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    job, starts = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")
    command = ["scontrol", "show", "job", "--oneliner", job]  # one line for each job of an array
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603
    return bool(re.search(rf"^JobId={job} .*JobState=COMPLETING .* Restarts={starts} ", shown, re.MULTILINE))

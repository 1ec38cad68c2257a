"""A sweep of Hydra's: models are fetched before its jobs, bars drawn meanwhile, and results put together."""

import json
import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from balr.checkpoints import find_checkpoint
from balr.composition import take_local_checkpoint
from balr.errors import CheckpointError, one_line
from balr.jobs import REFUSED, RESULT, SOME_FAILED, JobResult
from balr.runs.progress import SweepBars
from balr.runs.summary import as_text
from balr.shutdown import handle_signals

_SIGNAL = 128


class SweepTable(Callback):
    """Draw a bar for each job of a sweep whose jobs have processes of their own; print what became of each at the end.

    The exit code is 1 where jobs failed, or that of a signal where one signal stopped all that did. Of any exception
    but SystemExit, Hydra makes a warning.
    """

    def __init__(self) -> None:
        self._at_the_end = ExitStack()
        self._stale: set[tuple[Path, int]] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # it goes to the processes of the jobs, without bars and handlers

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Follow jobs in processes of their own; at a signal end at once, which each job takes as a graceful stop."""
        self._stale = _results_in(config)
        if config.hydra.runtime.choices["hydra/launcher"] == "basic":
            return
        try:
            fetch_models(config)
        except CheckpointError as error:
            sys.stderr.write(f"ERROR {error}\n")
            raise SystemExit(REFUSED) from None
        bars = SweepBars(Path(config.hydra.sweep.dir))
        bars.start()
        self._at_the_end.callback(bars.stop)
        self._at_the_end.enter_context(handle_signals(self._exit))

    def _exit(self, number: int, _: FrameType | None) -> None:
        self._at_the_end.close()
        os._exit(_SIGNAL + number)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the results that the jobs of this sweep left."""
        self._at_the_end.close()
        files = [file for file, _ in _results_in(config) - self._stale]
        in_order = sorted(files, key=lambda file: (len(file.parent.name), file.parent.name))  # by their numbers
        results = [JobResult(**json.loads(file.read_text(encoding="utf-8"))) for file in in_order]
        bad = {result.job: result.exit_code for result in results if result.exit_code}
        try:
            _show(results, Path(config.hydra.sweep.dir) / "report.html")
        finally:
            if bad:
                sys.stderr.write(f"ERROR {len(bad)} of {len(results)} jobs failed: {', '.join(bad)}\n")
                first, *others = {*bad.values()}
                raise SystemExit(SOME_FAILED if others or first < _SIGNAL else first)


def _results_in(sweep: DictConfig) -> set[tuple[Path, int]]:
    """Return the results in the folder of a sweep, which an earlier one may have had, and when they were written."""
    return {(file, file.stat().st_mtime_ns) for file in Path(sweep.hydra.sweep.dir).rglob(RESULT)}


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
            take_local_checkpoint(model, job)
            if model.model_repo:
                keys = ("model_repo", "model_name", "config_name", "model_dir", "revision")
                find_checkpoint(**{key: model[key] for key in keys})


def _show(results: list[JobResult], page: Path) -> None:
    """Print the table of the jobs, and write a page where they are evaluated."""
    judged = [Path(folder) for folder in dict.fromkeys(one.folder for one in results if one.eer is not None)]
    rows = [{name: cell for name, cell in one.cells().items() if name != "EER" or judged} for one in results]
    columns = list(rows[0]) if rows else []
    table = as_text([list(row.values()) for row in rows], columns, left=("job", "embeddings"))
    sys.stderr.write(f"{table}\n")
    if judged:
        try:
            from balr.report import report

            report(judged, page)
            sys.stderr.write(f"page     {page}\n")
        except Exception as error:
            sys.stderr.write(f"WARNING no page was written: {one_line(error)}\n")

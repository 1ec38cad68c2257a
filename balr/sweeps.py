"""A sweep of Hydra's: models are fetched before its jobs, bars drawn meanwhile, shards and results put together."""

import json
import os
import sys
from contextlib import ExitStack, suppress
from functools import partial
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from balr.checkpoints import find_checkpoint
from balr.errors import BalrError, CheckpointError
from balr.jobs import REFUSED, RESULT, SOME_FAILED, JobResult
from balr.launchers import kill_children
from balr.runs.progress import SweepBars
from balr.runs.summary import as_text
from balr.shutdown import handle_signals

_SIGNAL = 128
_COLUMNS = ("job", "embedded", "failed", "x real time", "EER", "embeddings")


class SweepTable(Callback):
    """Draw a bar for each job of a sweep whose jobs have processes of their own; print what became of each at the end.

    The exit code is 1 where jobs failed, or that of a signal where one signal stopped all that did.
    """

    def __init__(self) -> None:
        self._at_the_end = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # it goes to the processes of the jobs, without bars and handlers

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Follow jobs in processes of their own; at a signal end at once, which each job takes as a graceful stop."""
        if config.hydra.runtime.choices["hydra/launcher"] == "basic":
            return
        try:
            fetch_models(config)
        except CheckpointError as error:  # of which Hydra would make a warning
            sys.stderr.write(f"ERROR {error}\n")
            raise SystemExit(REFUSED) from None
        bars = SweepBars(Path(config.hydra.sweep.dir))
        bars.start()
        self._at_the_end.callback(bars.stop)
        self._at_the_end.enter_context(handle_signals(partial(self._exit, config.hydra.launcher._target_)))

    def _exit(self, launcher: str, number: int, _: FrameType | None) -> None:
        self._at_the_end.close()
        if launcher.endswith(".LocalLauncher"):  # submitit's, whose processes would go on
            kill_children()
        os._exit(128 + number)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Put together what shards left, then read the results of the jobs and print them."""
        self._at_the_end.close()
        files = Path(config.hydra.sweep.dir).rglob(RESULT)
        in_order = sorted(files, key=lambda file: (len(file.parent.name), file.parent.name))  # by their numbers
        results = [JobResult(**json.loads(file.read_text(encoding="utf-8"))) for file in in_order]
        for folder in sorted({result.shard_of for result in results if result.shard_of}):
            _merge(Path(folder))
        has_eer = any(result.eer is not None for result in results)
        shown = [number for number, name in enumerate(_COLUMNS) if name != "EER" or has_eer]
        rows = [[result.cells()[number] for number in shown] for result in results]
        table = as_text(rows, [_COLUMNS[number] for number in shown], left=("job", "embeddings"))
        sys.stderr.write(f"{table}\n")
        judged = dict.fromkeys(result.evaluated_in for result in results if result.evaluated_in)
        if judged:
            _report([Path(folder) for folder in judged], Path(config.hydra.sweep.dir) / "report.html")
        bad = {result.job: result.exit_code for result in results if result.exit_code}
        if bad:
            sys.stderr.write(f"ERROR {len(bad)} of {len(results)} jobs failed: {', '.join(bad)}\n")
            signals = {code for code in bad.values() if code > _SIGNAL}
            raise SystemExit(signals.pop() if {*bad.values()} == signals and len(signals) == 1 else SOME_FAILED)


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
        for job in product(*{one.get_key_element(): _choices(one) for one in chosen}.values()):  # the last of each key
            model = loader.load_sweep_config(sweep, list(job)).embeddings.model
            folder = Path(model.model_dir or "").expanduser()
            is_local = model.model_dir and folder.is_dir() and any(folder.iterdir())
            if model.model_repo and not is_local:
                keys = ("model_repo", "model_name", "config_name", "model_dir", "revision")
                find_checkpoint(**{key: model[key] for key in keys})


def _choices(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line or ""]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _merge(folder: Path) -> None:
    from balr.extraction import merge

    try:
        merge(folder)
    except BalrError as error:
        sys.stderr.write(f"WARNING {error}\n")


def _report(folders: list[Path], page: Path) -> None:
    try:
        from balr.report import report

        report(folders, page)
        sys.stderr.write(f"page     {page}\n")
    except BalrError as error:
        sys.stderr.write(f"WARNING no page was written: {error}\n")

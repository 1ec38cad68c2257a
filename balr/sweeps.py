"""A sweep of Hydra's: models are fetched before its jobs, bars drawn meanwhile, shards and results put together."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from balr.checkpoints import find_checkpoint, hub_settings, published_names
from balr.errors import BalrError
from balr.jobs import REFUSED, RESULT, SOME_FAILED, JobResult
from balr.runs.progress import SweepBars
from balr.runs.summary import as_text
from balr.shutdown import end_children, handle_signals

_SIGNAL = 128


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
        launcher = config.hydra.runtime.choices["hydra/launcher"]
        if launcher != "basic":
            bars = SweepBars(Path(config.hydra.sweep.dir))
            bars.start()
            self._at_the_end.callback(bars.stop)
            self._at_the_end.enter_context(handle_signals(self._exit))
        if launcher not in ("basic", "joblib", "joblib_cpu"):
            try:
                fetch_checkpoints(config)
            except BalrError as error:  # of which Hydra would make a warning
                self._at_the_end.close()
                sys.stderr.write(f"ERROR {error}\n")
                raise SystemExit(REFUSED) from None

    def _exit(self, number: int, _: FrameType | None) -> None:
        self._at_the_end.close()
        end_children(number)
        os._exit(128 + number)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Put together what shards left, then read the results of the jobs and print them."""
        self._at_the_end.close()
        files = Path(config.hydra.sweep.dir).rglob(RESULT)
        results = [JobResult(**json.loads(file.read_text(encoding="utf-8"))) for file in sorted(files, key=_number)]
        for folder in sorted({result.shard_of for result in results if result.shard_of}):
            _merge(Path(folder))
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("job", "embedded", "failed", "x real time", "embeddings"):
            table.add_column(name, justify="right" if name in ("embedded", "failed", "x real time") else "left")
        for result in results:
            table.add_row(*result.cells())
        sys.stderr.write(f"{as_text(table)}\n")
        bad = {result.job: result.exit_code for result in results if result.exit_code}
        if bad:
            sys.stderr.write(f"ERROR {len(bad)} of {len(results)} jobs failed: {', '.join(bad)}\n")
            signals = {code for code in bad.values() if code > _SIGNAL}
            raise SystemExit(signals.pop() if {*bad.values()} == signals and len(signals) == 1 else SOME_FAILED)


def fetch_checkpoints(config: DictConfig) -> None:
    """Download the models of a sweep, and have its jobs, which inherit the environment, ask for nothing.

    Raises CheckpointError.
    """
    for model in _models(config):
        find_checkpoint(
            model["model_repo"],
            model["model_name"],
            config_name=model["config_name"],
            model_dir=None,
            revision=model.get("revision"),
        )
    os.environ["HF_HUB_OFFLINE"] = "1"


def _models(config: DictConfig) -> Iterator[dict[str, Any]]:
    typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    for override in OverridesParser.create().parse_overrides([str(one) for one in typed or ()]):
        if override.key_or_group == "embeddings/model" and override.is_sweep_override():
            names = [str(name) for name in override.sweep_string_iterator()]
            yield from (hub_settings(name) for name in names if name in published_names())
            return
    model: Any = OmegaConf.to_container(config.embeddings.model, resolve=True)
    if model["model_repo"] and not model["model_dir"]:
        yield model


def _merge(folder: Path) -> None:
    from balr.extraction import merge

    try:
        merge(folder)
    except BalrError as error:
        sys.stderr.write(f"WARNING {error}\n")


def _number(file: Path) -> tuple[int, str]:
    name = file.parent.name
    return (int(name) if name.isdecimal() else 0, name)

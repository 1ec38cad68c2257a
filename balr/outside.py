"""Configs from outside, by `--config-dir` or `--config-path`: they choose among what is here and name no code.

Hydra itself calls what its callbacks, launcher, sweeper and logging name, and writes where it is told to, before any
line of balr runs. So what Hydra is about to compose is composed first and compared with what it would be without them.
"""

import re
from argparse import ArgumentError, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import (
    create_automatic_config_search_path,
    detect_calling_file_or_module_from_task_function,
    get_args_parser,
)
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from balr.config import RunConfig, config_dir
from balr.errors import ConfigError

_NOT_FROM_OUTSIDE = (
    "callbacks",
    "hydra_logging",
    "job_logging",
    "job.env_set",
    "job.env_copy",
    "job.chdir",
    "job.name",
    "mode",
    "output_subdir",
    "run",
    "sweep",
    "sweeper.params",
)
_CHOSEN_FREELY = ("launcher", "sweeper")
_LAUNCHER_OR_SWEEPER = re.compile(
    r"hydra(_plugins\.\w+\.\w+\.\w+|\._internal\.core_plugins\.basic_\w+\.\w+)(Launcher|Sweeper)"
)
_MOST_JOBS = 1000
_NOT_GROUPS = {option.name for option in fields(RunConfig)} - {"data", "embeddings"}


def refuse_foreign_code(argv: Sequence[str], job: Callable[..., object]) -> None:
    """Refuse configs from outside that change what Hydra calls, sets or writes. Raises ConfigError.

    `job` is what Hydra is to run, from which it takes where a relative `--config-path` starts.
    """
    arguments = _parsed(argv)
    name = arguments.config_name or "config"
    if arguments.experimental_rerun:
        raise ConfigError("--experimental-rerun: refused, as it unpickles a file.")
    if ".." in name:
        raise ConfigError(f"--config-name {name}: leads out of the configs.")
    for one in OverridesParser.create().parse_overrides(arguments.overrides):
        _refuse_no_name(one)
        if _chooses_a_config(one) and ".." in (one.input_line or "").partition("=")[2]:
            raise ConfigError(f"{one.input_line}: leads out of the configs; --config-dir takes a folder of your own.")
    if arguments.config_dir or arguments.config_path or any("searchpath" in one for one in arguments.overrides):
        _compare(arguments, name, job)


def _refuse_no_name(override: Override) -> None:
    """Refuse what is not the name of a config where one is chosen by its name; Hydra would not say where."""
    group = override.key_or_group
    folder = config_dir() / group
    if override.is_delete() or override.is_sweep_override() or not folder.is_dir():
        return
    names = sorted(path.stem for path in folder.glob("[!_]*.yaml"))
    if not names and not override.is_add():
        groups = [f"{group}/{path.name}=NAME" for path in sorted(folder.iterdir())]
        raise ConfigError(f"{override.input_line}: no such choice; did you mean {' or '.join(groups)}?")
    if not isinstance(override.value(), str):
        raise ConfigError(f"{override.input_line}: a config is chosen by its name; there are {', '.join(names)}.")


def _compare(arguments: Namespace, name: str, job: Callable[..., object]) -> None:
    mode = RunMode.MULTIRUN if arguments.multirun else RunMode.RUN
    shipped = _loader(create_automatic_config_search_path(None, None, str(config_dir())))
    others = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper._target_", "hydra.searchpath")
    typed = [one for one in arguments.overrides if one.lstrip("+~").startswith("hydra")]
    expected = shipped.load_configuration("config", [one for one in typed if not one.startswith(others)], mode)
    loader = _loader(_search_path(arguments, job))
    for overrides in _jobs(loader, arguments.overrides):
        composed = loader.load_configuration(name, overrides, mode)
        for part in _NOT_FROM_OUTSIDE:
            if _raw(composed, part) != _raw(expected, part):
                raise ConfigError(f"hydra.{part}: set by a config from outside: refused; set it on the command line.")
        for part in _CHOSEN_FREELY:
            _check_targets(part, _raw(composed, part))


def _check_targets(part: str, node: Any, *, top: bool = True) -> None:
    target = node.get("_target_") if isinstance(node, dict) else None
    if (top and not _LAUNCHER_OR_SWEEPER.fullmatch(str(target))) or (not top and target is not None):
        raise ConfigError(f"hydra.{part}: _target_={target}: not a launcher or sweeper of Hydra's.")
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        _check_targets(part, child, top=False)


def _raw(composed: DictConfig, part: str) -> Any:
    """Return a part of Hydra's own config as it is written: what it refers to can change until it is used."""
    hydra = OmegaConf.to_container(composed.hydra, resolve=False)
    for name in part.split("."):
        hydra = hydra.get(name) if isinstance(hydra, dict) else None
    return hydra


def _parsed(argv: Sequence[str]) -> Namespace:
    """Parse Hydra's flags. Raises ConfigError where argparse would print its usage over many lines."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        arguments, unknown = parser.parse_known_args(list(argv))
    except ArgumentError as error:
        raise ConfigError(f"{error}; --hydra-help shows all flags.") from error
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such flag; --hydra-help shows all.")
    return arguments


def _search_path(arguments: Namespace, job: Callable[..., object]) -> ConfigSearchPath:
    file, module = detect_calling_file_or_module_from_task_function(job)
    found = create_automatic_config_search_path(file, module, arguments.config_path or str(config_dir()))
    if arguments.config_dir:
        folder = Path(arguments.config_dir).absolute()
        found.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    return found


def _loader(search_path: ConfigSearchPath) -> ConfigLoader:
    try:
        return Hydra.create_main_hydra2("balr", search_path).config_loader
    finally:
        GlobalHydra.instance().clear()


def _jobs(loader: ConfigLoader, overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield the overrides of each job of a sweep, as far as they choose configs. Raises ConfigError where too many."""
    choices = []
    for one in OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)):
        if one.is_sweep_override():
            values = [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
            choices.append(values if _chooses_a_config(one) else values[:1])
        else:
            choices.append([one.input_line or ""])
    for number, job in enumerate(product(*choices)):
        if number == _MOST_JOBS:
            raise ConfigError(f"over {_MOST_JOBS} combinations of configs from outside; sweep over fewer at a time.")
        yield list(job)


def _chooses_a_config(override: Override) -> bool:
    key = override.get_key_element().lstrip("+~")
    return "." not in key.partition("@")[0] and key not in _NOT_GROUPS

"""Configs from outside, by `--config-dir` or `--config-path`: they choose among what is here and name no code.

Hydra itself calls whatever its `callbacks`, `launcher`, `sweeper` and logging name, before any line of balr runs.
"""

from argparse import ArgumentError, Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override

from balr.config import config_dir
from balr.errors import ConfigError

_CALLED_BY_HYDRA = ("callbacks", "launcher", "sweeper", "hydra_logging", "job_logging")
_TARGETS = ("balr.", "hydra_plugins.", "hydra._internal.core_plugins.")
_LOGGING_CLASSES = ("balr.", "logging.")
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def refuse_foreign_code(argv: Sequence[str]) -> None:
    """Refuse configs from outside that make Hydra call what is neither balr's nor Hydra's own. Raises ConfigError.

    Compose what Hydra is about to compose, in a sweep with each of its values, and look before it acts.
    """
    arguments = _parsed(argv)
    searched = any("hydra.searchpath" in override for override in arguments.overrides)
    if not (arguments.config_dir or arguments.config_path or searched):
        return
    search_path = create_config_search_path(str(Path(arguments.config_path or config_dir()).absolute()))
    if arguments.config_dir:
        folder = Path(arguments.config_dir).absolute()
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    mode = RunMode.MULTIRUN if arguments.multirun else RunMode.RUN
    hydra = Hydra.create_main_hydra2("balr", search_path)
    try:
        for overrides in _jobs(arguments.overrides) if arguments.multirun else [arguments.overrides]:
            name = arguments.config_name or "config"
            composed = hydra.compose_config(name, list(overrides), mode, with_log_configuration=False)
            with flag_override(composed, ["struct", "readonly"], False):
                composed.hydra.runtime.output_dir, composed.hydra.job.num, composed.hydra.job.id = ".", 0, "0"
            for part in _CALLED_BY_HYDRA:
                _check(composed, f"hydra.{part}")
    finally:
        GlobalHydra.instance().clear()


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


def _jobs(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield overrides without sweeps, such that each value of each sweep comes once."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [one.input_line or ""]
        for one in parsed
    ]
    for number in range(max(map(len, choices), default=1)):
        yield [values[min(number, len(values) - 1)] for values in choices]


def _check(composed: DictConfig, path: str) -> None:
    node = OmegaConf.select(composed, path)
    for key, value in _entries(node) if isinstance(node, DictConfig | ListConfig) else ():
        is_target = key == "_target_" and not str(value).startswith(_TARGETS)
        is_class = key == "class" and not str(value).startswith(_LOGGING_CLASSES)
        is_import = isinstance(value, str) and value.startswith(("ext://", "cfg://")) and value not in _STREAMS
        if is_target or is_class or is_import or key == "()":
            raise ConfigError(f"{path}: {key}: {value}: a config from outside may name classes of balr and Hydra only.")


def _entries(node: DictConfig | ListConfig) -> Iterator[tuple[str, Any]]:
    """Yield all keys below a node with their resolved values."""
    keys: Iterable[Any] = node.keys() if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        value = node[key]
        yield str(key), value
        if isinstance(value, DictConfig | ListConfig):
            yield from _entries(value)

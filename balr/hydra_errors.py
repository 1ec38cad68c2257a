"""Errors of Hydra's command line, each in one line that suggests what was meant."""

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from difflib import get_close_matches
from textwrap import shorten
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from balr.config import config_dir, groups, known_keys
from balr.errors import BalrError, ConfigError, one_line

_EXTRAS = {"hydra/launcher/ray": "ray", "hydra/launcher/submitit_slurm": "slurm", "hydra/sweeper/optuna": "optuna"}


def parsed(argv: Sequence[str]) -> tuple[Namespace, ArgumentParser]:
    """Return Hydra's arguments and their parser; flags may stand anywhere among the overrides.

    Raises ConfigError for what Hydra would reject without a clear reason, or take for something else, and Hydra's own
    error where an override cannot be parsed.
    """
    parser = get_args_parser()
    vars(parser)["error"] = _refuse
    given = parser.parse_intermixed_args(argv)
    if given.experimental_rerun:
        raise ConfigError("--experimental-rerun: refused, as it unpickles a file.")
    given.config_dir = given.config_dir and os.path.expanduser(given.config_dir)
    overrides = OverridesParser.create().parse_overrides(given.overrides)
    is_evaluated = {"evaluation", "experiment"} & {one.key_or_group for one in overrides}
    for override in overrides:
        _refuse_no_name(override)
        if override.key_or_group.startswith("evaluation.") and not is_evaluated:
            raise ConfigError(f"{override.input_line}: of a run that is evaluated; add +evaluation=trials.")
    return given, parser


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; --hydra-help shows all.")


def _refuse_no_name(override: Override) -> None:
    """Refuse an override that chooses a config by something else than GROUP=NAME; Hydra would merge a list of them."""
    key, group = override.key_or_group, override.key_or_group.replace(".", "/")
    is_name = override.is_delete() or override.is_sweep_override() or isinstance(override.value(), str)
    if group in groups() and not (is_name and key == group):
        names = sorted(path.stem for path in (config_dir() / group).glob("[!_]*.yaml"))
        raise ConfigError(f"{override.input_line}: a config is chosen by {group}=NAME; there are {', '.join(names)}.")


def explain(error: Exception) -> str:
    """Put an error of Hydra's, often several lines, into one that suggests near alternatives."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_config(error, error.missing_cfg_file)
    if isinstance(error, ConfigCompositionException):
        reason = one_line(error.__cause__ or error)
        if re.search("is not in struct|not in '[A-Z][a-z]+Config'|override 'embeddings'", reason):
            return _unknown_key(str(error), reason)
        what = str(error).removeprefix("Error merging override ")
        why = str(error.__cause__ or "").partition("full_key")[0]
        return one_line(f"{what}: {why}").rstrip(": ")
    if isinstance(error, OverrideParseException):
        expected = "after the one input, KEY=VALUE is expected, with quotes around special characters"
        return f"{error.override!r}: not an override; {expected}."
    if isinstance(error, OSError):
        where = error.filename or "what is printed, or config and log of this run"
        way_out = "hydra.run.dir=DIR puts config and log of a run elsewhere, in a sweep hydra.sweep.dir=DIR"
        return f"{where}: {error.strerror or error}; {way_out}."
    is_known = isinstance(error, BalrError | HydraException | OmegaConfBaseException | YAMLError)
    return one_line(error) if is_known else shorten(f"{type(error).__name__}: {one_line(error)}", 400)


def _missing_config(error: MissingConfigException, file: str) -> str:
    if file in _EXTRAS:
        return f"it is not installed: pip install 'balr[{_EXTRAS[file]}]'."
    if not error.options:
        return one_line(error)
    group, _, name = file.rpartition("/")
    options = [str(option) for option in error.options if not str(option).startswith("_")]
    near = get_close_matches(name, options, n=3, cutoff=0.4)
    choice = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(options)}."
    return f"{group}={name}: no such config; {choice}"


def _unknown_key(message: str, reason: str) -> str:
    found = re.search(r"full_key: (\S+)", reason) or re.search("'(.+?)'", message)
    key = found[1] if found else reason
    keys = sorted({*groups(), *known_keys()})
    same_end = [known for known in keys if re.split(r"[./]", known)[-1] == key]
    near = same_end or get_close_matches(key, keys, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "--cfg job shows all keys."
    return f"{key}: no such key; {hint}"

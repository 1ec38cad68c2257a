"""What the shell completes, and what a mistyped command suggests."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import typer

from balr.config import config_dir, groups, known_keys
from balr.errors import one_line

_VALUES = {
    "device": ("auto", "cpu", "cuda", "mps"),
    "precision": ("bf16", "fp16", "fp32"),
    "force": ("true",),
    "fail_fast": ("true",),
}


def complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete `KEY=VALUE`, also the last of several values that commas separate."""
    # bash splits GROUP=NAME into three words, and drops the last one if it is only the sign.
    words = [word for word in (ctx.params.get("corpus"), *(ctx.params.get("overrides") or ())) if word and word != "="]
    if words and (values := complete_value(words[-1], incomplete)):
        return values
    key, sign, value = incomplete.partition("=")
    if sign:
        return [f"{key}={one}" for one in complete_value(key, value)]
    added = ("evaluation", "experiment")  # which have no default that is replaced
    keys = dict.fromkeys(f"{'+' * (key in added)}{key}=" for key in (*groups(), *known_keys()))
    return [key for key in keys if key.startswith(incomplete)]


def complete_value(key: str, incomplete: str) -> list[str]:
    """Complete the value of a key, or the name of a config of a group."""
    key = key.lstrip("+")
    there = [path.stem for path in (config_dir() / key).glob("[!_]*.yaml")] if key in groups() else _VALUES.get(key, ())
    listed, comma, last = incomplete.rpartition(",")
    return [f"{listed}{comma}{one}" for one in sorted(there) if one.startswith(last) and one not in listed.split(",")]


def suggest(error: Exception, argv: Sequence[str]) -> str:
    """Put an error of usage into one line that says what may have been meant."""
    message = one_line(error.format_message() if hasattr(error, "format_message") else error)
    option = getattr(error, "option_name", None)
    if option and (argv[0] == "extract" or argv[0].startswith("-")):  # other commands take no keys
        return _suggest_key(option) or message
    if message.startswith("No such command"):
        word = next(word for word in argv if not word.startswith("-"))
        if set(word) & set("/.=") or Path(word).exists():
            return f"{word}: no such command; did you mean balr extract {shlex.join(argv)}?"
    return message


def _suggest_key(option: str) -> str | None:
    from hydra._internal.utils import get_args_parser

    if option in get_args_parser()._option_string_actions:
        return f"{option}: a flag of Hydra's, and no option here; python -m balr.main {option} takes it."
    key = option.lstrip("-").replace("-", "_")
    key = next((group for group in groups() if group.rpartition("/")[2] == key), key)
    is_known = key in (*groups(), *known_keys())
    return f"{option}: no such option; did you mean {key}=VALUE?" if is_known else None

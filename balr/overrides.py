"""From the words of a command to Hydra overrides that mean just what was typed."""

import os
import re
from collections.abc import Sequence
from typing import Any

import typer


def to_overrides(flags: dict[str, Any]) -> list[str]:
    """Translate the flags that were given to Hydra overrides, quoted so that any path means itself."""
    return [f"{key}={_quoted(value)}" for key, value in flags.items() if value is not None]


def _quoted(value: bool | str | Sequence[str]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return f"[{','.join(_quoted(item) for item in value)}]"
    # OmegaConf reads ${ as an interpolation unless escaped, Hydra a quote as the end; backslashes before either count.
    for special in (r"\$\{", "'"):
        value = re.sub(rf"(\\*)({special})", r"\1\1\\\2", value)
    trailing = len(value) - len(value.rstrip("\\"))
    return f"'{value}{chr(92) * trailing}'"


def split_commas(values: Sequence[str] | None) -> list[str] | None:
    """Split values at commas; None if there are none."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()] if values else None


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separate the input from the overrides, in any order. Raises BadParameter if there are two inputs."""
    rest = [word for word in words if _is_override(word)]
    inputs = [word for word in words if word not in rest]
    given = inputs + [word.removeprefix("input=") for word in rest if word.startswith("input=")]
    if inputs and len(given) > 1:
        both = " and ".join(map(repr, given))
        raise typer.BadParameter(f"{both}: one input; did you mean -m input={','.join(given)}?", param_hint="INPUT")
    return next(iter(inputs), None), rest


def _is_override(text: str) -> bool:
    return ("=" in text or text.startswith("~")) and not os.path.lexists(os.path.expanduser(text))

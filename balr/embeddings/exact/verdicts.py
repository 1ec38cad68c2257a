"""What checks of a network found, kept in the user's cache folder: a check whose verdict is known does not run again.

A verdict is that of one checkpoint, by its content, with one set of settings, one version of this code and of the
libraries that compute, and one machine. With anything else, the check runs.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from balr.atomic import whole_file
from balr.embeddings.architectures import run_network
from balr.embeddings.devices import device_name
from balr.errors import OutputError

_LIBRARIES = ("torch", "torchaudio", "wespeaker-unofficial", "openvino")


class Verdicts:
    """Remember what checks found; `facts` say of which checkpoint and settings. Without any, nothing is kept."""

    def __init__(self, facts: Mapping[str, Any] | None = None, *, device: torch.device | None = None) -> None:
        self._path: Path | None = None
        self._known: dict[str, Any] = {}
        if facts is not None:
            key = json.dumps({**facts, **_machine(device or torch.device("cpu"))}, sort_keys=True, default=str)
            name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
            self._path = user_cache_path("balr", appauthor=False) / "verdicts" / name
            with suppress(OSError, ValueError, TypeError):  # none yet, or damaged
                self._known = dict(json.loads(self._path.read_text(encoding="utf-8")))

    def of(self, check: str, find: Callable[[], Any]) -> Any:
        """Return what a check found when it ran first; `find` runs it, and returns what JSON can hold.

        Infinity, which is for a check that could not run, as without memory, is not kept.
        """
        if check in self._known:
            return self._known[check]
        found = find()
        if found != math.inf:
            self._known[check] = found
            if self._path is not None:
                with suppress(OutputError), whole_file(self._path) as file:  # without a cache, checks run each time
                    file.write(json.dumps(self._known).encode())
        return found

    def of_change(
        self,
        check: str,
        network: torch.nn.Module,
        example: torch.Tensor,
        change: Callable[[], None],
        *,
        by: Callable[[torch.Tensor, torch.Tensor], float],
    ) -> float:
        """Change a network, and return how far that moves its embedding of the features `example` `(1, frames, mels)`.

        `by` compares embeddings `(batch, dim)` after and before.
        """
        is_changed = False

        def compare() -> float:
            nonlocal is_changed
            before = run_network(network, example)
            change()
            is_changed = True
            return by(run_network(network, example), before)

        with torch.no_grad():
            moved: float = self.of(check, compare)
            if not is_changed:
                change()
        return moved


def _machine(device: torch.device) -> dict[str, Any]:
    """Return what else decides a verdict: processor or GPU, threads, versions, and this code by its content."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(file.read_bytes())
    facts: dict[str, Any] = {"device": device_name(device), "code": code.hexdigest()}
    facts |= {"processor": [torch.cpu.get_capabilities(), torch.backends.cpu.get_cpu_capability()]}
    if device.type == "cuda":
        facts |= {"cuda": [torch.version.cuda, torch.backends.cudnn.version()]}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):  # an extra that is not installed
            facts[name] = version(name)
    return facts

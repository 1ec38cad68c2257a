"""What checks of a network found, kept in the user's cache folder: a check whose verdict is known does not run again.

A verdict is that of one checkpoint, by its content, with one set of settings, one version of this code and of the
libraries that compute, one machine and number of threads. With anything else, the check runs.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from platformdirs import user_cache_path

from balr.atomic import whole_file
from balr.embeddings.devices import device_name
from balr.errors import OutputError

_LIBRARIES = ("torch", "torchaudio", "openvino", "wespeaker-unofficial")


class Verdicts:
    """Remember what checks found; `facts` say of which checkpoint and settings. Without any, nothing is kept."""

    def __init__(self, facts: Mapping[str, Any] | None = None, *, device: torch.device | None = None) -> None:
        self._path: Path | None = None
        self._known: dict[str, Any] = {}
        self._lock = RLock()
        if facts is not None:
            key = json.dumps({**facts, **_machine(device or torch.device("cpu"))}, sort_keys=True, default=str)
            name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
            self._path = user_cache_path("balr", appauthor=False) / "verdicts" / name
            with suppress(OSError, ValueError, TypeError):  # none yet, or damaged
                self._known = dict(json.loads(self._path.read_text(encoding="utf-8")))

    def of(self, check: str, find: Callable[[], Any]) -> Any:
        """Return what a check found when it ran first; `find` runs it, and returns what JSON can hold.

        One thread runs it while others wait. Infinity, for a check that could not run, as without memory, is not kept.
        """
        check = f"{check}, {torch.get_num_threads()} threads"
        with self._lock:
            if check in self._known:
                return self._known[check]
            found = find()
            if found != math.inf:
                self._known[check] = found
                if self._path is not None:
                    with suppress(OutputError), whole_file(self._path) as file:  # without a cache, checks run each time
                        file.write(json.dumps(self._known).encode())
            return found


def _machine(device: torch.device) -> dict[str, Any]:
    """Return what else decides a verdict: processor or GPU, threads, settings of torch, versions, code."""
    facts: dict[str, Any] = {"device": device_name(device), "code": _code()}
    facts |= {"processor": [torch.cpu.get_capabilities(), torch.backends.cpu.get_cpu_capability()]}
    facts |= {"settings": [torch.backends.mkldnn.enabled]}
    if device.type == "cuda":
        facts |= {"cuda": [torch.version.cuda, torch.backends.cudnn.version()]}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):  # installed under another name
            facts[name] = version(name)
    return facts


def _code() -> str:
    """Return a hash of balr's code for networks."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()

"""Where a run comes from: corpus, software, machine. Facts for its record, none of which stops it when unknown."""

import hashlib
import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from balr.data.corpus import Corpus

_PACKAGES = ("balr", "torch", "torchaudio", "wespeaker-unofficial", "numpy", "soundfile", "av", "openvino")
_DESCRIBE = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
_GIT_SECONDS = 10


def now() -> str:
    """Return the time of day in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def corpus_facts(corpus: Corpus, source: str) -> dict[str, Any]:
    """Return the path of a corpus, how many utterances it lists, and a hash of their ids, files and speakers."""
    digest = hashlib.sha256()
    for utterance in corpus.utterances:
        line = "\t".join((utterance.id, f"{utterance.audio or ''}{utterance.part.suffix}", utterance.speaker or ""))
        digest.update(line.encode(errors="surrogateescape") + b"\n")
    path = os.path.abspath(os.path.expanduser(source))
    return {"input": path, "utterances": len(corpus), "sha256": digest.hexdigest()}


def software() -> dict[str, Any]:
    """Return the versions of Python and of what decides numbers, and the commit of a checkout of balr."""
    return {"software": {"python": platform.python_version(), "packages": _versions(), "git": _commit()}}


def machine() -> dict[str, Any]:
    """Return the host, its system, its processor and how many cores of it this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"host": platform.node(), "system": platform.platform(), "processor": _processor(), "cores": cores}
    return {"machine": facts}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # not installed, or under another name
            found[name] = version(name)
    return found


def _commit() -> str | None:
    """Return the commit of a checkout of balr, with `-dirty` where its files were changed."""
    checkout = Path(__file__).resolve().parents[2]
    where = (f"--git-dir={checkout / '.git'}", f"--work-tree={checkout}")  # not those of GIT_DIR
    command = ("git", "--no-optional-locks", *where, *_DESCRIBE)
    with suppress(OSError, subprocess.SubprocessError):  # no git, no checkout
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS)  # noqa: S603
        return done.stdout.strip()
    return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())

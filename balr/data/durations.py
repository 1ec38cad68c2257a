"""How long each utterance is, from the headers of its file: for planning only, so a wrong header costs nothing."""

import csv
import logging
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile

from balr.data.audio import open_with_ffmpeg
from balr.files import write_csv

log = logging.getLogger(__name__)

COLUMNS = ("audio", "bytes", "changed_ns", "seconds")
_READERS = 8  # they wait for disks

_State = tuple[str, str, str]


def durations(files: Sequence[Path], *, cache: Path | None = None) -> list[float | None]:
    """Return the seconds of audio in each file as its header has it, None where it does not say.

    `cache` is a csv of what earlier runs found, kept as long as a file has the same size and time of change; one that
    cannot be read is done without. Raises OutputError where it cannot be written.
    """
    known = {} if cache is None else _read_cache(cache)
    with ThreadPoolExecutor(_READERS) as pool:
        states = list(pool.map(_state, files))
        new = [(file, state) for file, state in zip(files, states, strict=True) if state not in known]
        found = dict(zip((state for _, state in new), pool.map(header_seconds, (file for file, _ in new)), strict=True))
    known |= found
    if cache is not None and found:
        _write_cache(cache, known)
    return [known[state] for state in states]


def header_seconds(path: Path) -> float | None:
    """Return the seconds of audio in a file by its header, decoding nothing; None where it does not say."""
    try:
        with soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else path) as file:
            return file.frames / file.samplerate if 0 < file.frames < 1 << 62 else None
    except (soundfile.LibsndfileError, OSError):
        pass
    try:
        with open_with_ffmpeg(path) as container:
            return container.duration / 1_000_000 if container.duration and container.duration > 0 else None
    except Exception as error:  # decoding it will say what is wrong
        log.debug("%s: no duration: %s", path, error)
        return None


def _state(path: Path) -> _State:
    try:
        about = path.stat()
    except (OSError, ValueError):
        return (str(path), "", "")
    return (str(path), str(about.st_size), str(about.st_mtime_ns))


def _read_cache(path: Path) -> dict[_State, float | None]:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
        return {_row_state(row): _seconds(row["seconds"]) for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        log.debug("%s: not used: %s", path, error)
        return {}


def _row_state(row: Mapping[str, str]) -> _State:
    return (row["audio"], row["bytes"], row["changed_ns"])


def _seconds(cell: str) -> float | None:
    seconds = float(cell) if cell else None
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{cell} seconds")
    return seconds


def _write_cache(path: Path, known: Mapping[_State, float | None]) -> None:
    latest = {state[0]: (*state, "" if seconds is None else repr(seconds)) for state, seconds in known.items()}
    write_csv(path, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in latest.values()))

"""What the headers of files say of their length and rate: for planning only, so a wrong header costs nothing."""

import csv
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from balr.files import write_csv

log = logging.getLogger(__name__)

COLUMNS = ("audio", "bytes", "changed_ns", "seconds", "sample_rate_hz")
_READERS = 8  # they wait for disks
_FILES_AT_ONCE = 64
_MANY = 5000
_AT_A_TIME = 1000  # what a pool is given at once stays in memory until all of it is done
_LONGEST_SECONDS = 1e9

_State = tuple[str, str, str]


class Header(NamedTuple):
    """Hold what a file says of itself, None where it does not say."""

    seconds: float | None
    sample_rate_hz: int | None


def headers(
    files: Sequence[Path], *, cache: Path | None = None, isolated: bool = False, timeout_seconds: float = 60.0
) -> list[Header]:
    """Return what the header of each file says.

    `cache` is a csv of what earlier runs found, kept as long as a file has the same size and time of change; one that
    cannot be read is done without. `isolated` reads in processes of their own: a file that crashes its reader, or keeps
    it for over `timeout_seconds`, says nothing then. Raises OutputError where the cache cannot be written.
    """
    known = {} if cache is None else _read_cache(cache)
    with ThreadPoolExecutor(_READERS) as pool:
        states = [state for some in _batched(files) for state in pool.map(_state, some)]
        new = [(file, state) for file, state in zip(files, states, strict=True) if state not in known]
        if len(new) > _MANY:
            log.info("reading the headers of %d files", len(new))
        unread = [] if isolated else [file for file, _ in new]
        found = [header for some in _batched(unread) for header in pool.map(read_header, some)]
    if isolated:
        found = _read_isolated([file for file, _ in new], timeout_seconds)
    known |= dict(zip((state for _, state in new), found, strict=True))
    if cache is not None and found:
        _write_cache(cache, known)
    return [known[state] for state in states]


def read_header(path: Path) -> Header:
    """Return what a file says of itself, decoding nothing."""
    import soundfile  # nothing to do needs no decoder

    from balr.data.audio import open_with_ffmpeg

    try:
        with soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else path) as file:
            known = 0 < file.frames < 1 << 62 and file.samplerate > 0
            return Header(file.frames / file.samplerate if known else None, file.samplerate)
    except (soundfile.LibsndfileError, OSError):
        pass
    try:
        with open_with_ffmpeg(path) as container:
            known = bool(container.duration and container.duration > 0)
            rates = [getattr(stream, "rate", None) for stream in container.streams.audio[:1]]
            return Header(
                (container.duration or 0) / 1_000_000 if known else None, rates[0] if rates and rates[0] else None
            )
    except Exception as error:  # decoding it will say what is wrong
        log.debug("%s: no duration: %s", path, error)
        return Header(None, None)


@dataclass(frozen=True)
class _Reader:
    files: Sequence[Path]

    def __call__(self, index: int) -> tuple[int, Header]:
        return index, read_header(self.files[index])


def _read_isolated(files: Sequence[Path], timeout_seconds: float) -> list[Header]:
    from balr.data.workers import Loss, at_work

    starts = range(0, len(files), _FILES_AT_ONCE)
    plan = [tuple(range(start, min(start + _FILES_AT_ONCE, len(files)))) for start in starts]
    found = [Header(None, None)] * len(files)
    number = min(_READERS, len(plan))
    reader = _Reader(files)
    with at_work(reader, number=number, timeout_seconds=timeout_seconds, quiet=lambda: None) as workers:
        for read in workers.decoded(plan, ahead=2 * number):
            if isinstance(read, Loss):  # told when it is decoded, which ends in the same way
                log.debug("%s: %s", files[read.index], read.reason)
                continue
            for index, header in read:
                found[index] = header
    return found


def _batched(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    return (files[start : start + _AT_A_TIME] for start in range(0, len(files), _AT_A_TIME))


def _state(path: Path) -> _State:
    try:
        about = path.stat()
    except (OSError, ValueError):
        return (str(path), "", "")
    return (str(path), str(about.st_size), str(about.st_mtime_ns))


def _read_cache(path: Path) -> dict[_State, Header]:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
        return {_row_state(row): _row_header(row) for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        log.debug("%s: not used: %s", path, error)
        return {}


def _row_state(row: Mapping[str, str]) -> _State:
    return (row["audio"], row["bytes"], row["changed_ns"])


def _row_header(row: Mapping[str, str]) -> Header:
    seconds = float(row["seconds"]) if row["seconds"] else None
    if seconds is not None and not 0 <= seconds < _LONGEST_SECONDS:
        raise ValueError(f"{seconds} seconds")
    return Header(seconds, int(row["sample_rate_hz"]) if row["sample_rate_hz"] else None)


def _write_cache(path: Path, known: Mapping[_State, Header]) -> None:
    latest = {state[0]: (*state, *header) for state, header in known.items()}
    cells = (["" if cell is None else str(cell) for cell in row] for row in latest.values())
    write_csv(path, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in cells))

"""Lengths and sample rates by the headers of files, for planning only: a wrong header costs no embedding."""

import csv
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from balr.shutdown import Stop
from balr.stores.commit_log import CommitLog

log = logging.getLogger(__name__)

COLUMNS = ("audio", "seconds", "sample_rate_hz", "channels", "seeks")
_PROCESSES = 8  # more than cores, as they wait for the disk
_LEAST_FILES_PER_PROCESS = 64
_FILES_PER_TASK = 32  # as handing over a task takes longer than reading a header from a local disk
_MANY = 5000
_LONGEST_SECONDS = 1e9
_SEEKS = ("True", "False")


class Header(NamedTuple):
    """Hold what the header of a file says, None for what it does not, and whether its format can be sought exactly."""

    seconds: float | None = None
    sample_rate_hz: int | None = None
    channels: int | None = None
    seeks: bool = False


class HeaderCache:
    """Remember the headers of files by their paths, in a csv for later runs, too, if it is given one."""

    def __init__(self, path: Path | None = None) -> None:
        self._log = None if path is None else CommitLog(path, COLUMNS)

    @cached_property
    def known(self) -> dict[str, Header]:
        """Return the header of each path."""
        return {} if self._log is None else read_durations(self._log.path)

    def add(self, found: Mapping[str, Header]) -> None:
        """Remember headers. Raises OutputError."""
        self.known.update(found)
        if self._log is not None and found:
            if self._log.has_begun:
                self._log.append(map(_row, found.items()), durably=False)
            else:
                self._log.write(map(_row, self.known.items()))


def headers(
    files: Sequence[Path],
    *,
    cache: HeaderCache | None = None,
    isolated: bool = False,
    timeout_seconds: float = 60.0,
    beside_threads: bool = False,
    stop: Stop | None = None,
) -> list[Header]:
    """Return the header of each file, empty where it cannot be read; a file that `cache` knows is not opened.

    `isolated` reads in processes of their own, so that a file that crashes its reader, or takes over `timeout_seconds`,
    gives an empty header; `beside_threads`: these are not forked. Setting `stop` leaves headers out. Raises OutputError
    if the cache cannot be written.
    """
    cache, stop = cache or HeaderCache(), stop or Stop()
    new = [file for file in dict.fromkeys(files) if str(file) not in cache.known]
    if len(new) > _MANY:
        log.info("reading the headers of %d files", len(new))
    if isolated:
        found = _read_isolated(new, timeout_seconds, stop, beside_threads=beside_threads)
    else:
        found = {file: read_header(file) for file in new if not stop.is_set()}
    known = {file: header for file, header in found.items() if header != Header()}
    if not stop.is_set():  # a file that ended its reader may not do so in the next run, whose batches must be the same
        known |= {file: Header() for file in new if file not in found}
    cache.add({str(file): header for file, header in known.items()})
    return [cache.known.get(str(file), Header()) for file in files]


def read_header(path: Path) -> Header:
    """Return what the header of a file says, without decoding audio."""
    from balr.data.containers import open_member  # a run with nothing to do needs no decoder

    try:
        audio = open_member(path, scan=False)
    except Exception as error:  # decoding reports what is wrong
        log.debug("%s: no header: %s", path, error)
        return Header()
    return Header(audio.seconds, audio.rate_hz, audio.channels, audio.seeks)


def _read_isolated(
    files: Sequence[Path], timeout_seconds: float, stop: Stop, *, beside_threads: bool
) -> dict[Path, Header]:
    from balr.data.decoder_pool import DecoderPool

    found: dict[Path, Header] = {}
    processes = min(_PROCESSES, -(-len(files) // _LEAST_FILES_PER_PROCESS))
    with DecoderPool(
        _read_headers, processes=processes, timeout_seconds=timeout_seconds, beside_threads=beside_threads
    ) as pool:
        for count in (_FILES_PER_TASK, 1):  # one by one where one of many ended their process
            left = [file for file in files if file not in found]
            tasks = [left[start : start + count] for start in range(0, len(left), count)]
            plan = [(number,) for number in range(len(tasks))]
            for number, (result,) in pool.results(plan, tasks, ahead=2 * processes, stop=stop):
                if isinstance(result, Exception):  # decoding fails in the same way, and reports it
                    log.debug("%d files from %s on: %s", len(tasks[number]), tasks[number][0], result)
                else:
                    found.update(zip(tasks[number], (Header(*values) for values in result), strict=True))
    return found


def _read_headers(files: Sequence[Path]) -> list[Header]:
    return [read_header(file) for file in files]


def read_durations(path: Path) -> dict[str, Header]:
    """Read the headers that runs kept, up to a row that is damaged."""
    known: dict[str, Header] = {}
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            for row in csv.DictReader(file):
                seconds = float(row["seconds"]) if row["seconds"] else None
                if (seconds is not None and not 0 <= seconds < _LONGEST_SECONDS) or row["seeks"] not in _SEEKS:
                    raise ValueError(f"{row['audio']}: {seconds} seconds, seeks {row['seeks']}")
                rate_hz, channels = (int(row[name]) if row[name] else None for name in ("sample_rate_hz", "channels"))
                known[row["audio"]] = Header(seconds, rate_hz, channels, row["seeks"] == "True")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        log.debug("%s: %d rows are used: %s", path, len(known), error)
    return known


def _row(item: tuple[str, Header]) -> dict[str, str]:
    cells = (item[0], *("" if cell is None else str(cell) for cell in item[1]))
    return dict(zip(COLUMNS, cells, strict=True))

"""Lengths and sample rates by the headers of files, for planning only: a wrong header costs no embedding."""

import csv
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from balr.atomic import write_csv
from balr.errors import UtteranceError
from balr.shutdown import Stop

log = logging.getLogger(__name__)

KEY_COLUMNS = ("audio", "bytes", "changed_ns")
COLUMNS = (*KEY_COLUMNS, "seconds", "sample_rate_hz", "channels", "seeks")
_READERS = 8  # more than cores, as they wait for the disk
_LEAST_FILES_PER_PROCESS = 64
_FILES_PER_TASK = 32  # as handing over a task takes longer than reading a header from a local disk
_MANY = 5000
_LONGEST_SECONDS = 1e9

_State = tuple[str, str, str]  # KEY_COLUMNS
_Result = TypeVar("_Result")


class Header(NamedTuple):
    """Hold what the header of a file says, None for what it does not, and whether its format can be sought exactly."""

    seconds: float | None = None
    sample_rate_hz: int | None = None
    channels: int | None = None
    seeks: bool = False


def headers(
    files: Sequence[Path],
    *,
    cache: Path | None = None,
    isolated: bool = False,
    timeout_seconds: float = 60.0,
    beside_threads: bool = False,
    stop: Stop | None = None,
) -> list[Header]:
    """Return the header of each file; a file that occurs several times is read once.

    `cache` is a csv of what earlier runs read, valid for a file of the same size and modification time; a broken cache
    is ignored. `isolated` reads in processes of their own, so that a file that crashes its reader, or takes over
    `timeout_seconds`, gives an empty header; `beside_threads`: these are not forked. Setting `stop` leaves headers out.
    Raises OutputError if the cache cannot be written.
    """
    stop = stop or Stop()
    known = {} if cache is None else read_cache(cache)
    once = list(dict.fromkeys(files))
    states = dict(zip(once, _in_threads(_state, once), strict=True))
    new = [file for file, state in states.items() if state not in known]
    if len(new) > _MANY:
        log.info("reading the headers of %d files", len(new))
    if isolated:
        found = _read_isolated(new, timeout_seconds, stop, beside_threads=beside_threads)
    else:
        found = _in_threads(read_header, new)
    known |= zip((states[file] for file in new), found, strict=True)
    if cache is not None and new and not stop.is_set():
        _write_cache(cache, known)
    return [known[states[file]] for file in files]


def read_header(path: Path) -> Header:
    """Return what the header of a file says, without decoding audio."""
    import soundfile  # a run with nothing to do needs no decoder

    from balr.data.containers import in_memory
    from balr.data.decoders import can_seek, open_with_ffmpeg

    try:
        memory = in_memory(path)
    except UtteranceError:
        return Header()
    path = path if memory is None else memory.path
    try:
        with soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else path) as file:
            known = 0 < file.frames < 1 << 62 and file.samplerate > 0
            seconds = file.frames / file.samplerate if known else None
            return Header(seconds, file.samplerate, file.channels, can_seek(file))
    except (soundfile.LibsndfileError, OSError):
        pass
    try:
        with open_with_ffmpeg(path) as container:
            known = bool(container.duration and container.duration > 0)
            seconds = (container.duration or 0) / 1_000_000 if known else None
            stream = container.streams.audio[0] if container.streams.audio else None
            rate_hz = getattr(stream, "rate", None)  # a stream of an unknown codec has none
            return Header(seconds, rate_hz or None, stream.codec_context.channels if stream and rate_hz else None)
    except Exception as error:  # decoding reports what is wrong
        log.debug("%s: no duration: %s", path, error)
        return Header()


def _in_threads(function: Callable[[Path], _Result], files: Sequence[Path]) -> list[_Result]:
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda task: list(map(function, task)), _in_tasks(files))
        return [result for results in found for result in results]


def _read_isolated(files: Sequence[Path], timeout_seconds: float, stop: Stop, *, beside_threads: bool) -> list[Header]:
    from balr.data.decoder_pool import DecoderPool

    found: dict[Path, Header] = {}
    processes = min(_READERS, -(-len(files) // _LEAST_FILES_PER_PROCESS))
    with DecoderPool(
        _read_headers, processes=processes, timeout_seconds=timeout_seconds, beside_threads=beside_threads
    ) as pool:

        def read_into_found(tasks: Sequence[Sequence[Path]]) -> None:
            plan = [(number,) for number in range(len(tasks))]
            for number, (result,) in pool.results(plan, tasks, ahead=2 * processes, stop=stop):
                if isinstance(result, Exception):  # decoding fails in the same way, and reports it
                    log.debug("%d files from %s on: %s", len(tasks[number]), tasks[number][0], result)
                else:
                    found.update(zip(tasks[number], (Header(*values) for values in result), strict=True))

        read_into_found(_in_tasks(files))
        read_into_found([[file] for file in files if file not in found])  # one of 32 may have ended their process
    return [found.get(file, Header()) for file in files]


def _in_tasks(files: Sequence[Path]) -> list[Sequence[Path]]:
    return [files[start : start + _FILES_PER_TASK] for start in range(0, len(files), _FILES_PER_TASK)]


def _read_headers(files: Sequence[Path]) -> list[Header]:
    return [read_header(file) for file in files]


def _state(path: Path) -> _State:
    try:
        status = path.stat()
    except NotADirectoryError:
        from balr.data.containers import container_of

        container = container_of(path)  # a member is as old as that
        return (str(path), *(_state(container)[1:] if container else ("", "")))
    except (OSError, ValueError):
        return (str(path), "", "")
    return (str(path), str(status.st_size), str(status.st_mtime_ns))


def read_cache(path: Path) -> dict[_State, Header]:
    """Read the headers that a run kept; none where the file is damaged."""
    known = {}
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            for row in csv.DictReader(file):
                seconds = float(row["seconds"]) if row["seconds"] else None
                if seconds is not None and not 0 <= seconds < _LONGEST_SECONDS:
                    raise ValueError(f"{seconds} seconds")
                rate_hz, channels = (int(row[name]) if row[name] else None for name in ("sample_rate_hz", "channels"))
                state = (row["audio"], row["bytes"], row["changed_ns"])
                known[state] = Header(seconds, rate_hz, channels, row["seeks"] == "True")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        log.debug("%s: not used: %s", path, error)
        return {}
    return known


def _write_cache(path: Path, known: Mapping[_State, Header]) -> None:
    latest = {state[0]: (*state, *header) for state, header in known.items()}
    cells = (["" if cell is None else str(cell) for cell in row] for row in latest.values())
    write_csv(path, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in cells))

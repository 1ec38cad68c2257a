"""What the headers of files say of their length and rate: for planning only, so a wrong header costs nothing."""

import csv
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from balr.atomic import write_csv
from balr.data.read_ahead import ReadAhead
from balr.shutdown import Stop

log = logging.getLogger(__name__)

KEY_COLUMNS = ("audio", "bytes", "changed_ns")
COLUMNS = (*KEY_COLUMNS, "seconds", "sample_rate_hz", "channels", "seeks")
_READERS = 8  # they wait for disks
_FILES_EACH = 64  # fewer are not worth a process
_MANY = 5000
_AT_A_TIME = 1000  # what a pool is given at once stays in memory until all of it is done
_LONGEST_SECONDS = 1e9

_State = tuple[str, str, str]


class Header(NamedTuple):
    """Hold what a file says of itself, None where it does not say, and whether its format can be sought exactly."""

    seconds: float | None = None
    sample_rate_hz: int | None = None
    channels: int | None = None
    seeks: bool = False


def headers(
    files: Sequence[Path], *, cache: Path | None = None, isolated: bool = False, timeout_seconds: float = 60.0
) -> list[Header]:
    """Return what the header of each file says; a file that is given many times is read once.

    `cache` is a csv of what earlier runs found, kept as long as a file has the same size and time of change; one that
    cannot be read is done without. `isolated` reads in processes of their own: a file that crashes its reader, or keeps
    it for over `timeout_seconds`, says nothing then. Raises OutputError where the cache cannot be written.
    """
    known = {} if cache is None else _read_cache(cache)
    with ThreadPoolExecutor(_READERS) as pool:
        once = list(dict.fromkeys(files))
        states = dict(zip(once, (state for some in _batched(once) for state in pool.map(_state, some)), strict=True))
        new = [(file, state) for file, state in states.items() if state not in known]
        if len(new) > _MANY:
            log.info("reading the headers of %d files", len(new))
        unread = [] if isolated else [file for file, _ in new]
        found = [header for some in _batched(unread) for header in pool.map(read_header, some)]
    if isolated:
        found = _read_isolated([file for file, _ in new], timeout_seconds)
    known |= dict(zip((state for _, state in new), found, strict=True))
    if cache is not None and found:
        _write_cache(cache, known)
    return [known[states[file]] for file in files]


def read_header(path: Path) -> Header:
    """Return what a file says of itself, decoding nothing."""
    import soundfile  # nothing to do needs no decoder

    from balr.data.decoders import can_seek, open_with_ffmpeg

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
            rate_hz = getattr(stream, "rate", None)  # there is none where the codec is unknown
            return Header(seconds, rate_hz or None, stream.codec_context.channels if stream and rate_hz else None)
    except Exception as error:  # decoding it will say what is wrong
        log.debug("%s: no duration: %s", path, error)
        return Header()


def _read_isolated(files: Sequence[Path], timeout_seconds: float) -> list[Header]:
    from balr.data.decoder_pool import DecoderPool

    found = [Header()] * len(files)
    plan = [(index,) for index in range(len(files))]
    unbounded = ReadAhead([], [0.0] * len(files), most_seconds=math.inf)
    processes = min(_READERS, -(-len(files) // _FILES_EACH))
    with DecoderPool(read_header, processes=processes, timeout_seconds=timeout_seconds) as pool:
        for (index,), (result,) in pool.results(plan, files, ahead=_AT_A_TIME, read_ahead=unbounded, stop=Stop()):
            if isinstance(result, Exception):  # decoding it ends in the same way, and reports it
                log.debug("%s: %s", files[index], result)
            else:
                found[index] = Header(*result)
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
    rate_hz, channels = (int(row[name]) if row[name] else None for name in ("sample_rate_hz", "channels"))
    return Header(seconds, rate_hz, channels, row["seeks"] == "True")


def _write_cache(path: Path, known: Mapping[_State, Header]) -> None:
    latest = {state[0]: (*state, *header) for state, header in known.items()}
    cells = (["" if cell is None else str(cell) for cell in row] for row in latest.values())
    write_csv(path, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in cells))

"""Read what a corpus consists of: a csv or a list of paths becomes a list of utterances.

The invariant kept here: ids are unique, files exist, and no path leads out of the corpus folder. All problems of a kind
are counted and the first is shown, before any model is loaded.
"""

import csv
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from balr.data.containers import is_member
from balr.errors import InputError
from balr.records import NOTHING, WHOLE, Part, Utterance

log = logging.getLogger(__name__)

_LONGEST_LINE = 1 << 20
_LONGEST_ID = 100_000  # the lists of a run are read with csv's limit
_MEANT_AS_AUDIO = frozenset({"wav", "path", "file", "filename", "audio_path", "filepath", "wav_path"})
_COLUMNS = frozenset({"id", "audio", "speaker", "embedding", "start", "end", "channel", "duration", "crc32"})


def read_csv(path: Path, root_dir: Path) -> list[Utterance]:
    """Read a csv with the columns `audio` or `embedding`, and optionally `id`, `speaker` and any others.

    `start` and `end` (seconds) and `channel` (from 0) choose a part of the file; an empty cell means all of it.
    Relative paths start at `root_dir`. Without an `id` column the audio path as written is the id, and a part adds
    its times and channel.
    """
    found = []
    try:
        # Names of files need not be UTF-8: surrogateescape gives the very bytes back.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(_lines(path, file), strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            _check_columns(path, reader.fieldnames)
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(f"{path}:{reader.line_num}: the number of cells is not that of the header.")
                found.append((reader.line_num, _from_row(f"{path}:{reader.line_num}", row, root_dir)))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num + 1}: not a csv: {error}.") from error
    return checked(path, found)


def read_txt(path: Path, root_dir: Path) -> list[Utterance]:
    """Read a list of audio paths, one a line; the path as written is the id."""
    lines = numbered_lines(path)
    return checked(path, [(n, Utterance(text, path_in(f"{path}:{n}", text, root_dir))) for n, text in lines])


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a list that hold something, stripped, with their numbers."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(_lines(path, file), start=1):
            if line.strip():
                yield number, line.strip()


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """Yield the lines of a list, none of them longer than memory should hold."""
    try:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), start=1):
            if len(line) == _LONGEST_LINE:
                raise InputError(
                    f"{path}:{number}: a line of {_LONGEST_LINE:,} characters or more; is it a list of audio?"
                )
            if "\0" in line:
                raise InputError(f"{path}:{number}: holds a NUL character. Is it UTF-8?")
            yield line
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if not {"audio", "embedding"} & set(columns):
        hint = " Are cells separated by something other than a comma?" if len(columns) == 1 else ""
        meant = [name for name in columns if name.lower() in _MEANT_AS_AUDIO]
        hint = f" Is {meant[0]!r} meant as 'audio'? Rename it." if meant else hint
        names = ", ".join(name if name.isprintable() else ascii(name) for name in columns)
        raise InputError(f"{path}:1: no column 'audio' or 'embedding'; found {names or 'none'}.{hint}")
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        raise InputError(f"{path}:1: column {', '.join(sorted(repeated))} appears more than once.")


def _from_row(where: str, row: Mapping[str, str], root_dir: Path) -> Utterance:
    audio, embedding = row.get("audio", ""), row.get("embedding", "")
    if not audio and not embedding:
        raise InputError(f"{where}: neither audio nor embedding is given.")
    part = part_of(where, row.get("start", ""), row.get("end", ""), row.get("channel", ""))
    return Utterance(
        id=row.get("id", f"{audio or embedding}{part.suffix}"),
        audio=path_in(where, audio, root_dir) if audio else None,
        speaker=None if row.get("speaker") is None else sys.intern(row["speaker"]),
        embedding=path_in(where, embedding, root_dir) if embedding else None,
        extra={name: cell for name, cell in row.items() if name not in _COLUMNS} or NOTHING,
        part=part,
        duration_seconds=duration_of(row.get("duration", ""), where),
    )


def part_of(where: str, start: str, end: str, channel: str) -> Part:
    """Return the part that cells choose. Raises InputError that names `where` they stand."""
    start, end, channel = start.strip(), end.strip(), channel.strip()
    if not (start or end or channel):
        return WHOLE
    if channel and not channel.removeprefix("-").isdecimal():
        raise InputError(f"{where}: channel {channel[:80]!r} is not a whole number; channels count from 0.")
    return Part(
        start_seconds=seconds_of(where, "start", start) if start else 0.0,
        end_seconds=seconds_of(where, "end", end) if end else None,
        channel=int(channel) if channel else None,
    )


def duration_of(text: str, where: str) -> float | None:
    """Return the seconds of a cell, None if it is empty. Raises InputError."""
    if not text.strip():
        return None
    seconds = seconds_of(where, "duration", text)
    if seconds <= 0:
        raise InputError(f"{where}: duration {text[:80]!r} is not a positive number of seconds.")
    return seconds


def seconds_of(where: str, column: str, text: str) -> float:
    """Return a number of seconds. Raises InputError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InputError(f"{where}: {column} {text[:80]!r} is not a number of seconds.")
    return seconds


def path_in(where: str, text: str, root_dir: Path) -> Path:
    """Return a path as a list gives it. Raises InputError where it is relative and leads out of the corpus folder."""
    path = os.path.normpath(text)
    if os.path.isabs(path):
        return Path(path)
    if path == os.pardir or path.startswith(f"{os.pardir}{os.sep}"):
        raise InputError(
            f"{where}: {text!r} leads out of the corpus folder {root_dir}; "
            "write absolute paths, or set root_dir to a folder above all files and write paths from there."
        )
    return root_dir / path


def checked(path: Path, found: Sequence[tuple[int, Utterance]]) -> list[Utterance]:
    """Return what a list holds, given with line numbers. Raises InputError for ids and files that cannot be."""
    if not found:
        raise InputError(f"{path}: no utterances.")
    _refuse(path, "without an id", found, lambda utterance: not utterance.id.strip())
    _refuse(path, f"with an id of over {_LONGEST_ID:,} characters", found, lambda u: len(u.id) > _LONGEST_ID)
    _refuse_repeated(path, found)
    _refuse(path, "whose file does not exist or is no file", found, lambda u: not all(map(_exists, _files(u))))
    return [utterance for _, utterance in found]


def _refuse(
    path: Path, problem: str, found: Iterable[tuple[int, Utterance]], is_bad: Callable[[Utterance], bool]
) -> None:
    bad = [(line, utterance) for line, utterance in found if is_bad(utterance)]
    if bad:
        line, first = bad[0]
        files = ", ".join(str(file) for file in _files(first))
        raise InputError(f"{path}:{line}: {len(bad)} utterances {problem}, first: id {first.id[:80]!r}, {files[:300]}.")


def _refuse_repeated(path: Path, found: Iterable[tuple[int, Utterance]]) -> None:
    lines: dict[str, int] = {}
    repeated = []
    for line, utterance in found:
        if lines.setdefault(utterance.id, line) != line:
            repeated.append((line, utterance.id))
    if repeated:
        line, id_ = repeated[0]
        raise InputError(f"{path}:{line}: {len(repeated)} repeated ids, first: {id_!r}, also on line {lines[id_]}.")


def _exists(file: Path) -> bool:
    return os.path.isfile(file) or is_member(file)


def _files(utterance: Utterance) -> list[Path]:
    return [path for path in (utterance.audio, utterance.embedding) if path is not None]

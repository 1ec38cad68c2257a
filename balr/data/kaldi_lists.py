"""Read a Kaldi data folder: wav.scp and what lies beside it, `segments`, `utt2spk` and `utt2dur`."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balr.data.readers import checked, duration_of, numbered_lines, part_of, path_in, seconds_of
from balr.errors import InputError
from balr.records import Utterance

log = logging.getLogger(__name__)


def read_scp(path: Path, root_dir: Path) -> list[Utterance]:
    """Read a Kaldi wav.scp, `id path` on each line, and what lies beside it.

    Commands (lines with a pipe) are refused, never run.
    """
    speakers = _read_pairs(path.parent / "utt2spk", lambda text, _: sys.intern(text))
    seconds = _read_pairs(path.parent / "utt2dur", duration_of)
    segments = path.parent / "segments"
    found = []
    for number, line in numbered_lines(path):
        id_, *rest = line.split(maxsplit=1)
        if not rest:
            raise InputError(f"{path}:{number}: expected 'id path', found {line[:80]!r}.")
        if "|" in rest[0]:
            raise InputError(f"{path}:{number}: commands are not run; write the audio to files and list those.")
        audio = path_in(f"{path}:{number}", rest[0], root_dir)
        found.append((number, Utterance(id_, audio, speakers.get(id_), duration_seconds=seconds.get(id_))))
    recordings = checked(path, found)
    return _read_segments(segments, recordings, speakers, seconds) if segments.is_file() else recordings


def _read_segments(
    path: Path, recordings: Sequence[Utterance], speakers: Mapping[str, str], seconds: Mapping[str, float | None]
) -> list[Utterance]:
    """Read a Kaldi segments file, `id recording start end [channel]` on each line; an end of -1 is that of the file."""
    audio = {recording.id: recording.audio for recording in recordings}
    found = []
    for number, line in numbered_lines(path):
        where, cells = f"{path}:{number}", line.split()
        if len(cells) not in (4, 5):
            raise InputError(f"{where}: expected 'id recording start end', found {line[:80]!r}.")
        id_, recording, start, end, channel = (*cells, "")[:5]
        if recording not in audio:
            raise InputError(f"{where}: recording {recording!r} is not in wav.scp.")
        part = part_of(where, start, "" if seconds_of(where, "end", end) == -1 else end, channel)
        utterance = Utterance(id_, audio[recording], speakers.get(id_), part=part, duration_seconds=seconds.get(id_))
        found.append((number, utterance))
    log.info("%s: %d segments of %d recordings", path, len(found), len(recordings))
    return checked(path, found)


def _read_pairs(path: Path, value: Callable[[str, str], Any]) -> Mapping[str, Any]:
    """Return the value of each id of a Kaldi list; nothing where there is no such file."""
    pairs = {}
    for number, line in numbered_lines(path) if path.is_file() else ():
        cells = line.split()
        if len(cells) != 2:
            raise InputError(f"{path}:{number}: expected 'id value', found {line[:80]!r}.")
        pairs[cells[0]] = value(cells[1], f"{path}:{number}")
    return pairs

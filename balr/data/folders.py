"""Read a corpus that is a folder: the audio files below it, linked folders included, in order."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from balr.errors import InputError
from balr.records import Utterance

log = logging.getLogger(__name__)

AUDIO_FORMATS = ("flac", "mp3", "m4a", "ogg", "opus", "wav", "wma")


def suffixes_of(audio_formats: Sequence[str]) -> list[str]:
    """Return the suffixes of files of these formats, such as `.wav`."""
    return sorted({f".{name.strip().lower().lstrip('.')}" for name in audio_formats})


def read_dir(folder: Path, audio_formats: Sequence[str]) -> list[Utterance]:
    """Find audio files below a folder, linked folders included; ids are POSIX paths relative to it, with suffix.

    Raises InputError where a folder cannot be read.
    """
    suffixes = suffixes_of(audio_formats)
    hidden = broken = 0
    found = []
    start = len(os.path.join(folder, ""))
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "." and not _leads_up(Path(parent, name), folder)]
        for name in names:
            file = os.path.join(parent, name)
            if os.path.splitext(name)[1].lower() not in suffixes:
                continue
            if name.startswith("."):
                hidden += 1
            elif not os.path.isfile(file):
                broken += 1
            else:
                found.append(Utterance(file[start:].replace(os.sep, "/"), Path(file)))
    if hidden or broken:
        log.warning("%s: skipped %d hidden files and %d broken links.", folder, hidden, broken)
    return sorted(found, key=lambda utterance: utterance.id.replace("/", "\0"))  # folder by folder


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}.") from error


def _leads_up(path: Path, top: Path) -> bool:
    """Return whether a folder below `top` is a link to one above it there, where a walk would never end."""
    return path.is_symlink() and any(above.samefile(path) for above in path.parents if above.is_relative_to(top))

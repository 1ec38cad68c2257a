"""Read a corpus that is a folder: the audio files below it, linked folders included, in order."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from balr.errors import InputError
from balr.records import Utterance

log = logging.getLogger(__name__)

AUDIO_FORMATS = ("flac", "mp3", "m4a", "ogg", "opus", "wav", "wma")


def read_dir(folder: Path, audio_formats: Sequence[str] = AUDIO_FORMATS) -> list[Utterance]:
    """Find audio files below a folder, linked folders included; ids are POSIX paths relative to it, with suffix."""
    suffixes = tuple({f".{name.strip().lower().lstrip('.')}" for name in audio_formats})
    hidden = broken = 0
    found = []
    start = len(os.path.join(folder, ""))
    for file in _walk(os.fspath(folder)):
        name = os.path.basename(file)
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
    if not found:
        raise InputError(f"{folder}: no audio files; searched for {', '.join(sorted(suffixes))} (see audio_formats).")
    return found


def _walk(top: str) -> Iterator[str]:
    """Yield the files below a folder in order; with a stack of its own, as folders may be nested by the thousand."""
    left: list[tuple[str, bool, tuple[str, ...]]] = [(top, True, (os.path.realpath(top),))]
    while left:
        path, is_folder, chain = left.pop()
        if not is_folder:
            yield path
            continue
        for name, is_inner, is_link in reversed(_entries(path)):
            inner = os.path.join(path, name)
            if not is_inner:
                left.append((inner, False, chain))
            elif not name.startswith("."):
                target = os.path.realpath(inner) if is_link else os.path.join(chain[-1], name)
                if not is_link or target not in chain:  # a link to a folder above would never end
                    left.append((inner, True, (*chain, target)))


def _entries(folder: str) -> list[tuple[str, bool, bool]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, _is_dir(entry), entry.is_symlink()) for entry in entries)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror or error}.") from error


def _is_dir(entry: os.DirEntry[str]) -> bool:
    """Tell a folder; a link that leads to itself, which `entry` raises at, is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()

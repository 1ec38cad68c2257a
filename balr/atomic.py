"""Files that are whole or absent: written under a temporary name in the same folder, then renamed."""

import csv
import errno
import hashlib
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from filelock import FileLock, Timeout

from balr.errors import OutputError, PlaceError

log = logging.getLogger(__name__)

_LOCK = ".balr.lock"
_SECONDS_FOR_A_KILLED_RUN = 2.0
_NO_PLACE_FOR_IT = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
_NO_NAME_HERE = (errno.EINVAL, errno.EILSEQ)  # such as `a:b` on a disk of Windows
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing, creating its folder; it takes the place of `path` only when all is written.

    Raises OutputError that names the file, PlaceError where it is its very path that cannot be.
    """
    temporary = _temporary_beside(path)
    try:
        with as_output_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        _remove(temporary)


def write_together(contents: Iterable[tuple[Path, bytes]]) -> list[OutputError | None]:
    """Write files, each whole or absent, in one go: flushed one after another they take less than each by itself.

    Returns for each what kept it from its place, None if nothing did. After an error that is not of a path alone, no
    more is tried: what comes after it gets the same error.
    """
    files = [_Written(path, content) for path, content in contents]
    try:
        for step in (_Written.write, _Written.flush, _Written.take_place):
            for number, file in enumerate(files):
                try:
                    if file.error is None:
                        with as_output_error(file.path):
                            step(file)
                except PlaceError as error:
                    file.error = error
                except OutputError as error:
                    for one in files[number:]:
                        one.error = one.error or error
        return [file.error for file in files]
    finally:
        for file in files:
            file.clear_away()


class _Written:
    """A file on its way to its place: under a temporary name until it is flushed."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self.error: OutputError | None = None
        self._content = content
        self._temporary: Path | None = _temporary_beside(path)
        self._file: BinaryIO | None = None

    def write(self) -> None:
        assert self._temporary is not None
        try:
            self._file = self._temporary.open("wb")
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
        self._file.write(self._content)
        self._file.flush()

    def flush(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._file.close()

    def take_place(self) -> None:
        assert self._temporary is not None
        self._temporary.replace(self.path)
        self._temporary = None

    def clear_away(self) -> None:
        if self._temporary is not None:
            if self._file is not None:
                with suppress(OSError):  # what could not be written is tried again
                    self._file.close()
            _remove(self._temporary)


@contextmanager
def as_output_error(path: Path) -> Iterator[None]:
    """Raise OutputError that names a file where the system refuses something, PlaceError where that is its path."""
    try:
        yield
    except OSError as error:
        is_of_its_name = error.errno in _NO_NAME_HERE and error.filename is not None  # not of writing or flushing
        if error.errno in _NO_PLACE_FOR_IT or is_of_its_name:
            raise PlaceError(f"{path}: cannot be written: {error.strerror}.") from error
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}.") from error


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f".{uuid4().hex}.tmp")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this run alone and clear away what a killed one left half-written in it.

    The lock goes with its process, or a moment later with the processes that it had forked. Raises OutputError where
    another run holds the folder.
    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=_SECONDS_FOR_A_KILLED_RUN)
    except Timeout as error:
        raise OutputError(
            f"{folder}: another run is at work there; wait until it ends, or choose another save_dir."
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{folder}: cannot be locked: {reason}; choose another save_dir.") from error
    try:
        leftovers = [Path(path) for path in files_of(folder) if is_leftover(path)]
        for path in leftovers:
            _remove(path)
        if leftovers:
            log.info("%d half-written files of a killed run cleared away", len(leftovers))
        yield
    finally:
        lock.release()  # its file stays: one that is taken away under another run would hold nobody off


def files_of(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, save those in folders of other runs."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_of_a_run(os.path.join(parent, name))]
        yield from (os.path.join(parent, name) for name in names)


def is_of_a_run(folder: str) -> bool:
    """Tell whether a folder is the save_dir of a run: it holds a lock of its own."""
    return os.path.lexists(os.path.join(folder, _LOCK))


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises OutputError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (*_NO_PLACE_FOR_IT, *_NO_NAME_HERE):  # where no such file can be, there is none
            raise OutputError(f"{path}: cannot be removed: {error.strerror or error}.") from error


def is_leftover(path: str) -> bool:
    """Tell by its name whether a file is one that a killed run left half-written."""
    return path.endswith(".tmp") and _TEMPORARY.fullmatch(os.path.basename(path)) is not None


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write a csv, whole or not at all. Raises OutputError."""
    with whole_file(path) as file:
        # File names need not be UTF-8: surrogateescape gives the very bytes back.
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
        columns = list(header)
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        quoting = csv.DictWriter(text, columns, restval="", lineterminator="\n", quoting=csv.QUOTE_ALL)
        for row in (dict(zip(columns, columns, strict=True)), *rows):
            # A lone carriage return would be the end of a line for whoever reads it, and is not quoted by itself.
            (quoting if any("\r" in cell for cell in row.values()) else writer).writerow(row)
        text.detach()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: Path) -> None:
    """Create a folder and try to write in it. Raises OutputError."""
    probe = folder / f".{uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written to: {error.strerror or error}; choose another save_dir."
        ) from error
    finally:
        _remove(probe)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # its folder is no folder, or not ours: then nothing was written either
        return

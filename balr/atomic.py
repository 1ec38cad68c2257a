"""Files that are whole or absent: written beside their place, flushed to disk, then renamed."""

import csv
import errno
import hashlib
import io
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from balr.errors import OutputError, PlaceError

TEMPORARY = ".tmp"
_PATH_IMPOSSIBLE = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
_NAME_REFUSED = (errno.EINVAL, errno.EILSEQ)  # such as `a:b` on a disk of Windows


@contextmanager
def as_output_error(path: str | Path, action: str = "written") -> Iterator[None]:
    """Turn an OSError into an OutputError that names the file, PlaceError where its very path is the reason."""
    try:
        yield
    except OSError as error:
        is_name_refused = error.errno in _NAME_REFUSED and error.filename is not None  # not by a write or a flush
        kind = PlaceError if error.errno in _PATH_IMPOSSIBLE or is_name_refused else OutputError
        raise kind(f"{path}: cannot be {action}: {error.strerror or error}.") from error


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing, creating its folder; it replaces `path` when all is written. Raises OutputError."""
    temporary = f"{path}{TEMPORARY}"
    with as_output_error(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # its folder is no folder, or not ours: nothing was written
                os.unlink(temporary)
            raise


def write_together(contents: Iterable[tuple[str, bytes]]) -> list[PlaceError | None]:
    """Write files, each whole or absent; flushed one after another they take less time than each by itself.

    Returns for each the error of its path, None where it was written. Raises OutputError where nothing can be written.
    """
    files = [_written_then_flushed(path, content) for path, content in contents]
    errors: list[PlaceError | None] = [None] * len(files)
    with ExitStack() as stack:
        for file in files:
            stack.callback(file.close)
        for _ in ("written", "flushed and renamed"):
            for number, file in enumerate(files):
                try:
                    next(file, None)
                except PlaceError as error:
                    errors[number] = error
    return errors


def _written_then_flushed(path: str, content: bytes) -> Generator[None, None, None]:
    with whole_file(path) as file:
        file.write(content)
        file.flush()
        yield


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write a csv, whole or not at all. Raises OutputError."""
    with whole_file(path) as file:
        write_rows(file, columns, [dict(zip(columns, columns, strict=True))])
        write_rows(file, columns, rows)


def write_rows(file: BinaryIO, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows of a csv; a column that a row lacks is an empty cell."""
    # File names need not be UTF-8: surrogateescape gives the very bytes back.
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    plain, quoting = (
        csv.writer(text, lineterminator="\n", quoting=kind) for kind in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        # csv does not quote a lone carriage return, which readers take for the end of a line.
        (quoting if any("\r" in cell for cell in cells) else plain).writerow(cells)
    text.flush()
    text.detach()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

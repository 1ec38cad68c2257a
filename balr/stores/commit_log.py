"""A csv that only grows while a run works: a kill at any moment costs at most its last line."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from balr.atomic import as_output_error, write_csv, write_rows
from balr.errors import OutputError

Row = Mapping[str, str]


class CommitLog:
    """Rows of a csv, appended as they come. Its header begins with `columns`, or the file is not balr's."""

    def __init__(self, path: Path, columns: Sequence[str], *, more_columns: Iterable[str] = ()) -> None:
        self.path = path
        self._columns = list(columns)
        self._header = [*columns, *more_columns]
        self._file: tuple[int, int] | None = None  # device and inode, once rows can be appended

    @property
    def has_begun(self) -> bool:
        """Return whether rows can be appended."""
        return self._file is not None

    @property
    def is_ours(self) -> bool:
        """Return whether the file begins with the columns of balr's."""
        try:
            with self.path.open("rb") as content:
                return content.readline().rstrip().split(b",")[: len(self._columns)] == [
                    column.encode() for column in self._columns
                ]
        except OSError:
            return False

    def read(self) -> Iterator[dict[str, str]]:
        """Yield the rows, without a last one that a kill left incomplete. Raises OutputError."""
        if not self.path.is_file():
            return
        with as_output_error(self.path, "read"), self.path.open("rb") as content:
            reader = csv.reader(_lines(content), strict=True)
            try:
                header = next(reader, [])
            except (csv.Error, ValueError):
                header = []
            if header[: len(self._columns)] != self._columns:
                raise OutputError(
                    f"{self.path}: was not written by balr and would be overwritten; choose another save_dir."
                )
            try:
                for cells in reader:
                    yield dict(zip(header, cells, strict=True))
            except (csv.Error, ValueError) as error:
                if next(content, None) is not None:
                    raise OutputError(
                        f"{self.path}:{reader.line_num}: damaged: {error}; choose another save_dir, or remove the file "
                        "and embed all again."
                    ) from error

    def begin(self, rows: Iterable[Row]) -> None:
        """Write the file anew, whole or not at all; rows can be appended to it from now on. Raises OutputError."""
        write_csv(self.path, self._header, rows)
        with as_output_error(self.path, "read"):
            self._file = self._found()

    def append(self, rows: Iterable[Row], *, durably: bool) -> None:
        """Add rows; `durably` also flushes them to disk. Raises OutputError, also where the file has vanished."""
        self.check()
        with as_output_error(self.path), open(os.open(self.path, os.O_WRONLY | os.O_APPEND), "ab") as file:
            write_rows(file, self._header, rows)
            file.flush()
            if durably:
                os.fsync(file.fileno())

    def check(self) -> None:
        """Raise OutputError where rows were appended to a file that is no longer in its place."""
        with suppress(OSError):
            if self._file is None or self._file == self._found():
                return
        raise OutputError(f"{self.path}: was removed or replaced by something else while the run worked.")

    def finish(self, rows: Iterable[Row]) -> None:
        """Write the file anew in its final order. Raises OutputError."""
        write_csv(self.path, self._header, rows)
        self._file = None

    def remove(self) -> None:
        """Remove the file, if there is one. Raises OutputError."""
        with as_output_error(self.path, "removed"):
            if self.path.is_file():
                self.path.unlink()
        self._file = None

    def _found(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_dev, status.st_ino


def _lines(content: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a file as text, without a last one that a kill left incomplete."""
    for line in content:
        if not line.endswith(b"\n"):
            return
        if b"\0" in line:  # no path holds one; a disk without power may leave a tail of them
            raise ValueError("a NUL character")
        yield line.decode(errors="surrogateescape")

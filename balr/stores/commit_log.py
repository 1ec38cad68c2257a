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
    """Rows of a csv, appended as they come. Its header begins with `columns`, or the file is not balr's.

    `has_begun`: rows can be appended, as the file was written by this object.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, more_columns: Iterable[str] = ()) -> None:
        self.path = path
        self.has_begun = False
        self._begins_with = ",".join(columns).encode()
        self._header = [*columns, *more_columns]

    @property
    def is_ours(self) -> bool:
        """Return whether the file begins with the columns of balr's."""
        with suppress(OSError), self.path.open("rb") as content:
            return content.readline().startswith(self._begins_with)
        return False

    def read(self) -> Iterator[dict[str, str]]:
        """Yield the rows, without a last one that a kill left incomplete. Raises OutputError.

        What is written after that has the columns that were found.
        """
        if not self.path.is_file():
            return
        with as_output_error(self.path, "read"), self.path.open("rb") as content:
            if not self.is_ours:
                raise OutputError(
                    f"{self.path}: was not written by balr and would be overwritten; choose another save_dir."
                )
            reader = csv.reader(_lines(content), strict=True)
            try:
                self._header = next(reader, self._header)
                for cells in reader:
                    yield dict(zip(self._header, cells, strict=True))
            except (csv.Error, ValueError) as error:
                if next(content, None) is not None:
                    raise OutputError(
                        f"{self.path}:{reader.line_num}: damaged: {error}; choose another save_dir, or remove the file "
                        "and embed all again."
                    ) from error

    def write(self, rows: Iterable[Row]) -> None:
        """Write the file anew, whole or not at all. Raises OutputError."""
        write_csv(self.path, self._header, rows)
        self.has_begun = True

    def append(self, rows: Iterable[Row], *, durably: bool) -> None:
        """Add rows; `durably` also flushes them to disk. Raises OutputError, also where the file has vanished."""
        with as_output_error(self.path), open(os.open(self.path, os.O_WRONLY | os.O_APPEND), "ab") as file:
            write_rows(file, self._header, rows)
            file.flush()
            if durably:
                os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove the file, if there is one. Raises OutputError."""
        with as_output_error(self.path, "removed"):
            self.path.unlink(missing_ok=True)
        self.has_begun = False


def _lines(content: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a file as text, without a last one that a kill left incomplete."""
    for line in content:
        if not line.endswith(b"\n"):
            return
        if b"\0" in line:  # no path holds one; a disk without power may leave a tail of them
            raise ValueError("a NUL character")
        yield line.decode(errors="surrogateescape")

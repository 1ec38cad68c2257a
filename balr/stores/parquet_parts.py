"""The files of a parquet store, to read: its parts, and the batches that are not part of one yet."""

import re
from collections.abc import Iterator, Set
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from balr.atomic import whole_file
from balr.errors import InputError, OutputError, one_line
from balr.records import format_seconds
from balr.stores.commit_log import Row
from balr.stores.manifest import COLUMNS

_PART = re.compile(r"part(-\d+-of-\d+)?-\d+\.parquet")
_ROWS_PER_GROUP = 1_024  # sorted by id: to read some ids, few groups are read
CARD = """---
configs:
- config_name: default
  data_files: "part-*.parquet"
---
Speaker embeddings that balr computed, one a row: `embedding` is that of `audio_path`, from `start` to `end` where these
are given. run.json says of which model they are.
"""


def parts_in(folder: Path) -> list[Path]:
    """Return the parts below a folder, in order."""
    return sorted(path for path in folder.glob("part-*.parquet") if _PART.fullmatch(path.name))


def pending_in(folder: Path) -> list[Path]:
    """Return the streams of batches that are not part of a part yet."""
    return sorted(folder.glob("pending*.arrows"))


def ids_of(folder: Path) -> set[str]:
    """Return the ids in all parts. Raises OutputError where a part cannot be read."""
    ids: set[str] = set()
    for part in parts_in(folder):
        try:
            ids.update(pq.read_table(part, columns=["id"])["id"].to_pylist())
        except (OSError, pa.ArrowException, KeyError) as error:
            raise OutputError(
                f"{part}: damaged, or not balr's: {one_line(error)[:100]}; remove it, and the same command embeds its "
                "utterances again."
            ) from error
    return ids


def embeddings_of(table: pa.Table) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield the ids and embeddings `(dim,)` of a table."""
    for rows in table.to_batches():
        yield from zip(rows["id"].to_pylist(), _matrix(rows["embedding"]), strict=True)


def load_parts(folder: Path) -> tuple[list[str], npt.NDArray[np.float32], pa.Table]:
    """Read all parts: ids, embeddings `(utterances, dim)`, the other columns. Raises InputError."""
    try:
        tables = [pq.read_table(part, page_checksum_verification=True) for part in parts_in(folder)]
        table = pa.concat_tables(tables, promote_options="default")
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{folder}: {one_line(error)[:200]}; balr verify shows which part is damaged.") from error
    column = table["embedding"]
    matrix = np.concatenate([_matrix(chunk) for chunk in column.chunks])
    others = table.drop(["id", "embedding"])
    names = ["audio" if name == "audio_path" else name for name in others.column_names]
    return table["id"].to_pylist(), matrix, others.rename_columns(names)


def rows_in_parts(folder: Path) -> Iterator[Row]:
    """Yield the rows of all parts as those of metadata.csv; a part that cannot be read is one row."""
    for part in parts_in(folder):
        try:
            names = [name for name in pq.read_schema(part).names if name != "embedding"]
            rows = pq.read_table(part, columns=names, page_checksum_verification=True).to_pylist()
        except (OSError, pa.ArrowException):
            cells = {"id": part.name, "audio": part.name, "embedding": f"{part.name}/damaged"}
            yield dict.fromkeys(COLUMNS, "") | cells
            continue
        for number, cells in enumerate(rows):
            row = {name: _cell(cell) for name, cell in cells.items()}
            yield row | {"audio": row.pop("audio_path"), "embedding": f"{part.name}/{number}", "crc32": ""}


def read_in_part(place: Path) -> npt.NDArray[Any]:
    """Read the embedding `(dim,)` at a place such as `part-00000.parquet/17`. Raises ValueError."""
    try:
        embedding: npt.NDArray[Any] = _embeddings(place.parent)[int(place.name)]
    except (OSError, ValueError, pa.ArrowException, LookupError) as error:
        raise ValueError(f"the part is damaged: {one_line(error)[:100]}") from error
    return embedding


def drop_rows(folder: Path, ids: Set[str]) -> None:
    """Write the parts that hold some of these ids anew, without them; a part that cannot be read goes by its name.

    Raises OutputError.
    """
    for part in parts_in(folder):
        found = [part.name] if part.name in ids else pq.read_table(part, columns=["id"])["id"].to_pylist()
        kept = [number for number, id_ in enumerate(found) if id_ not in ids]
        if kept and len(kept) < len(found):
            write_part(part, pq.read_table(part).take(kept))
        elif not kept:
            part.unlink()


def write_part(part: Path, table: pa.Table) -> None:
    """Write a part, sorted by id, whole or not at all. Raises OutputError."""
    with whole_file(part) as file:
        pq.write_table(
            table.sort_by("id"),
            file,
            compression="zstd",
            row_group_size=_ROWS_PER_GROUP,
            use_dictionary=["speaker"],
            write_page_checksum=True,
        )


@lru_cache(maxsize=2)
def _embeddings(part: Path) -> npt.NDArray[Any]:
    table = pq.read_table(part, columns=["embedding"], page_checksum_verification=True)
    return _matrix(table["embedding"].combine_chunks())


def _matrix(column: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    matrix: npt.NDArray[Any] = column.flatten().to_numpy().reshape(len(column), -1)
    return matrix


def _cell(value: object) -> str:
    return "" if value is None else format_seconds(value) if isinstance(value, float) else str(value)


def read_pending(file: Path) -> Iterator[pa.RecordBatch]:
    """Yield the whole batches of a file of streams; a kill may have cut the last one anywhere."""
    try:
        with pa.OSFile(str(file)) as source:
            while source.tell() < source.size():
                with pa.ipc.open_stream(source) as stream:
                    yield from stream
    except (OSError, pa.ArrowException):
        return

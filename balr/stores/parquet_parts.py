"""The files of a parquet store: whole parts, and streams of batches that will each be one."""

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

_PART = re.compile(r"part(-\d+-of-\d+)?-\d+\.(parquet|arrows)")
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
    """Return the parts in a folder, in order, and the streams of which there is no part yet."""
    found = {path for path in folder.glob("part-*") if _PART.fullmatch(path.name)}
    return sorted(path for path in found if path.suffix == ".parquet" or path.with_suffix(".parquet") not in found)


def read_part(part: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a part, or the whole batches of a stream: a kill may have cut off the last one anywhere.

    Raises OSError or ArrowException.
    """
    if part.suffix == ".arrows" and part.is_file():  # else it has just been made a part
        if batches := list(_whole_batches(part)):
            table = pa.Table.from_batches(batches)
            return table.select(columns) if columns else table
        raise pa.ArrowInvalid("no whole batch")
    return pq.read_table(part.with_suffix(".parquet"), columns=columns, page_checksum_verification=True)


def encode_rows(rows: pa.RecordBatch) -> pa.Buffer:
    """Return a batch as a stream of its own, to append to others."""
    content = pa.BufferOutputStream()
    with pa.ipc.new_stream(content, rows.schema) as stream:
        stream.write_batch(rows)
    return content.getvalue()


def ids_of(folder: Path) -> set[str]:
    """Return the ids in all parts. Raises OutputError where a part cannot be read."""
    ids: set[str] = set()
    for part in parts_in(folder):
        try:
            ids.update(read_part(part, ["id"])["id"].to_pylist())
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
        table = pa.concat_tables(map(read_part, parts_in(folder)), promote_options="default")
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
            rows = read_part(part).drop(["embedding"]).to_pylist()
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
        changed_ns = place.parent.stat().st_mtime_ns
        embedding: npt.NDArray[Any] = _embeddings(place.parent, changed_ns)[int(place.name)]
    except (OSError, ValueError, pa.ArrowException, LookupError) as error:
        raise ValueError(f"the part is damaged: {one_line(error)[:100]}") from error
    return embedding


def drop_rows(folder: Path, ids: Set[str]) -> None:
    """Write the parts that hold some of these ids anew, without them; a part that cannot be read goes by its name.

    Raises OutputError.
    """
    for part in parts_in(folder):
        found = [part.name] if part.name in ids else read_part(part, ["id"])["id"].to_pylist()
        kept = [number for number, id_ in enumerate(found) if id_ not in ids]
        if len(kept) == len(found):
            continue
        if kept:
            write_part(part.with_suffix(".parquet"), read_part(part).take(kept))
        else:
            part.unlink()
        part.with_suffix(".arrows").unlink(missing_ok=True)  # or it would count again once its part is gone


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


@lru_cache(maxsize=2)  # a part that was written anew is another entry
def _embeddings(part: Path, changed_ns: int) -> npt.NDArray[Any]:
    return _matrix(read_part(part, ["embedding"])["embedding"].combine_chunks())


def _matrix(column: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    matrix: npt.NDArray[Any] = column.flatten().to_numpy().reshape(len(column), -1)
    return matrix


def _cell(value: object) -> str:
    return "" if value is None else format_seconds(value) if isinstance(value, float) else str(value)


def _whole_batches(file: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pa.OSFile(str(file)) as source:
            while source.tell() < source.size():
                with pa.ipc.open_stream(source) as stream:
                    yield from stream
    except (OSError, pa.ArrowException):
        return

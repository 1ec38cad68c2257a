"""The files of a parquet store, to read: its parts, and the batches that are not part of one yet."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from balr.errors import InputError, OutputError, one_line
from balr.records import format_seconds
from balr.stores.commit_log import Row
from balr.stores.manifest import COLUMNS

_PART = re.compile(r"part(-\d+-of-\d+)?-\d+\.parquet")
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


def stored_in_parts(folder: Path) -> Iterator[tuple[Row, npt.NDArray[Any] | Exception]]:
    """Yield the rows of all parts, as those of metadata.csv, with their embeddings; a damaged part is one row."""
    for part in parts_in(folder):
        try:
            table = pq.read_table(part, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            yield dict.fromkeys(COLUMNS, "") | {"id": part.name, "audio": part.name, "embedding": part.name}, error
            continue
        others = table.drop(["embedding"]).to_pylist()
        for number, (cells, embedding) in enumerate(
            zip(others, _matrix(table["embedding"].combine_chunks()), strict=True)
        ):
            row = {name: _cell(cells.pop(name)) for name in list(cells)}
            row |= {"audio": row.pop("audio_path"), "embedding": f"{part.name}/{number}", "crc32": ""}
            yield row, embedding


def _matrix(column: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    return column.flatten().to_numpy().reshape(len(column), -1)  # type: ignore[no-any-return]


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

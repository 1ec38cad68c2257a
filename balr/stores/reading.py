"""Read a store of any kind: its rows, in the columns of metadata.csv, and its embeddings."""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from balr.errors import BalrError, InputError, one_line
from balr.records import WHOLE, Part, Utterance
from balr.stores.ark import is_in_ark, read_ark
from balr.stores.commit_log import Row
from balr.stores.embedding_files import checksum, decode, read_content, read_embedding
from balr.stores.manifest import KNOWN_COLUMNS, manifests_in

if TYPE_CHECKING:
    import pyarrow as pa

Stored = tuple[Row, npt.NDArray[Any] | Exception]


def is_store(folder: Path) -> bool:
    """Return whether a folder holds embeddings of runs."""
    if (folder / "run.json").is_file() and has_parts(folder):
        return True
    return any(manifest.is_ours for manifest in manifests_in(folder))


def has_parts(folder: Path) -> bool:
    """Return whether a folder holds parquet parts, or streams that will be parts; needs no pyarrow."""
    return any(path.suffix in (".parquet", ".arrows") for path in folder.glob("part-*"))


def rows_of(folder: Path) -> Iterator[Row]:
    """Yield a row for each embedding, with the columns of metadata.csv; `embedding` says where it is.

    Raises OutputError where a list is damaged.
    """
    seen: set[str] = set()
    for manifest in manifests_in(folder):
        for row in manifest.read():
            if row["id"] not in seen:
                seen.add(row["id"])
                yield row
    if has_parts(folder):
        from balr.stores.parquet_parts import rows_in_parts

        yield from rows_in_parts(folder)


def stored(folder: Path) -> Iterator[Stored]:
    """Yield each row with its embedding `(dim,)`, or with the error where that is damaged."""
    for row in rows_of(folder):
        try:
            yield row, read_listed(folder, row)
        except (OSError, ValueError, BalrError) as error:
            yield row, error


def utterance_of(folder: Path, row: Row) -> Utterance:
    """Return the utterance of a row of a store, with the path of its embedding."""
    part = WHOLE
    if row.get("start") or row.get("end") or row.get("channel"):
        start, end, channel = (row.get(name) or None for name in ("start", "end", "channel"))
        part = Part(float(start or 0.0), float(end) if end else None, int(channel) if channel else None)
    return Utterance(
        row["id"],
        Path(row["audio"]) if row["audio"] else None,
        row["speaker"] or None,
        folder / row["embedding"],
        {name: cell for name, cell in row.items() if name not in KNOWN_COLUMNS},
        part,
        number_in(row.get("duration_seconds") or row.get("duration")),
    )


def number_in(cell: object) -> float | None:
    """Return the number in a cell, None where there is none: a column may be a user's own."""
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def as_utf8(text: str) -> str:
    """Escape bytes that are not UTF-8, as names of files may have."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def load_embeddings(save_dir: str | Path) -> "tuple[list[str], npt.NDArray[np.float32], pa.Table]":
    """Read a store of any kind: ids, a matrix `(utterances, dim)` of embeddings, a table of the other columns.

    In the table, bytes that are not UTF-8 are escaped. Raises InputError where the folder holds no embeddings, or a
    damaged one.
    """
    import pyarrow as pa

    from balr.stores.parquet_parts import load_parts, parts_in

    folder = Path(save_dir).expanduser()
    if parts_in(folder):
        return load_parts(folder)
    count, columns = 0, dict[str, list[str]]()
    numbers = array("f")  # grows in place, where a list of arrays would be in memory twice
    for row, embedding in stored(folder):
        if isinstance(embedding, Exception):
            raise InputError(f"{folder}: {row['id']}: {one_line(embedding)}; balr verify shows all that is damaged.")
        for name, cell in row.items():
            cells = columns.setdefault(name, [])
            cells += [""] * (count - len(cells))  # a column that another list does not have
            cells.append(cell)
        count += 1
        numbers.frombytes(embedding.astype(np.float32, copy=False).tobytes())
        if len(numbers) != count * embedding.size:
            raise InputError(
                f"{folder}: {row['id']}: {embedding.size} numbers, unlike others; balr verify shows which."
            )
    if not columns:
        raise InputError(f"{folder}: holds no embeddings; give the save_dir of a run.")
    ids = columns.pop("id")
    others = {
        name: [as_utf8(cell) for cell in cells + [""] * (count - len(cells))]
        for name, cells in columns.items()
        if name not in ("embedding", "crc32")
    }
    return ids, np.frombuffer(numbers, np.float32).reshape(len(ids), -1), pa.table(others)


def read_listed(folder: Path, row: Row) -> npt.NDArray[Any]:
    """Read the embedding `(dim,)` of a row. Raises OSError, InputError, or ValueError where it is damaged."""
    path = os.path.join(folder, row["embedding"])
    if not row["audio"] or not row["crc32"]:  # not written by balr, or in a part, which has checksums of its own
        return read_embedding(Path(path))
    embedding = read_ark(path, id_=row["id"]) if is_in_ark(path) else None
    content = read_content(path) if embedding is None else embedding.tobytes()
    if (found := checksum(content)) != row["crc32"]:
        raise ValueError(f"its CRC-32 is {found}, and {row['crc32']} in metadata.csv")
    return decode(content, os.path.splitext(path)[1]) if embedding is None else embedding

"""Read a store of any kind: its rows, in the columns of metadata.csv, and its embeddings."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from balr.errors import InputError, one_line
from balr.stores.ark import is_in_ark, read_ark
from balr.stores.commit_log import Row
from balr.stores.embedding_files import checksum, decode, read_content
from balr.stores.manifest import manifests_in

if TYPE_CHECKING:
    import pyarrow as pa

Stored = tuple[Row, npt.NDArray[Any] | Exception]


def is_store(folder: Path) -> bool:
    """Return whether a folder holds the embeddings of runs."""
    return bool(manifests_in(folder)) or any(folder.glob("part-*.parquet"))


def stored(folder: Path) -> Iterator[Stored]:
    """Yield the row of each embedding, once, with the embedding `(dim,)`, or the error where it is damaged.

    Rows have the columns of metadata.csv; `embedding` says where it is. Raises OutputError where a list is damaged.
    """
    seen: set[str] = set()
    for manifest in manifests_in(folder):
        for row in manifest.read():
            if row["id"] not in seen:
                seen.add(row["id"])
                yield row, _read_checked(folder, row)
    if any(folder.glob("part-*.parquet")):
        from balr.stores.parquet_parts import stored_in_parts

        yield from stored_in_parts(folder)


def read_place(folder: Path, place: str) -> npt.NDArray[Any]:
    """Read the embedding `(dim,)` at a place that a manifest names. Raises OSError or ValueError."""
    path = os.path.join(folder, place)
    return read_ark(path) if is_in_ark(place) else decode(read_content(path), os.path.splitext(path)[1])


def load_embeddings(save_dir: str | Path) -> "tuple[list[str], npt.NDArray[np.float32], pa.Table]":
    """Read a store of any kind: ids, a matrix `(utterances, dim)` of embeddings, a table of the other columns.

    Raises InputError where the folder holds no embeddings, or a damaged one.
    """
    import pyarrow as pa

    from balr.stores.parquet_parts import load_parts, parts_in

    folder = Path(save_dir).expanduser()
    if parts_in(folder):
        return load_parts(folder)
    rows, embeddings = [], []
    for row, embedding in stored(folder):
        if isinstance(embedding, Exception):
            raise InputError(f"{folder}: {row['id']}: {one_line(embedding)}; balr verify shows all that is damaged.")
        rows.append(row)
        embeddings.append(embedding)
    if not rows:
        raise InputError(f"{folder}: holds no embeddings; give the save_dir of a run.")
    if len({embedding.size for embedding in embeddings}) > 1:
        raise InputError(f"{folder}: embeddings of several sizes; balr verify shows which.")
    table = pa.Table.from_pylist(rows)
    return (
        table["id"].to_pylist(),
        np.stack(embeddings).astype(np.float32, copy=False),
        table.drop(["id", "embedding", "crc32"]),
    )


def _read_checked(folder: Path, row: Row) -> npt.NDArray[Any] | Exception:
    """Read the embedding of a row and compare it with its checksum."""
    path = os.path.join(folder, row["embedding"])
    try:
        if is_in_ark(path):
            embedding = read_ark(path)
            found = checksum(embedding.tobytes())
        else:
            content = read_content(path)
            embedding, found = decode(content, os.path.splitext(path)[1]), checksum(content)
        if row["crc32"] and found != row["crc32"]:
            raise ValueError(f"its CRC-32 is {found}, and {row['crc32']} in metadata.csv")
    except (OSError, ValueError) as error:
        return error
    return embedding

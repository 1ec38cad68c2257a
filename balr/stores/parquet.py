"""Parquet: parts that are each whole or absent, and list what they hold; a million embeddings are 123 files.

What came since the last part lies in a stream of Arrow batches, flushed after each, and is made a part when there is
enough of it, by the next run too. A batch that a kill left incomplete is dropped.
"""

import os
from collections.abc import Collection, Iterator, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from balr.atomic import as_output_error, whole_file
from balr.errors import ConfigError, InputError, OutputError
from balr.records import Embedded, Failure, Utterance
from balr.stores.base import Store, StoredCorpus
from balr.stores.listed import refuse_foreign
from balr.stores.manifest import COLUMNS, columns_of
from balr.stores.parquet_parts import CARD, embeddings_of, ids_of, parts_in, pending_in, read_pending, write_part

_KNOWN = (*COLUMNS, "audio_path", "start", "end", "channel", "duration", "duration_seconds")


class ParquetStore(Store):
    """Store embeddings, with what the corpus says of them, as parts of `rows_per_part` rows.

    Columns: `id`, `audio_path`, `start`, `end` (seconds), `channel`, `speaker`, `duration_seconds`, `embedding`
    (float32, of fixed size), and the other columns of the corpus as text. The first part fixes them. Raises InputError
    where an id, a path or another cell is not UTF-8.
    """

    def __init__(self, corpus: StoredCorpus, *, rows_per_part: int) -> None:
        super().__init__(corpus)
        if type(rows_per_part) is not int or rows_per_part < 1:
            raise ConfigError(f"store.rows_per_part={rows_per_part}: must be a whole number, 1 or more.")
        odd = [utterance.id for utterance in self.utterances if not _is_utf_8(utterance)]
        if odd:
            raise InputError(
                f"{len(odd)} utterances with names that are not UTF-8 in {corpus.root}, first {odd[0]!r}, which "
                "parquet cannot hold; rename them, or choose store=files or store=kaldi."
            )
        self._rows_per_part = rows_per_part
        self._stem = f"part{self.shard.tag.replace('.', '-')}"
        self._pending = self.folder / f"pending{self.shard.tag}.arrows"
        self._waiting: list[pa.RecordBatch] = []
        self._schema: pa.Schema | None = None
        self._new: list[Path] = []

    @property
    def listing(self) -> Path:
        """Return the pattern of its parts."""
        return self.folder / f"{self._stem}-*.parquet"

    def completed(self) -> Set[str]:
        """Return the ids in all parts. Raises OutputError where they are of another corpus, or a part is damaged."""
        return self._found

    def clear(self) -> None:
        """Remove all parts, the last one first."""
        for file in [*pending_in(self.folder), *reversed(parts_in(self.folder))]:
            with as_output_error(file, "removed"):
                file.unlink()
        self._found, self._schema = set(), None

    def write(self, batch: Sequence[Embedded]) -> list[Failure]:
        """Append a batch to what waits to become a part. Raises OutputError."""
        found, rows = self._found, self._rows(batch)
        self._append(rows)
        found.update(one.utterance.id for one in batch)
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= self._rows_per_part:
            self._make_part()
        return []

    def read(self, ids: Collection[str] | None = None) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield ids and embeddings `(dim,)`, part by part."""
        chosen = None if ids is None else [("id", "in", list(ids))]
        for part in parts_in(self.folder):
            yield from embeddings_of(pq.read_table(part, columns=["id", "embedding"], filters=chosen))
        for id_, embedding in embeddings_of(pa.Table.from_batches(self._waiting)) if self._waiting else ():
            if ids is None or id_ in ids:
                yield id_, embedding

    def close(self) -> None:
        """Make a part of what waits. Raises OutputError where parts of this run have vanished."""
        found = self._found
        self._make_part()
        if not self.shard.tag and found:
            with whole_file(self.folder / "README.md") as file:
                file.write(CARD.encode())
        vanished = [part for part in self._new if not part.is_file()]
        if vanished:
            raise OutputError(
                f"{vanished[0]}: vanished while the run worked, and {len(vanished) - 1} other parts; the same command "
                "embeds them again."
            )

    @cached_property
    def _found(self) -> set[str]:
        ids = ids_of(self.folder)
        self._recover(ids)
        refuse_foreign(self.folder, sorted(ids - {utterance.id for utterance in self.utterances}))
        return ids

    def _recover(self, ids: set[str]) -> None:
        """Make a part of what earlier runs left: of this shard, or of all where this is the whole corpus."""
        for file in pending_in(self.folder) if not self.shard.tag else [self._pending]:
            for rows in read_pending(file):
                new = [number for number, id_ in enumerate(rows["id"].to_pylist()) if id_ not in ids]
                self._waiting += [rows.take(new)] if new else []
                ids.update(rows["id"].to_pylist())
            self._make_part()
            file.unlink(missing_ok=True)

    def _append(self, rows: pa.RecordBatch) -> None:
        """Append a batch, as a stream of its own, to the file of what is no part yet, and flush it to disk."""
        if self._waiting and not self._pending.is_file():
            raise OutputError(f"{self._pending}: was removed by something else while the run worked.")
        content = pa.BufferOutputStream()
        with pa.ipc.new_stream(content, rows.schema) as stream:
            stream.write_batch(rows)
        with as_output_error(self._pending), open(self._pending, "ab" if self._waiting else "wb") as file:
            file.write(content.getvalue())
            file.flush()
            os.fsync(file.fileno())

    def _make_part(self) -> None:
        if self._waiting:
            numbers = [int(part.stem.rpartition("-")[2]) for part in self.folder.glob(f"{self._stem}-?????.parquet")]
            part = self.folder / f"{self._stem}-{max(numbers, default=-1) + 1:05}.parquet"
            write_part(part, pa.Table.from_batches(self._waiting))
            self._new.append(part)
            self._waiting = []
            with as_output_error(self._pending, "removed"):
                self._pending.unlink(missing_ok=True)

    def _rows(self, batch: Sequence[Embedded]) -> pa.RecordBatch:
        """Return the rows of embeddings, in the columns of the first part."""
        utterances = [one.utterance for one in batch]
        matrix = np.stack([one.embedding for one in batch])
        schema = self._schema = self._schema or self._columns(matrix.shape[1])
        parts = [utterance.part for utterance in utterances]
        columns: dict[str, Any] = {
            "id": [utterance.id for utterance in utterances],
            "audio_path": [str(utterance.audio) for utterance in utterances],
            "start": [part.start_seconds if part.is_segment else None for part in parts],
            "end": [part.end_seconds for part in parts],
            "channel": [part.channel for part in parts],
            "speaker": [utterance.speaker for utterance in utterances],
            "duration_seconds": [one.audio_seconds or None for one in batch],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1]),
        }
        for name in schema.names[len(columns) :]:
            columns[name] = [utterance.extra.get(name) for utterance in utterances]
        arrays = [pa.array(columns[field.name], field.type) for field in schema]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _columns(self, dim: int) -> pa.Schema:
        """Return the columns of the first part, or the columns that it will have."""
        for part in parts_in(self.folder):
            return pq.read_schema(part).remove_metadata()
        types = {"start": pa.float64(), "end": pa.float64(), "channel": pa.int32(), "duration_seconds": pa.float64()}
        known = ("id", "audio_path", "start", "end", "channel", "speaker", "duration_seconds")
        fields = [pa.field(name, types.get(name, pa.string())) for name in known]
        fields.append(pa.field("embedding", pa.list_(pa.float32(), dim)))
        extra = [name for name in columns_of(self.utterances) if name not in _KNOWN]
        return pa.schema([*fields, *(pa.field(name, pa.string()) for name in extra)])


def _is_utf_8(utterance: Utterance) -> bool:
    try:
        "".join((utterance.id, str(utterance.audio), utterance.speaker or "", *utterance.extra.values())).encode()
    except UnicodeEncodeError:
        return False
    return True

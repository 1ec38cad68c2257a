"""Parquet: parts that are each whole or absent, and list what they hold; a million embeddings are 123 files.

What is not a whole part yet lies under the name that it will have, as `.arrows`: a stream of Arrow batches, flushed
after each. A batch that a kill left incomplete is dropped, and the rest made a part by the next run.
"""

import os
from collections.abc import Collection, Iterator, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from balr.atomic import as_output_error, whole_file
from balr.errors import ConfigError, InputError, OutputError
from balr.records import Embedded, Failure, Utterance
from balr.stores.base import Store, StoredCorpus
from balr.stores.listed import refuse_foreign
from balr.stores.manifest import KNOWN_COLUMNS, columns_of
from balr.stores.parquet_parts import CARD, embeddings_of, encode_rows, ids_of, parts_in, read_part, write_part


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
        self._waiting: Path | None = None  # the file of what is not a whole part yet
        self._waiting_count = 0
        self._schema: pa.Schema | None = None

    @property
    def listing(self) -> Path:
        """Return the pattern of its parts."""
        return self.folder / f"{self._stem}-*.parquet"

    def completed(self) -> Set[str]:
        """Return the ids in all parts. Raises OutputError where they are of another corpus, or a part is damaged."""
        return self._found

    def clear(self) -> None:
        """Remove all parts, the last one first."""
        for part in (*self.folder.glob("part-*.arrows"), *reversed(parts_in(self.folder))):
            with as_output_error(part, "removed"):
                part.unlink(missing_ok=True)
        self._found, self._schema = set(), None

    def write(self, batch: Sequence[Embedded]) -> list[Failure]:
        """Append a batch to what waits to become a part. Raises OutputError."""
        found, rows = self._found, self._rows(batch)
        if self._waiting is None:
            self._waiting = self.folder / f"{self._stem}-{self._next_number():05}.arrows"
            with whole_file(self._waiting) as file:
                file.write(encode_rows(rows))
        else:
            with (
                as_output_error(self._waiting),
                open(os.open(self._waiting, os.O_WRONLY | os.O_APPEND), "ab") as file,  # not where it was removed
            ):
                file.write(encode_rows(rows))
                file.flush()
                os.fsync(file.fileno())
        self._waiting_count += len(batch)
        found.update(one.utterance.id for one in batch)
        if self._waiting_count >= self._rows_per_part:
            self._make_part()
        return []

    def read(self, ids: Collection[str] | None = None) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield ids and embeddings `(dim,)`, part by part."""
        for part in parts_in(self.folder):
            for id_, embedding in embeddings_of(read_part(part, ["id", "embedding"])):
                if ids is None or id_ in ids:
                    yield id_, embedding

    def close(self) -> None:
        """Make a part of what waits. Raises OutputError where it has vanished."""
        self._make_part()
        if not self.shard.tag and self._found:
            with whole_file(self.folder / "README.md") as file:
                file.write(CARD.encode())

    @cached_property
    def _found(self) -> set[str]:
        ids = ids_of(self.folder)
        for file in self.folder.glob(f"{self._stem}-*.arrows"):  # for the whole corpus, those of all shards
            _to_part(file)
        refuse_foreign(self.folder, sorted(ids - {utterance.id for utterance in self.utterances}))
        return ids

    def _make_part(self) -> None:
        if self._waiting is not None:
            found = _to_part(self._waiting)
            if found != self._waiting_count:
                raise OutputError(
                    f"{self._waiting}: {self._waiting_count - found} embeddings vanished while the run worked; the "
                    "same command embeds them again."
                )
            self._waiting, self._waiting_count = None, 0

    def _next_number(self) -> int:
        names = [part.stem.rpartition("-") for part in parts_in(self.folder)]
        return max((int(number) for stem, _, number in names if stem == self._stem), default=-1) + 1

    def _rows(self, batch: Sequence[Embedded]) -> pa.RecordBatch:
        """Return the rows of embeddings, in the columns of the first part."""
        self._schema = self._schema or self._columns(batch[0].embedding.size)
        return pa.RecordBatch.from_pylist([_row(one) for one in batch], self._schema)

    def _columns(self, dim: int) -> pa.Schema:
        """Return the columns of the first part, or the columns that it will have."""
        for part in parts_in(self.folder):
            return read_part(part).schema.remove_metadata()
        types = {"start": pa.float64(), "end": pa.float64(), "channel": pa.int32(), "duration_seconds": pa.float64()}
        known = ("id", "audio_path", "start", "end", "channel", "speaker", "duration_seconds")
        fields = [pa.field(name, types.get(name, pa.string())) for name in known]
        fields.append(pa.field("embedding", pa.list_(pa.float32(), dim)))
        extra = [name for name in columns_of(self.utterances) if name not in (*KNOWN_COLUMNS, "audio_path")]
        return pa.schema([*fields, *(pa.field(name, pa.string()) for name in extra)])


def _to_part(file: Path) -> int:
    """Make what waits a part, and return how many rows it has; a kill after that leaves its file, which is ignored."""
    with as_output_error(file, "read"):
        table, part = read_part(file), file.with_suffix(".parquet")
        if not part.is_file():
            write_part(part, table)
        file.unlink()
    return len(table)


def _row(one: Embedded) -> dict[str, Any]:
    utterance, part = one.utterance, one.utterance.part
    return {
        **utterance.extra,
        "id": utterance.id,
        "audio_path": str(utterance.audio),
        "start": part.start_seconds if part.is_segment else None,
        "end": part.end_seconds,
        "channel": part.channel,
        "speaker": utterance.speaker,
        "duration_seconds": one.audio_seconds or None,
        "embedding": one.embedding,
    }


def _is_utf_8(utterance: Utterance) -> bool:
    try:
        "".join((utterance.id, str(utterance.audio), utterance.speaker or "", *utterance.extra.values())).encode()
    except UnicodeEncodeError:
        return False
    return True

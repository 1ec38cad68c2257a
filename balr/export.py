"""`balr export`: from a store of any kind to any other, embedding by embedding."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from balr.atomic import whole_file, write_csv
from balr.errors import ConfigError, InputError, OutputError, one_line
from balr.records import Embedded, Utterance
from balr.runs.provenance import now
from balr.runs.record import Facts, Record
from balr.stores.base import Store, StoredCorpus
from balr.stores.commit_log import Row
from balr.stores.embedding_files import read_embedding
from balr.stores.files import FilesStore
from balr.stores.folder import locked
from balr.stores.reading import is_store, rows_of, stored, utterance_of

FORMATS = ("files", "parquet", "kaldi", "npz", "csv")
_AT_A_TIME = 4_096
Pairs = Iterator[tuple[Utterance, npt.NDArray[Any]]]


def export(
    source: Path, out: Path, *, to: str, normalize: bool = False, mean: str | None = None, per_speaker: bool = False
) -> int:
    """Write the embeddings of a store to another, or to an npz (`ids`, `data`) or csv file, and return how many.

    `mean`, that of the store (`self`) or of a file `.npy` or `.txt`, is subtracted first; then `per_speaker` averages
    the embeddings of each speaker, and `normalize` divides by the Euclidean norm. Raises a BalrError.
    """
    if not is_store(source) or next(rows_of(source), None) is None:
        raise InputError(f"{source}: holds no embeddings; give the save_dir of a run.")
    if to not in FORMATS:
        raise ConfigError(f"--to {to}: one of {', '.join(FORMATS)} is expected.")
    if per_speaker and to == "files":
        raise ConfigError("--per-speaker: files are named after utterances; choose --to npz, csv, parquet or kaldi.")
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: exists; choose a new name.")
    pairs = _pairs(source)
    if mean is not None:
        subtracted = _mean(source) if mean == "self" else read_embedding(Path(mean).expanduser())
        pairs = ((utterance, _subtract(utterance, embedding, subtracted)) for utterance, embedding in pairs)
    if per_speaker:
        pairs = _by_speaker(pairs)
    if normalize:
        pairs = ((utterance, embedding / np.linalg.norm(embedding)) for utterance, embedding in pairs)
    if to == "npz":
        return _write_npz(out, pairs)
    if to == "csv":
        return _write_csv(out, pairs)
    if per_speaker:
        found = list(pairs)
        pairs, utterances = iter(found), [utterance for utterance, _ in found]
    else:
        utterances = [_utterance(source, row) for row in rows_of(source)]
    changes = {"subtract_mean": mean, "per_speaker": per_speaker, "normalize": normalize}
    return _fill(out, to, source, pairs, utterances, changes)


def _pairs(source: Path) -> Pairs:
    for row, embedding in stored(source):
        if isinstance(embedding, Exception):
            raise InputError(f"{source}: {row['id']}: {one_line(embedding)}; balr verify shows all that is damaged.")
        yield _utterance(source, row), np.asarray(embedding, np.float32)


def _utterance(source: Path, row: Row) -> Utterance:
    """Return the utterance of a row; one that was listed with its embedding alone is named after that."""
    utterance = utterance_of(source, row)
    return utterance if utterance.audio else replace(utterance, audio=utterance.embedding)


def _mean(source: Path) -> npt.NDArray[Any]:
    count, total = 0, np.zeros(1)
    for _, embedding in _pairs(source):
        count, total = count + 1, total + embedding.astype(np.float64)
    return np.asarray(total / count, np.float32)


def _subtract(utterance: Utterance, embedding: npt.NDArray[Any], mean: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if embedding.shape != mean.shape:
        raise InputError(f"{utterance.id}: {embedding.size} numbers, and the mean has {mean.size}.")
    return embedding - mean.astype(np.float32)


def _by_speaker(pairs: Pairs) -> Pairs:
    sums: dict[str, npt.NDArray[Any]] = {}
    counts: dict[str, int] = {}
    for utterance, embedding in pairs:
        if not utterance.speaker:
            raise InputError(f"{utterance.id}: has no speaker, and --per-speaker averages by speaker.")
        sums[utterance.speaker] = sums.get(utterance.speaker, 0.0) + embedding.astype(np.float64)
        counts[utterance.speaker] = counts.get(utterance.speaker, 0) + 1
    for speaker, total in sums.items():
        mean = (total / counts[speaker]).astype(np.float32)
        yield Utterance(speaker, Path(speaker), speaker, extra={"utterances": str(counts[speaker])}), mean


def _write_npz(out: Path, pairs: Pairs) -> int:
    found = [(utterance.id, embedding) for utterance, embedding in pairs]
    with whole_file(out) as file:
        np.savez(file, ids=np.array([id_ for id_, _ in found]), data=np.stack([one for _, one in found]))
    return len(found)


def _write_csv(out: Path, pairs: Pairs) -> int:
    first = next(pairs)
    columns = ["id", "speaker", *(f"e{number}" for number in range(first[1].size))]
    count = 0

    def rows() -> Iterator[Row]:
        nonlocal count
        for utterance, embedding in chain([first], pairs):
            count += 1
            cells = (utterance.id, utterance.speaker or "", *(f"{number:.9g}" for number in embedding))
            yield dict(zip(columns, cells, strict=True))

    write_csv(out, columns, rows())
    return count


def _fill(out: Path, to: str, source: Path, pairs: Pairs, utterances: Sequence[Utterance], changes: Facts) -> int:
    """Write a store, with the record of the model that the embeddings are of."""
    record = Record.of(source)
    with locked(out):
        store = _open(out, to, utterances, Path(record.corpus_root or _folder_of(utterances)))
        count = 0
        while batch := [
            Embedded(one, embedding, one.duration_seconds or 0.0) for one, embedding in islice(pairs, _AT_A_TIME)
        ]:
            failures = store.write(batch)
            if failures:
                raise OutputError(failures[0].reason)
            count += len(batch)
        store.close()
        copy = Record.of(out)
        copy.model, copy.embedding_dim, copy.corpus_root = record.model, record.embedding_dim, record.corpus_root
        facts = {"exported_from": str(source.absolute()), "changes": changes, "runs": record.runs}
        copy.runs = [{"started": now(), **facts, "ended": now(), "exit": "done", "counts": {"total": count}}]
        copy.write()
    return count


def _open(out: Path, to: str, utterances: Sequence[Utterance], root: Path) -> Store:
    corpus = StoredCorpus(out.absolute(), utterances, root)
    if to == "files":
        return FilesStore(corpus, format="npy")
    if to == "kaldi":
        from balr.stores.kaldi import KaldiStore

        return KaldiStore(corpus)
    from balr.stores.parquet import ParquetStore

    return ParquetStore(corpus, rows_per_part=8_192)


def _folder_of(utterances: Sequence[Utterance]) -> str:
    return os.path.commonpath([os.path.dirname(str(utterance.audio)) for utterance in utterances])

"""`balr export`: from a store of any kind to any other, with the same numbers unless asked to change them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from balr.atomic import whole_file, write_csv
from balr.errors import ConfigError, InputError, OutputError
from balr.evaluation.scoring import refuse_unusable, unit
from balr.evaluation.source import mean_of
from balr.records import Embedded, Utterance
from balr.runs.provenance import now
from balr.runs.record import Facts, Record
from balr.stores.base import Store, StoredCorpus
from balr.stores.commit_log import Row
from balr.stores.files import FilesStore
from balr.stores.folder import locked
from balr.stores.kaldi import KaldiStore
from balr.stores.parquet import ParquetStore
from balr.stores.reading import load_embeddings, rows_of, utterance_of

_STORES: Mapping[str, Callable[[StoredCorpus], Store]] = {
    "files": partial(FilesStore, format="npy"),
    "parquet": partial(ParquetStore, rows_per_part=8_192),
    "kaldi": KaldiStore,
}
_FORMATS = (*_STORES, "npz", "csv")
_AT_A_TIME = 4_096
_Matrix = npt.NDArray[np.float32]  # (utterances, dim)


def export(
    source: Path, out: Path, *, to: str, normalize: bool = False, mean: str | None = None, per_speaker: bool = False
) -> int:
    """Write the embeddings of a store to another, or to an npz (`ids`, `data`) or csv file, and return how many.

    `mean`, that of the store (`self`) or of a file `.npy` or `.txt`, is subtracted first; then `per_speaker` averages
    the embeddings of each speaker, and `normalize` divides by the Euclidean norm. Raises a BalrError.
    """
    if to not in _FORMATS:
        raise ConfigError(f"--to {to}: one of {', '.join(_FORMATS)} is expected.")
    if per_speaker and to == "files":
        raise ConfigError("--per-speaker: files are named after utterances; choose --to npz, csv, parquet or kaldi.")
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: exists; choose a new name.")
    _, matrix, _ = load_embeddings(source)  # its rows are in the order of `rows_of`
    utterances = [_utterance(source, row) for row in rows_of(source)]
    if mean is not None:
        matrix = matrix - mean_of(matrix, mean)
    if per_speaker:
        utterances, matrix = _by_speaker(utterances, matrix)
    if normalize:
        refuse_unusable(matrix, [utterance.id for utterance in utterances])
        matrix = unit(matrix)
    if to == "npz":
        with whole_file(out) as file:
            np.savez(file, ids=np.array([utterance.id for utterance in utterances]), data=matrix)
    elif to == "csv":
        columns = ["id", "speaker", *(f"e{number}" for number in range(matrix.shape[1]))]
        cells = (
            (one.id, one.speaker or "", *map("{:.9g}".format, row)) for one, row in zip(utterances, matrix, strict=True)
        )
        write_csv(out, columns, (dict(zip(columns, row, strict=True)) for row in cells))
    else:
        changes = {"subtract_mean": mean, "per_speaker": per_speaker, "normalize": normalize}
        _fill(out, to, source, utterances, matrix, changes)
    return len(utterances)


def _utterance(source: Path, row: Row) -> Utterance:
    """Return the utterance of a row; one that was listed with its embedding alone is named after that."""
    utterance = utterance_of(source, row)
    return utterance if utterance.audio else replace(utterance, audio=utterance.embedding)


def _by_speaker(utterances: Sequence[Utterance], matrix: _Matrix) -> tuple[list[Utterance], _Matrix]:
    of_speaker: dict[str, list[int]] = {}
    for row, utterance in enumerate(utterances):
        if not utterance.speaker:
            raise InputError(f"{utterance.id}: has no speaker, and --per-speaker averages by speaker.")
        of_speaker.setdefault(utterance.speaker, []).append(row)
    speakers = [
        Utterance(name, Path(name), name, extra={"utterances": str(len(rows))}) for name, rows in of_speaker.items()
    ]
    means = [matrix[rows].mean(axis=0, dtype=np.float64) for rows in of_speaker.values()]
    return speakers, np.array(means, np.float32)


def _fill(out: Path, to: str, source: Path, utterances: Sequence[Utterance], matrix: _Matrix, changes: Facts) -> None:
    """Write a store, with the record of the model that the embeddings are of."""
    record = Record.of(source)
    root = record.corpus_root or os.path.commonpath([os.path.dirname(str(one.audio)) for one in utterances])
    with locked(out):
        store = _STORES[to](StoredCorpus(out.absolute(), utterances, Path(root)))
        for start in range(0, len(utterances), _AT_A_TIME):
            some = slice(start, start + _AT_A_TIME)
            pairs = zip(utterances[some], matrix[some], strict=True)
            batch = [Embedded(one, embedding, one.duration_seconds or 0.0) for one, embedding in pairs]
            for failure in store.write(batch):
                raise OutputError(failure.reason)
        store.close()
        copy = Record.of(out)
        copy.model, copy.embedding_dim, copy.corpus_root = record.model, record.embedding_dim, record.corpus_root
        facts = {"exported_from": str(source.absolute()), "changes": changes, "runs": record.runs}
        done = {"exit": "done", "counts": {"total": len(utterances)}}
        copy.runs = [{"started": now(), **facts, "ended": now(), **done}]
        copy.write()

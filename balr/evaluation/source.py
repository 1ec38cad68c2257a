"""The embeddings of a folder with what is known of their utterances, for evaluation."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from balr.data.headers import read_durations
from balr.errors import InputError
from balr.evaluation.pairs import numbered
from balr.evaluation.scoring import Matrix
from balr.evaluation.trials import Indices
from balr.stores.embedding_files import read_embedding
from balr.stores.reading import load_embeddings, number_in

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embeddings:
    """Hold the embeddings `(utterances, dim)` of a folder, with ids, names of speakers ("" unknown) and paths."""

    folder: Path
    ids: list[str]
    matrix: Matrix
    names: list[str]
    table: pa.Table

    @cached_property
    def speakers(self) -> Indices:
        """Return a number for the speaker of each utterance, -1 where unknown."""
        numbers = numbered(self.names)
        numbers[[not name for name in self.names]] = -1
        return numbers

    @cached_property
    def mean(self) -> Matrix:
        """Return the mean `(dim,)`."""
        return mean_of(self.matrix)

    @cached_property
    def audio(self) -> list[str]:
        """Return the path of the audio of each utterance, "" where unknown."""
        return [path or "" for path in self.table["audio"].to_pylist()]

    @cached_property
    def seconds(self) -> npt.NDArray[np.float64]:
        """Return the duration of each utterance, NaN where no list has it."""
        found = np.full(len(self.ids), np.nan)
        columns = self._numbers("start"), self._numbers("end")
        for name in ("duration_seconds", "duration"):
            found = np.where(np.isnan(found), self._numbers(name), found)
        known: dict[str, float | None] = {}
        for file in sorted(self.folder.glob("durations*.csv")):
            known |= {path: header.seconds for path, header in read_durations(file).items()}
        of_file = np.array([known.get(path) or np.nan for path in self.audio])
        part = np.where(np.isnan(columns[1]), of_file, columns[1]) - np.nan_to_num(columns[0])
        return np.where(np.isnan(found), part, found)

    def _numbers(self, name: str) -> npt.NDArray[np.float64]:
        if name not in self.table.column_names:
            return np.full(len(self.ids), np.nan)
        return np.array([number_in(cell) for cell in self.table[name].to_pylist()], float)  # None becomes NaN


def read_embeddings(folder: Path) -> Embeddings:
    """Read the embeddings of a folder. Raises InputError where it holds none, or a damaged one."""
    ids, matrix, table = load_embeddings(folder)
    listed = table["speaker"].to_pylist()
    names = speakers_of(ids, listed)
    if any(names) and not any(listed):
        log.info("%s lists no speakers: the first folder of each id is taken as its speaker", folder)
    return Embeddings(folder, ids, matrix, names, table)


def speakers_of(ids: Sequence[str], names: Sequence[str | None]) -> list[str]:
    """Return the name of each utterance's speaker, "" where unknown: the first folder of ids where no list has any."""
    if not any(names) and all("/" in id_ for id_ in ids):
        return [id_.partition("/")[0] for id_ in ids]
    return [name or "" for name in names]


def refuse_unknown_speakers(ids: Sequence[str], names: Sequence[str | None]) -> None:
    """Raise InputError where an utterance has no speaker, by name or by its id."""
    for id_, name in zip(ids, speakers_of(ids, names), strict=True):
        if not name:
            raise InputError(f"{id_} has no speaker; give a trial list, or a corpus with speakers.")


def mean_of(matrix: Matrix, choice: str = "self") -> Matrix:
    """Return the mean `(dim,)` to subtract: that of the embeddings `(utterances, dim)`, none, or of a file.

    Raises InputError.
    """
    if choice == "self":
        return np.asarray(matrix.mean(axis=0, dtype=np.float64), np.float32)
    if choice == "none":
        return np.zeros(matrix.shape[1], np.float32)
    path = Path(choice).expanduser()
    if not path.exists():
        raise InputError(f"mean={choice}: no such file or folder; self and none are others.")
    mean = read_embedding(path).astype(np.float32)
    if mean.shape != matrix.shape[1:]:
        raise InputError(f"mean={choice}: {mean.size} numbers, and the embeddings have {matrix.shape[1]}.")
    return mean

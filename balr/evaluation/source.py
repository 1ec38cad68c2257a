"""The embeddings of a folder with what is known of their utterances, for evaluation."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from balr.data.headers import read_cache
from balr.evaluation.pairs import numbered
from balr.evaluation.scoring import Matrix
from balr.evaluation.trials import Indices
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
        return np.asarray(self.matrix.mean(axis=0, dtype=np.float64), np.float32)

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
            known |= {state[0]: header.seconds for state, header in read_cache(file).items()}
        of_file = np.array([known.get(path) or np.nan for path in self.audio])
        part = np.where(np.isnan(columns[1]), of_file, columns[1]) - np.nan_to_num(columns[0])
        return np.where(np.isnan(found), part, found)

    def _numbers(self, name: str) -> npt.NDArray[np.float64]:
        if name not in self.table.column_names:
            return np.full(len(self.ids), np.nan)
        return np.array([number_in(cell) for cell in self.table[name].to_pylist()], float)  # None becomes NaN


def read_embeddings(folder: Path) -> Embeddings:
    """Read the embeddings of a folder. Where no utterance has a speaker, the first folder of its id is taken as one.

    Raises InputError where the folder holds no embeddings, or a damaged one.
    """
    ids, matrix, table = load_embeddings(folder)
    names = [name or "" for name in table["speaker"].to_pylist()]
    if not any(names) and all("/" in id_ for id_ in ids):
        log.info("%s lists no speakers: the first folder of each id is taken as its speaker", folder)
        names = [id_.partition("/")[0] for id_ in ids]
    return Embeddings(folder, ids, matrix, names, table)

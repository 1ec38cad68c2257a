"""What stores share that list their embeddings in metadata.csv, a commit log.

The invariant kept here: an embedding is whole and on the disk before its row is appended. What no row lists is
overwritten when its turn comes.
"""

import logging
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from balr.errors import OutputError
from balr.records import Embedded, Failure, Utterance
from balr.stores.base import Store, StoredCorpus
from balr.stores.commit_log import CommitLog, Row
from balr.stores.manifest import COLUMNS, columns_of, is_of, manifests_in, row_of
from balr.stores.reading import read_listed

log = logging.getLogger(__name__)


class Listed(NamedTuple):
    """The cells of a row that say where an embedding is, below the folder of its store, and its checksum."""

    place: str
    crc32: str


class ListedStore(Store):
    """Write embeddings by `_save`, then their rows; a subclass says where embeddings go."""

    def __init__(self, corpus: StoredCorpus) -> None:
        super().__init__(corpus)
        self.audible = [utterance for utterance in self.utterances if utterance.audio is not None]
        path, more = self.folder / f"metadata{self.shard.tag}.csv", columns_of(self.utterances)
        self._manifest = CommitLog(path, COLUMNS, more_columns=more)
        self._others: set[str] = set()  # ids that other shards have completed

    @abstractmethod
    def _save(self, batch: Sequence[Embedded]) -> tuple[list[tuple[Utterance, Listed]], list[Failure]]:
        """Write embeddings durably and return where each is, and what has no possible place. Raises OutputError."""

    @abstractmethod
    def _accepts(self, utterance: Utterance, place: str) -> bool:
        """Return whether the embedding of an utterance can be where a row says."""

    @abstractmethod
    def _is_there(self, place: str) -> bool:
        """Return whether an embedding exists and has the right size."""

    @abstractmethod
    def _remove(self, listed: Mapping[str, Listed]) -> None:
        """Remove embeddings that are no longer listed."""

    def _finish(self) -> None:
        """Write what a subclass adds to the list of a whole corpus."""

    @property
    def listing(self) -> Path:
        """Return the path of the manifest."""
        return self._manifest.path

    def completed(self) -> Set[str]:
        """Return the ids that manifests list and whose embeddings are there. Raises OutputError."""
        own = self._listed.keys()
        return own | self._others if self._others else own

    def clear(self) -> None:
        """Empty the manifest, and remove those of shards, then the embeddings that they listed."""
        listed, self._listed = self._listed, {}
        self._manifest.write(())
        self._remove_those_of_shards()
        self._remove(listed)

    def write(self, batch: Sequence[Embedded]) -> list[Failure]:
        """Save the embeddings, then append their rows. Raises OutputError where nothing more can be written."""
        if not self._manifest.has_begun:
            self._manifest.write(self._rows())
        written, failures = self._save(batch)
        self._manifest.append((row_of(utterance, *listed) for utterance, listed in written), durably=True)
        self._listed.update((utterance.id, listed) for utterance, listed in written)
        return failures

    def read(self, ids: Collection[str] | None = None) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield ids and embeddings `(dim,)`, in the order of the corpus."""
        for utterance in self.audible:
            if utterance.id in self._listed and (ids is None or utterance.id in ids):
                yield utterance.id, read_listed(self.folder, row_of(utterance, *self._listed[utterance.id]))

    def close(self) -> None:
        """Put the manifest into the order of the corpus, and those of shards into it where this is the whole corpus."""
        self._manifest.write(self._rows())
        if not self.shard.tag:
            self._finish()
            self._remove_those_of_shards()

    @cached_property
    def _listed(self) -> dict[str, Listed]:
        return self._find()

    def _find(self) -> dict[str, Listed]:
        """Read the manifests. Raises OutputError where they list utterances that the corpus does not."""
        own: dict[str, Listed] = {}
        gone: list[str] = []
        foreign: list[str] = []
        utterances = {utterance.id: utterance for utterance in self.audible}
        for manifest in reversed(manifests_in(self.folder)):  # what a run of the whole lists is newer than shards'
            is_own = not self.shard.tag or manifest.path == self._manifest.path
            for row in manifest.read():
                utterance = utterances.get(row["id"])
                if utterance is None:
                    foreign += [row["id"]] if row["audio"] else []
                elif self._accepts(utterance, row["embedding"]) and is_of(row, utterance):
                    if not is_own:
                        self._others.add(utterance.id)
                    elif self._is_there(row["embedding"]):
                        own[utterance.id] = Listed(row["embedding"], row["crc32"])
                    else:
                        gone.append(utterance.id)
        refuse_foreign(self.folder, foreign)
        if gone:
            log.warning("%d embeddings are gone or truncated and are made again, first that of %s", len(gone), gone[0])
        return own

    def _remove_those_of_shards(self) -> None:
        for manifest in manifests_in(self.folder):
            if manifest.path != self._manifest.path:
                manifest.remove()

    def _rows(self) -> Iterator[Row]:
        for utterance in self.utterances:
            if utterance.audio is None:
                if not self.shard.tag:
                    yield row_of(utterance, str(utterance.embedding), "")
            elif utterance.id in self._listed:
                yield row_of(utterance, *self._listed[utterance.id])


def refuse_foreign(folder: Path, ids: Sequence[str]) -> None:
    """Raise OutputError where a folder holds embeddings of ids that the corpus does not list."""
    if ids:
        raise OutputError(
            f"{folder}: holds {len(ids)} embeddings of utterances that this corpus does not list, first {ids[0]!r}; "
            "choose another save_dir, or take them off its list with balr verify SAVE_DIR INPUT --forget."
        )

"""The store protocol: what the pipeline asks of the place where embeddings go."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import numpy.typing as npt

from balr.records import Embedded, Failure, Shard, Utterance


class Store(ABC):
    """Keep embeddings; one exists when, and only when, a manifest in `folder` lists it.

    `utterances` are the whole corpus, below `root`. A `shard` writes under names of its own, and counts as completed
    what any other wrote; the store of the whole corpus, `Shard()`, takes all of them into one when it is closed.
    `embedding_dim` is how many numbers an embedding has, where an earlier run recorded it. The other arguments of the
    constructors are the keys of `conf/store/`.
    """

    def __init__(self, folder: Path, utterances: Sequence[Utterance], shard: Shard) -> None:
        self.folder = folder
        self.utterances = utterances
        self.shard = shard

    @property
    @abstractmethod
    def listing(self) -> Path:
        """Return where a person finds what is stored."""

    @abstractmethod
    def completed(self) -> Set[str]:
        """Return the ids whose embeddings are safely stored; recovers from a kill and reads no embedding."""

    @abstractmethod
    def write(self, batch: Sequence[Embedded]) -> list[Failure]:
        """Store a batch, durably when this returns, and return the utterances that have no possible place.

        Raises OutputError where nothing more can be stored.
        """

    @abstractmethod
    def read(self, ids: Collection[str] | None = None) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield ids and embeddings `(dim,)`, of all utterances or of some. Raises OSError or ValueError on damage."""

    @abstractmethod
    def clear(self) -> None:
        """Empty the manifest: nothing is completed from now on."""

    @abstractmethod
    def close(self) -> None:
        """Put the lists into their final order. Raises OutputError where embeddings vanished while the run worked."""

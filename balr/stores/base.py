"""The store protocol: what the pipeline asks of the place where embeddings go."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from balr.records import WHOLE_CORPUS, Embedded, Failure, Shard, Utterance


@dataclass(frozen=True)
class StoredCorpus:
    """All `utterances` of a corpus, which lie below `root`, and the `folder` where a store keeps their embeddings.

    `embedding_dim` is how many numbers each has, where an earlier run recorded it. `is_beside_audio`: embeddings go
    beside the audio, and only lists to `folder`.
    """

    folder: Path
    utterances: Sequence[Utterance]
    root: Path
    shard: Shard = WHOLE_CORPUS
    embedding_dim: int | None = None
    is_beside_audio: bool = False


class Store(ABC):
    """Keep embeddings; one exists when, and only when, a manifest in the folder lists it.

    A shard writes under names of its own, and counts as completed what any other wrote; the store of the whole corpus
    takes all of them into one when it is closed. The other arguments of constructors are the keys of `conf/store/`.
    """

    def __init__(self, corpus: StoredCorpus) -> None:
        self.folder = corpus.folder
        self.utterances = corpus.utterances
        self.shard = corpus.shard

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
        """Put the lists into their final order. Raises OutputError."""

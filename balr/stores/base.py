"""The store protocol: what the pipeline asks of the place where embeddings go."""

from collections.abc import Collection, Iterator, Sequence, Set
from typing import Any, Protocol

import numpy.typing as npt

from balr.records import Embedded, Failure


class Store(Protocol):
    """Keep embeddings; one exists when, and only when, the manifest lists it."""

    def completed(self) -> Set[str]:
        """Return the ids whose embeddings are safely stored; recovers from a kill and reads no embedding."""
        ...

    def write(self, batch: Sequence[Embedded]) -> list[Failure]:
        """Store a batch, durably when this returns, and return the utterances that have no possible place.

        Raises OutputError where nothing more can be stored.
        """
        ...

    def read(self, ids: Collection[str] | None = None) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield ids and embeddings `(dim,)`, of all utterances or of some."""
        ...

    def clear(self) -> None:
        """Empty the manifest: nothing is completed from now on."""
        ...

    def close(self) -> None:
        """Put the manifest into its final order. Raises OutputError where embeddings vanished while the run worked."""
        ...

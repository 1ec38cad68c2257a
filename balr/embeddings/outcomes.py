"""What becomes of each utterance: it is saved or collected, and then reported.

The invariant kept here: an utterance that is reported as embedded is in its store.
"""

import logging
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress

from balr.embeddings.stage_timer import StageTimer
from balr.errors import UtteranceError, one_line
from balr.records import Embedded, Embedding, Failure, Outcome, Utterance

log = logging.getLogger(__name__)

Save = Callable[[Sequence[Embedded]], list[Failure]]


class Observer(Protocol):
    """Follow a run: how much audio is planned, then each utterance as it is done.

    `upsampled` of the utterances have a lower rate than the model. `under_way` is called by any thread, with seconds
    of audio that are done of a long utterance, `planned` by the thread that decodes, the others by the one that saves.
    """

    def planned(self, audio_seconds: float, *, upsampled: int) -> None: ...

    def under_way(self, audio_seconds: float) -> None: ...

    def embedded(self, utterance: Utterance, audio_seconds: float) -> None: ...

    def failed(self, failure: Failure) -> None: ...


class EmbeddingPairs(list[tuple[str, npt.NDArray[Any]]]):
    """(id, embedding) pairs in the order of the dataset, and the `failures` of the utterances that have none."""

    def __init__(self, pairs: Iterable[tuple[str, npt.NDArray[Any]]], failures: Sequence[Failure]) -> None:
        super().__init__(pairs)
        self.failures = tuple(failures)


class Delivery:
    """Save embeddings, or collect them where `save` is None, and report what became of each utterance.

    What was `completed` before, and is computed again with the rest of its batch, is left as it is.
    """

    def __init__(
        self, save: Save | None, observer: Observer, stages: StageTimer, completed: Set[str] = frozenset()
    ) -> None:
        self.collected: dict[str, Embedding] = {}
        self.failures: list[Failure] = []
        self._save = save
        self._observer = observer
        self._stages = stages
        self._completed = completed

    def deliver(self, outcomes: Sequence[Outcome]) -> None:
        """Report what failed, save what was embedded together, then report that. Raises OutputError."""
        self._fail(one for one in outcomes if isinstance(one, Failure) and one.id not in self._completed)
        embedded = [one for one in outcomes if isinstance(one, Embedded) and one.utterance.id not in self._completed]
        unplaced: list[Failure] = []
        if self._save is None:
            self.collected |= {one.utterance.id: one.embedding for one in embedded}
        elif embedded:
            with self._stages.timed("write"):
                unplaced = self._save(embedded)
        ids = {failure.id for failure in unplaced}
        for one in embedded:
            if one.utterance.id not in ids:
                self._observer.embedded(one.utterance, one.audio_seconds)
        self._fail(unplaced)

    def pairs(self, utterances: Iterable[Utterance]) -> EmbeddingPairs:
        """Return what was collected, in the order of these utterances, with all failures."""
        found = self.collected
        return EmbeddingPairs([(one.id, found[one.id]) for one in utterances if one.id in found], self.failures)

    def _fail(self, failures: Iterable[Failure]) -> None:
        for failure in failures:
            self.failures.append(failure)
            self._observer.failed(failure)


class BarObserver:
    """Show a bar by seconds of audio on a terminal or in a notebook, and log failures."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Progress(console=console, disable=not (console.is_terminal or console.is_jupyter))
        self._task = self._bar.add_task("embedding", total=0.0)

    def planned(self, audio_seconds: float, *, upsampled: int) -> None:
        self._bar.update(self._task, total=(self._bar.tasks[0].total or 0.0) + audio_seconds)

    def under_way(self, audio_seconds: float) -> None: ...

    def embedded(self, utterance: Utterance, audio_seconds: float) -> None:
        self._bar.start()  # not before the first result: a thread must not run while workers are forked
        self._bar.advance(self._task, audio_seconds)

    def failed(self, failure: Failure) -> None:
        log.warning("%s: %s", one_line(failure.id), failure.reason)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


def find_flaw(embedding: Embedding, waveform: torch.Tensor) -> UtteranceError | None:
    """Return what is wrong with the embedding `(dim,)` of a waveform `(samples,)`, None if nothing is."""
    if np.isfinite(embedding).all():
        return None if embedding.any() else UtteranceError("the embedding is all zeros")
    silent = bool((waveform == waveform[0]).all())
    return UtteranceError(f"the embedding is not finite{' (digital silence)' if silent else ''}")

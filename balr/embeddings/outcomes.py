"""What becomes of each utterance: it is saved or collected, and then reported.

The invariant kept here: what is reported as embedded is on the disk, where it is to go there.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from balr.data.dataset import AudioDataset
from balr.data.decoding import failure
from balr.embeddings.stage_timer import StageTimer
from balr.errors import Failure, OutputError, PlaceError, one_line
from balr.records import Utterance
from balr.stores.embedding_files import Vector

log = logging.getLogger(__name__)


class Observer(Protocol):
    """Hear how much audio is planned, and of every utterance as it is done: a progress bar, a count, a record.

    `upsampled` of the utterances have a lower rate than the model. All but `planned` is called by one thread.
    """

    def planned(self, audio_seconds: float, *, upsampled: int) -> None: ...

    def embedded(self, utterance: Utterance, audio_seconds: float) -> None: ...

    def failed(self, failure: Failure) -> None: ...


@dataclass(frozen=True, slots=True)
class Embedded:
    """Hold the embedding `(dim,)` of an utterance."""

    utterance: Utterance
    vector: Vector
    audio_seconds: float


Outcome = Embedded | Failure


class Delivery:
    """Save embeddings into the places of a dataset, or collect them where there is none, and report each.

    Once nothing more can be written, an OutputError is raised when all that was saved is reported.
    """

    def __init__(self, dataset: AudioDataset | None, observer: Observer, stages: StageTimer) -> None:
        self.collected: dict[str, Vector] = {}
        self._dataset = dataset
        self._observer = observer
        self._stages = stages

    def deliver(self, outcomes: Sequence[Outcome]) -> None:
        """Save what was embedded in one go, then report all. Raises OutputError."""
        embedded = [outcome for outcome in outcomes if isinstance(outcome, Embedded)]
        errors: list[OutputError | None] = [None] * len(embedded)
        if self._dataset is None:
            self.collected |= {one.utterance.id: one.vector for one in embedded}
        elif embedded:
            with self._stages.timed("write"):
                errors = self._dataset.save_together((one.utterance.id, one.vector) for one in embedded)
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                self._observer.failed(outcome)
        for one, error in zip(embedded, errors, strict=True):
            if error is None:
                self._observer.embedded(one.utterance, one.audio_seconds)
            elif isinstance(error, PlaceError):
                self._observer.failed(failure(one.utterance, "write", error))
        unwritable = [error for error in errors if error is not None and not isinstance(error, PlaceError)]
        if unwritable:
            raise unwritable[0]


class LoggingObserver:
    """Log what nobody else hears of."""

    def planned(self, audio_seconds: float, *, upsampled: int) -> None:
        log.debug("%.0f s of audio to embed, %d upsampled", audio_seconds, upsampled)

    def embedded(self, utterance: Utterance, audio_seconds: float) -> None:
        log.debug("%s: embedded, %.1f s", utterance.id, audio_seconds)

    def failed(self, failure: Failure) -> None:
        log.warning("%s: %s", one_line(failure.id), failure.reason)

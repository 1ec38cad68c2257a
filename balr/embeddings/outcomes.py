"""What becomes of each utterance, and who is told of it and when.

The invariant kept here: what is told as embedded is on the disk, where it is to go there.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from balr.data.dataset import AnnotatedAudio, AudioDataset
from balr.data.loading import Decoded, failure
from balr.embeddings.stages import Stages
from balr.errors import Failure, FirstFailureError, OutputError, PlaceError, one_line
from balr.signals import held_back

log = logging.getLogger(__name__)

Vector = npt.NDArray[Any]

SAVED_TOGETHER = 32  # each flush costs the less the more there are; each holds a file open
_SECONDS_UNSAVED = 1.0


class Observer(Protocol):
    """Is told how much audio is planned and of every utterance as it is done: a progress bar, a count, a record.

    `upsampled` of the utterances have a lower rate than the model. FirstFailureError ends the run in order.
    """

    def planned(self, audio_seconds: float, *, upsampled: int) -> None: ...

    def embedded(self, utterance: AnnotatedAudio, audio_seconds: float) -> None: ...

    def failed(self, failure: Failure) -> None: ...


@dataclass(frozen=True)
class Embedded:
    """Hold the embedding `(dim,)` of an utterance, which comes without its waveform."""

    utterance: AnnotatedAudio
    vector: Vector
    audio_seconds: float


Outcome = Embedded | Failure | Decoded


class Deliveries:
    """Save embeddings a few at a time, or collect them in `vectors`, and put by what had no room in `postponed`.

    What an interrupt leaves over is delivered with the next. OutputError and FirstFailureError come from here.
    """

    def __init__(self, dataset: AudioDataset, observer: Observer, stages: Stages, *, stream_save: bool) -> None:
        self.vectors: dict[str, Vector] = {}
        self.postponed: list[Decoded] = []
        self._dataset = dataset
        self._observer = observer
        self._stages = stages
        self._stream_save = stream_save
        self._ready: deque[Outcome] = deque()
        self._unsaved: list[Embedded] = []
        self._untold: deque[tuple[Embedded, OutputError | None]] = deque()
        self._saved_at = time.monotonic()

    def take_first(self, running: set[Future[list[Outcome]]]) -> None:
        """Wait for a batch, take it out of those that run, and deliver what became of its utterances."""
        future = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
        with held_back():
            running.remove(future)
            self._ready.extend(future.result())
        self.take(())

    def take(self, outcomes: Iterable[Outcome]) -> None:
        """Deliver what became of utterances; what is saved for the last second may be lost with the process."""
        self._ready.extend(outcomes)
        while self._ready:
            with held_back():
                self._deliver(self._ready.popleft())
        if time.monotonic() - self._saved_at >= _SECONDS_UNSAVED:
            self.save()

    def save(self) -> None:
        """Save what is not saved yet, and tell of it."""
        with held_back():  # what is written is noted, too
            if self._unsaved:
                with self._stages.timed("write"):
                    errors = self._dataset.save_together((one.utterance.id, one.vector) for one in self._unsaved)
                self._untold.extend(zip(self._unsaved, errors, strict=True))
                self._unsaved.clear()
                self._saved_at = time.monotonic()
            while self._untold:
                embedded, error = self._untold.popleft()
                if error is None:
                    self._observer.embedded(embedded.utterance, embedded.audio_seconds)
                elif isinstance(error, PlaceError):
                    utterance = embedded.utterance
                    self._observer.failed(failure(utterance.id, utterance.audio_path, "write", error))
                else:
                    raise error

    def finish(self, outcomes: Iterable[Outcome]) -> None:
        """Deliver and save all there is, also beyond a first failure that ends the run."""
        self._ready.extend(outcomes)
        while self._ready or self._unsaved or self._untold:
            with suppress(FirstFailureError):
                self.take(())
                self.save()

    def _deliver(self, outcome: Outcome) -> None:
        if isinstance(outcome, Decoded):
            self.postponed.append(outcome)
        elif isinstance(outcome, Failure):
            self._observer.failed(outcome)
        elif self._stream_save:
            self._unsaved.append(outcome)
            if len(self._unsaved) >= SAVED_TOGETHER:
                self.save()
        else:
            self.vectors[outcome.utterance.id] = outcome.vector
            self._observer.embedded(outcome.utterance, outcome.audio_seconds)


class LoggingObserver:
    """Tell the log, where nobody else is told."""

    def planned(self, audio_seconds: float, *, upsampled: int) -> None:
        log.debug("%.0f s of audio to embed, %d upsampled", audio_seconds, upsampled)

    def embedded(self, utterance: AnnotatedAudio, audio_seconds: float) -> None:
        log.debug("%s: embedded, %.1f s", utterance.id, audio_seconds)

    def failed(self, failure: Failure) -> None:
        log.warning("%s: %s", one_line(failure.id), failure.reason)

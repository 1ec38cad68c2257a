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
from typing import Protocol

from balr.data.dataset import AnnotatedAudio, AudioDataset
from balr.data.loading import Decoded, failure
from balr.data.vectors import Vector
from balr.embeddings.stages import Stages
from balr.errors import BalrError, Failure, FirstFailureError, OutputError, PlaceError, one_line
from balr.signals import held_back

log = logging.getLogger(__name__)

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

    Every outcome that is handed over is delivered, whatever goes wrong with others; what was wrong is raised after
    that: OutputError, and nothing more is saved where that is of the disk, else FirstFailureError. What an interrupt
    leaves over is delivered with the next.
    """

    def __init__(self, dataset: AudioDataset, observer: Observer, stages: Stages, *, stream_save: bool) -> None:
        self.vectors: dict[str, Vector] = {}
        self.postponed: list[Decoded] = []
        self._dataset = dataset
        self._observer = observer
        self._stages = stages
        self._stream_save = stream_save
        # An outcome goes from one of these to the next.
        self._ready: deque[Outcome] = deque()
        self._unsaved: list[Embedded] = []
        self._untold: deque[tuple[Embedded, OutputError | None]] = deque()
        self._errors: list[BalrError] = []
        self._can_save = True
        self._saved_at = time.monotonic()

    def take_first(self, running: set[Future[list[Outcome]]]) -> None:
        """Wait until a batch is done, take it out of those that run, and deliver what became of its utterances."""
        while not self.take_done(running, wait_seconds=_SECONDS_UNSAVED):
            continue

    def take_done(self, running: set[Future[list[Outcome]]], *, wait_seconds: float = 0.0) -> bool:
        """Do so with all that are done by then, and tell whether any was; save what has waited for its time."""
        finished = wait(running, wait_seconds, FIRST_COMPLETED).done
        for future in finished:
            with held_back():
                running.remove(future)
                self._ready.extend(future.result())
        self.take(())
        return bool(finished)

    def take(self, outcomes: Iterable[Outcome]) -> None:
        """Deliver what became of utterances, and save what has waited for its time."""
        self._deliver_all(outcomes)
        if time.monotonic() - self._saved_at >= _SECONDS_UNSAVED:
            self._save()
        self._raise_worst()

    def save(self) -> None:
        """Save all that is not saved yet, and tell of it."""
        self._save()
        self._raise_worst()

    def finish(self, outcomes: Iterable[Outcome] = ()) -> None:
        """Deliver and save all there is, for a run that ends early: a first failure does not end it once more."""
        with held_back(), suppress(FirstFailureError):
            self._deliver_all(outcomes)
            self.save()

    def _deliver_all(self, outcomes: Iterable[Outcome]) -> None:
        self._ready.extend(outcomes)
        while self._ready:
            with held_back():
                self._deliver(self._ready.popleft())

    def _deliver(self, outcome: Outcome) -> None:
        if isinstance(outcome, Decoded):
            self.postponed.append(outcome)
        elif isinstance(outcome, Failure):
            self._tell_failed(outcome)
        elif self._stream_save:
            self._unsaved.append(outcome)
            if len(self._unsaved) >= SAVED_TOGETHER:
                self._save()
        else:
            self.vectors[outcome.utterance.id] = outcome.vector
            self._tell_embedded(outcome)

    def _save(self) -> None:
        with held_back():  # what is written is noted, too
            if self._unsaved and self._can_save:
                with self._stages.timed("write"):
                    errors = self._dataset.save_together((one.utterance.id, one.vector) for one in self._unsaved)
                self._untold.extend(zip(self._unsaved, errors, strict=True))
                self._unsaved.clear()
                self._saved_at = time.monotonic()
            while self._untold:
                embedded, error = self._untold.popleft()
                if error is None:
                    self._tell_embedded(embedded)
                elif isinstance(error, PlaceError):
                    utterance = embedded.utterance
                    self._tell_failed(failure(utterance.id, utterance.audio_path, "write", error))
                elif self._can_save:  # one of them tells it all
                    self._can_save = False
                    self._errors.append(error)

    def _tell_embedded(self, embedded: Embedded) -> None:
        try:
            self._observer.embedded(embedded.utterance, embedded.audio_seconds)
        except BalrError as error:
            self._errors.append(error)

    def _tell_failed(self, failure: Failure) -> None:
        try:
            self._observer.failed(failure)
        except BalrError as error:
            self._errors.append(error)

    def _raise_worst(self) -> None:
        errors, self._errors = self._errors, []
        if errors:
            raise min(errors, key=lambda error: isinstance(error, FirstFailureError))


class LoggingObserver:
    """Tell the log, where nobody else is told."""

    def planned(self, audio_seconds: float, *, upsampled: int) -> None:
        log.debug("%.0f s of audio to embed, %d upsampled", audio_seconds, upsampled)

    def embedded(self, utterance: AnnotatedAudio, audio_seconds: float) -> None:
        log.debug("%s: embedded, %.1f s", utterance.id, audio_seconds)

    def failed(self, failure: Failure) -> None:
        log.warning("%s: %s", one_line(failure.id), failure.reason)

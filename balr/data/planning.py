"""From the headers of a corpus to the batches of a run: the same plan at every start."""

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from balr.config import DataConfig
from balr.data.batching import Batch, plan_batches, plan_passes
from balr.data.corpus import Corpus
from balr.data.headers import Header, HeaderCache, headers
from balr.records import Utterance
from balr.shutdown import Stop

log = logging.getLogger(__name__)

_Corpus = TypeVar("_Corpus", bound=Corpus)
_Item = TypeVar("_Item")
_UTTERANCES_PER_WINDOW = 50_000
_UNKNOWN_SECONDS = 300.0  # where no header says how long a file is


@dataclass(frozen=True)
class Plan:
    """Batches of utterances by index, the length of each utterance as far as known, and how many are upsampled."""

    batches: tuple[Batch, ...]
    seconds: tuple[float | None, ...]
    upsampled: int

    def left(self, corpus: Corpus, completed: Collection[str], failed: Collection[str]) -> Self:
        """Return what is still to embed of a plan for the whole corpus, in the same batches.

        A batch is saved as one. So where a member is neither `completed` nor `failed`, a kill cut the batch short, and
        all of it is computed again; else its failed members are tried again.
        """
        batches = []
        for batch in self.batches:
            missing = tuple(index for index in batch if corpus.utterances[index].id not in completed)
            if missing:
                is_cut_short = any(corpus.utterances[index].id not in failed for index in missing)
                batches.append(batch if is_cut_short else missing)
        return replace(self, batches=tuple(batches))

    def audio_seconds(self) -> float:
        """Return the seconds of audio in the batches, as far as headers give them."""
        return sum(self.seconds[index] or 0.0 for batch in self.batches for index in batch)

    def batch_seconds(self) -> list[float]:
        """Return how long each batch is, with five minutes for an utterance of unknown length."""
        seconds = [_UNKNOWN_SECONDS if length is None else length for length in self.seconds]
        return [sum(seconds[index] for index in batch) for batch in self.batches]


def plan_in_windows(
    corpus: _Corpus,
    config: DataConfig,
    completed: Collection[str],
    *,
    durations_file: Path | None,
    stop: Stop,
    **settings: Any,
) -> Iterator[tuple[_Corpus, Plan]]:
    """Plan a large corpus in windows, the same at every start, without windows that are `completed`.

    The first is planned before threads compute, the others beside them. `durations_file` remembers what headers say;
    `settings` are those of `plan_corpus`.
    """
    cache, beside_threads = HeaderCache(durations_file), False
    for window in corpus.windows(_UTTERANCES_PER_WINDOW):
        if not completed or any(utterance.id not in completed for utterance in window.utterances):
            yield window, plan_corpus(window, config, cache=cache, beside_threads=beside_threads, stop=stop, **settings)
            beside_threads = True


class OneAhead(Generic[_Item]):
    """Take items of an iterator; once asked to `prepare`, a thread computes the next one meanwhile."""

    def __init__(self, items: Iterator[_Item]) -> None:
        self._items = items
        self._thread = ThreadPoolExecutor(1, "plan")
        self._next: Future[_Item | None] | None = None

    def prepare(self) -> None:
        """Begin to compute the next item."""
        self._next = self._thread.submit(next, self._items, None)

    def take(self) -> _Item | None:
        """Return the next item, None after the last. Raises what computing it raised."""
        prepared, self._next = self._next, None
        return next(self._items, None) if prepared is None else prepared.result()

    def close(self) -> None:
        """Wait for what is being computed."""
        self._thread.shutdown()


def plan_corpus(
    corpus: Corpus,
    config: DataConfig,
    *,
    sample_rate_hz: int,
    batch_size: int,
    max_batch_seconds: float,
    isolated: bool,
    cache: HeaderCache,
    beside_threads: bool = False,
    stop: Stop | None = None,
) -> Plan:
    """Read the headers of a corpus that has audio, and put its utterances into batches.

    `isolated` reads them in processes of their own, `beside_threads` that compute, where `cache` does not know them.
    Where `stop` is set meanwhile, the plan is not to be used.
    """
    found = _headers_of(
        corpus,
        cache=cache,
        isolated=isolated,
        timeout_seconds=config.decode_timeout_seconds,
        beside_threads=beside_threads,
        stop=stop,
    )
    seconds = tuple(_seconds(utterance, header) for utterance, header in zip(corpus.utterances, found, strict=True))
    in_passes = [
        (*_place(utterance, index), seconds[index] or 0.0, index)
        for index, utterance in enumerate(corpus.utterances)
        if (utterance.part.is_segment and not found[index].seeks) or _is_row(utterance)
    ]
    passes = {index for *_, index in in_passes}
    others = [index for index in range(len(seconds)) if index not in passes]
    batches = plan_passes(in_passes, batch_size=batch_size, max_batch_seconds=max_batch_seconds)
    batches += [
        tuple(others[position] for position in batch)
        for batch in plan_batches(
            [seconds[index] for index in others],
            batch_size=batch_size,
            max_batch_seconds=max_batch_seconds,
            shuffle=config.shuffle,
        )
    ]
    return Plan(tuple(batches), seconds, _warn_of_rates_and_channels(corpus, found, sample_rate_hz))


def _headers_of(corpus: Corpus, **settings: Any) -> list[Header]:
    """Read the headers of those utterances of which a list does not say enough."""
    unknown = [index for index, utterance in enumerate(corpus.utterances) if _needs_header(utterance)]
    found = [Header(seeks=True)] * len(corpus)
    read = headers([Path(str(corpus.utterances[index].audio)) for index in unknown], **settings)
    for index, header in zip(unknown, read, strict=True):
        found[index] = header
    return found


def _needs_header(utterance: Utterance) -> bool:
    """Return whether a list does not say how long an utterance is, or whether its file can be sought."""
    is_sought = not utterance.part.is_segment or str(utterance.audio).lower().endswith((".wav", ".flac"))
    return utterance.duration_seconds is None or not is_sought


def _is_row(utterance: Utterance) -> bool:
    """Return whether an utterance is a row of a parquet file, of which many rows are read at a time."""
    assert utterance.audio is not None
    return os.path.dirname(utterance.audio).endswith(".parquet")


def _place(utterance: Utterance, index: int) -> tuple[str, float]:
    """Return the file that is read in one pass, and where in it an utterance is."""
    if _is_row(utterance):
        return os.path.dirname(str(utterance.audio)), float(index)
    return str(utterance.audio), utterance.part.start_seconds


def _seconds(utterance: Utterance, header: Header) -> float | None:
    start, end = utterance.part.start_seconds, utterance.part.end_seconds
    if utterance.duration_seconds is not None:
        return utterance.duration_seconds
    if end is not None:
        return max(0.0, end - start)
    return None if header.seconds is None else max(0.0, header.seconds - start)


def _warn_of_rates_and_channels(corpus: Corpus, found: Sequence[Header], sample_rate_hz: int) -> int:
    """Return how many utterances are upsampled; say so once, and how many have channels that are averaged."""
    upsampled = sum((header.sample_rate_hz or sample_rate_hz) < sample_rate_hz for header in found)
    if upsampled:
        log.warning(
            "%d of %d utterances have a lower rate than the model's %d Hz, as telephone speech has: they are "
            "upsampled, and what the model hears in high frequencies is not there",
            upsampled,
            len(found),
            sample_rate_hz,
        )
    pairs = zip(corpus.utterances, found, strict=True)
    averaged = sum(utterance.part.channel is None and (header.channels or 1) > 1 for utterance, header in pairs)
    if averaged:
        log.warning(
            "%d of %d utterances have several channels, which are averaged; channel=0 takes the first of each",
            averaged,
            len(found),
        )
    return upsampled

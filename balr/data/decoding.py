"""From a plan to decoded batches, read in this process or others; a bad utterance becomes a Failure."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from balr.data.audio import Cursor, load_waveform
from balr.data.audio_budget import AudioBudget
from balr.data.batching import Batch
from balr.data.corpus import Corpus
from balr.data.decoder_pool import DecoderPool
from balr.data.decoder_worker import Read
from balr.records import Failure, Part, Utterance
from balr.shutdown import Stop

_SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class Decoded:
    """Hold a batch: its utterances, the waveform `(samples,)` of each, what failed, and how long it is by the plan."""

    utterances: tuple[Utterance, ...]
    waveforms: tuple[torch.Tensor, ...]
    failures: tuple[Failure, ...] = ()
    planned_seconds: float = 0.0


def waveform_reader(sample_rate_hz: int, max_seconds: float) -> Read:
    """Return what decodes the part of a file to a waveform `(samples,)`; a process keeps its place in a long file."""
    return partial(_read, sample_rate_hz=sample_rate_hz, max_seconds=max_seconds, cursor=Cursor())


def _read(task: tuple[str, Part], *, sample_rate_hz: int, **settings: Any) -> npt.NDArray[np.float32]:
    path, part = task
    waveform: npt.NDArray[np.float32] = load_waveform(Path(path), sample_rate_hz, part=part, **settings).numpy()
    return waveform


def decoded_batches(
    corpus: Corpus,
    plan: Sequence[Batch],
    reader: Read,
    *,
    seconds: Sequence[float],
    pool: DecoderPool | None,
    ahead: int,
    read_ahead: AudioBudget,
    stop: Stop,
) -> Iterator[Decoded]:
    """Decode the batches of a plan in the processes of a pool, `ahead` batches at most, or in this one without.

    `seconds` are those of each batch. With processes, an utterance that crashes one or takes too long becomes a Failure
    like any other. Ends early when `stop` is set.
    """
    tasks = [(str(utterance.audio), utterance.part) for utterance in corpus.utterances]

    def may_start(number: int) -> bool:
        return read_ahead.try_reserve(seconds[number])

    if pool is None:
        results = _read_here(plan, tasks, reader, may_start=may_start, stop=stop)
    else:
        results = pool.results(plan, tasks, ahead=ahead, may_start=may_start, stop=stop)
    for number, found in results:
        yield _together(corpus, plan[number], found, planned_seconds=seconds[number])
        del found  # free its memory before the next batch is read


def _read_here(
    plan: Sequence[Batch],
    tasks: Sequence[tuple[str, Part]],
    reader: Read,
    *,
    may_start: Callable[[int], bool],
    stop: Stop,
) -> Iterator[tuple[int, list[Any]]]:
    for number, batch in enumerate(plan):
        while not stop.is_set() and not may_start(number):
            time.sleep(_SECONDS_BETWEEN_LOOKS)  # a signal that interrupts stop.wait would wait for its lock
        if stop.is_set():
            return
        yield number, [_read_or_error(reader, tasks[index]) for index in batch]


def _read_or_error(reader: Read, task: tuple[str, Part]) -> Any:
    try:
        return reader(task)
    except Exception as error:
        return error


def _together(corpus: Corpus, batch: Batch, found: Sequence[Any], *, planned_seconds: float) -> Decoded:
    pairs = [(corpus.utterances[index], result) for index, result in zip(batch, found, strict=True)]
    good = [(utterance, result) for utterance, result in pairs if not isinstance(result, Exception)]
    return Decoded(
        utterances=tuple(utterance for utterance, _ in good),
        waveforms=tuple(torch.as_tensor(result) for _, result in good),
        failures=tuple(Failure.of(one, "decode", error) for one, error in pairs if isinstance(error, Exception)),
        planned_seconds=planned_seconds,
    )

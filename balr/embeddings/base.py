"""The loop that every model shares: utterances in, an embedding or a failure out for each, in the same order."""

import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from balr.config import DataConfig
from balr.data.batching import Batch, plan_batches
from balr.data.dataset import AnnotatedAudio, AudioDataset
from balr.data.durations import durations
from balr.data.loading import Decoded, decoded_batches, failure
from balr.errors import ConfigError, Failure, UtteranceError, one_line

log = logging.getLogger(__name__)

Vector = npt.NDArray[Any]

_MOST_STREAMS = 8


class Observer(Protocol):
    """Is told how much audio is planned and of every utterance as it is done: a progress bar, a count, a record."""

    def planned(self, audio_seconds: float) -> None: ...

    def embedded(self, utterance: AnnotatedAudio, audio_seconds: float) -> None: ...

    def failed(self, failure: Failure) -> None: ...


@dataclass(frozen=True)
class Embedded:
    """Hold the embedding `(dim,)` of an utterance, which comes without its waveform."""

    utterance: AnnotatedAudio
    vector: Vector
    audio_seconds: float


class EmbeddingsModel(ABC):
    """Turn waveforms at `sample_rate_hz` into embeddings on `device`; a model implements `embed`."""

    sample_rate_hz: int
    device: torch.device
    _most_samples: float = float("inf")

    @abstractmethod
    def embed(
        self,
        waveforms: Sequence[torch.Tensor],
        *,
        chunk_seconds: float | None = None,
        max_whole_seconds: float | None = None,
    ) -> torch.Tensor:
        """Embed waveforms `(samples,)` in [-1, 1] to `(batch, dim)`, float32 on `device`; threads may share it.

        A waveform longer than `chunk_seconds` may be worked through in parts, to the same embedding; where that cannot
        be, one longer than `max_whole_seconds` is refused. Raises UtteranceError where one cannot be embedded.
        """

    def extract_embeddings(
        self,
        dataset: AudioDataset,
        stream_save: bool,
        data_config: DataConfig,
        *,
        observer: Observer | None = None,
        durations_file: Path | None = None,
    ) -> list[tuple[str, npt.NDArray[Any]]]:
        """Embed every utterance that has audio.

        With `stream_save` each embedding `(dim,)` goes to `dataset.vector_path(...)` as it is computed and the list is
        empty; without, (id, embedding) pairs are returned in the order of the dataset. A bad utterance is told to the
        observer, or logged, and left out. `durations_file` remembers the lengths of files from one run to the next.
        Raises OutputError where an embedding cannot be written.
        """
        observer = observer or _LoggingObserver()
        audible = dataset.filter(lambda utterance: utterance.audio is not None).at_rate(self.sample_rate_hz)
        loading = suited(data_config, self.device)
        files = [utterance.audio for utterance in audible.utterances if utterance.audio is not None]
        seconds = durations(files, cache=durations_file)
        observer.planned(sum(length for length in seconds if length is not None))
        plan = plan_batches(
            seconds,
            batch_size=loading.batch_size,
            max_batch_seconds=loading.max_batch_seconds,
            shuffle=data_config.shuffle,
        )
        vectors: dict[str, Vector] = {}
        for outcome in self._outcomes(audible, plan, loading, data_config):
            if isinstance(outcome, Failure):
                observer.failed(outcome)
                continue
            if stream_save:
                audible.save_vector(outcome.utterance.id, outcome.vector)
            else:
                vectors[outcome.utterance.id] = outcome.vector
            observer.embedded(outcome.utterance, outcome.audio_seconds)
        return [(utterance.id, vectors[utterance.id]) for utterance in audible.utterances if utterance.id in vectors]

    def how(self) -> dict[str, str]:
        """Say, after a run, what was decided on the way: device, batches."""
        return {"device": _device_name(self.device)}

    def _outcomes(
        self, dataset: AudioDataset, plan: Sequence[Batch], loading: "Loading", config: DataConfig
    ) -> Iterator[Embedded | Failure]:
        """Yield what becomes of each utterance as it is done: this thread loads, others compute."""
        batches = decoded_batches(
            dataset,
            plan,
            num_workers=min(loading.num_workers, len(plan)),
            prefetch_factor=config.prefetch_factor,
            pin_memory=self.device.type == "cuda",
        )  # its processes are forked here, before there are threads
        at_once = min(loading.streams, max(1, len(plan)))
        running: set[Future[list[Embedded | Failure]]] = set()
        with _computing(at_once, self.device) as pool:
            try:
                for batch in batches:
                    running.add(pool.submit(self._embed_batch, batch, config))
                    if len(running) > at_once:  # one more than can run, so that none waits for a decoder
                        yield from _first_done(running)
                while running:
                    yield from _first_done(running)
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                for future in running:
                    if not future.cancelled() and future.exception() is None:
                        yield from future.result()
                raise

    def _embed_batch(self, batch: Decoded, config: DataConfig) -> list[Embedded | Failure]:
        outcomes: list[Embedded | Failure] = list(batch.failures)
        waveforms = batch.waveforms(self.device)
        all_made = self._embed_or_tell(waveforms, config)
        for utterance, waveform, made in zip(batch.utterances, waveforms, all_made, strict=True):
            error = made if isinstance(made, Exception) else _flaw(made, waveform)
            if error is not None:
                outcomes.append(failure(utterance.id, utterance.audio_path, "embed", error))
            elif not isinstance(made, Exception):
                outcomes.append(Embedded(utterance, made, waveform.numel() / self.sample_rate_hz))
        return outcomes

    def _embed_or_tell(self, waveforms: Sequence[torch.Tensor], config: DataConfig) -> list[Vector | Exception]:
        """Embed a batch; where that fails, by halves, so that it costs only the utterance that it is due to."""
        if not waveforms:
            return []
        error: Exception
        if len(waveforms) == 1 or sum(waveform.numel() for waveform in waveforms) <= self._most_samples:
            try:
                limits = {"chunk_seconds": config.chunk_seconds, "max_whole_seconds": config.max_whole_seconds}
                return list(self.embed(waveforms, **limits).cpu().numpy())
            except Exception as raised:
                error = raised.with_traceback(None)  # which would keep the tensors of the attempt
            if len(waveforms) == 1:
                return [error]
            if isinstance(error, torch.OutOfMemoryError):
                self._most_samples = sum(waveform.numel() for waveform in waveforms) / 2
                torch.cuda.empty_cache()
                log.warning("out of memory with %d utterances at once: going on with half of that", len(waveforms))
        half = len(waveforms) // 2
        return [
            *self._embed_or_tell(waveforms[:half], config),
            *self._embed_or_tell(waveforms[half:], config),
        ]


@dataclass(frozen=True)
class Loading:
    """Fix what a DataConfig leaves to the machine: batches, processes that decode, threads that compute batches."""

    batch_size: int
    max_batch_seconds: float
    num_workers: int
    streams: int


def suited(config: DataConfig, device: torch.device) -> Loading:
    """Choose what a config leaves open by the device and the cores there are.

    On a CPU, as many utterances at a time as there are cores (8 at most), each with its share of the threads: batches
    bring nothing there, and threads that wait for one another at each layer lose to threads that do not. On a GPU,
    large batches and two at a time, so that one is being prepared while the other is computed.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if device.type == "cpu":
        usual = Loading(1, 120.0, 1 if cores > 2 else 0, min(torch.get_num_threads(), _MOST_STREAMS))
    else:
        usual = Loading(64, 600.0, min(8, cores), 2 if device.type == "cuda" else 1)
    return Loading(
        batch_size=usual.batch_size if config.batch_size is None else config.batch_size,
        max_batch_seconds=usual.max_batch_seconds if config.max_batch_seconds is None else config.max_batch_seconds,
        num_workers=usual.num_workers if config.num_workers is None else config.num_workers,
        streams=usual.streams,
    )


@contextmanager
def _computing(streams: int, device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of threads that share torch's threads among them, on a GPU with a CUDA stream each."""
    threads = torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the weights were put there on another stream
    pool = ThreadPoolExecutor(streams, thread_name_prefix="embed", initializer=_use_own_stream, initargs=(device,))
    # For all threads, from here on: one that put tf32 back after its batch would let it into the batch of another.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        try:
            if device.type == "cpu":
                torch.set_num_threads(max(1, threads // streams))
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads"


def _first_done(running: set[Future[list[Embedded | Failure]]]) -> list[Embedded | Failure]:
    """Wait for a batch, take it out of those that run, and return what became of its utterances."""
    done = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
    running.remove(done)
    return done.result()


def _use_own_stream(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))


def _flaw(vector: Vector, waveform: torch.Tensor) -> UtteranceError | None:
    if np.isfinite(vector).all():
        return None
    silent = bool((waveform == waveform[0]).all())
    return UtteranceError(f"the embedding is not finite{' (digital silence)' if silent else ''}")


def select_device(device: str | torch.device) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` means here; `auto` is cuda where there is one.

    Raises ConfigError that names the devices there are.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or not any(str(chosen) in (name, name.partition(":")[0]) for name in there):
        raise ConfigError(f"device={device}: not on this machine, which has {', '.join(there)}.")
    return chosen


class _LoggingObserver:
    def planned(self, audio_seconds: float) -> None:
        log.debug("%.0f s of audio to embed", audio_seconds)

    def embedded(self, utterance: AnnotatedAudio, audio_seconds: float) -> None:
        log.debug("%s: embedded, %.1f s", utterance.id, audio_seconds)

    def failed(self, failure: Failure) -> None:
        log.warning("%s: %s", one_line(failure.id), failure.reason)

"""The loop that every model shares: utterances in, an embedding or a failure out for each, in the same order."""

import logging
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from balr.config import DataConfig
from balr.data.dataset import AnnotatedAudio, AudioDataset
from balr.errors import BalrError, ConfigError, Failure, Stage, UtteranceError, one_line

log = logging.getLogger(__name__)

Vector = npt.NDArray[Any]


class Observer(Protocol):
    """Is told of every utterance as it is done: a progress bar, a count, a record."""

    def embedded(self, utterance: AnnotatedAudio, audio_seconds: float) -> None: ...

    def failed(self, failure: Failure) -> None: ...


class EmbeddingsModel(ABC):
    """Turn waveforms at `sample_rate_hz` into embeddings on `device`; a model implements `embed`."""

    sample_rate_hz: int
    device: torch.device

    @abstractmethod
    def embed(self, waveforms: Sequence[torch.Tensor], *, chunk_seconds: float | None = None) -> torch.Tensor:
        """Embed waveforms `(samples,)` in [-1, 1] to `(batch, dim)`, float32 on the CPU.

        A waveform longer than `chunk_seconds` may be worked through in parts, to the same embedding. Raises
        UtteranceError where a waveform cannot be embedded.
        """

    def extract_embeddings(
        self, dataset: AudioDataset, stream_save: bool, data_config: DataConfig, *, observer: Observer | None = None
    ) -> list[tuple[str, npt.NDArray[Any]]]:
        """Embed every utterance that has audio.

        With `stream_save` each embedding `(dim,)` goes to `dataset.vector_path(...)` as it is computed and the list is
        empty; without, (id, embedding) pairs are returned. A bad utterance is told to the observer, or logged, and
        left out. Raises OutputError where an embedding cannot be written.
        """
        observer = observer or _LoggingObserver()
        audible = dataset.filter(lambda utterance: utterance.audio is not None).at_rate(self.sample_rate_hz)
        pairs: list[tuple[str, Vector]] = []
        for item in _decoded(audible, data_config, self.device):
            outcome = item if isinstance(item, Failure) else self._embed_one(item, data_config.chunk_seconds)
            if isinstance(outcome, Failure):
                observer.failed(outcome)
                continue
            if stream_save:
                audible.save_vector(item.id, outcome)
            else:
                pairs.append((item.id, outcome))
            assert isinstance(item, AnnotatedAudio) and item.audio is not None
            observer.embedded(item, item.audio.numel() / self.sample_rate_hz)
        return pairs

    def _embed_one(self, item: AnnotatedAudio, chunk_seconds: float | None) -> Vector | Failure:
        assert item.audio is not None
        try:
            vector = self.embed([item.audio], chunk_seconds=chunk_seconds)[0].numpy()
            if not np.isfinite(vector).all():
                silent = bool((item.audio == item.audio[0]).all())
                raise UtteranceError(f"the embedding is not finite{' (digital silence)' if silent else ''}")
        except Exception as error:
            return _failure(item.id, str(item.audio_path), "embed", error)
        return vector


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
    def embedded(self, utterance: AnnotatedAudio, audio_seconds: float) -> None:
        log.debug("%s: embedded, %.1f s", utterance.id, audio_seconds)

    def failed(self, failure: Failure) -> None:
        log.warning("%s: %s", one_line(failure.id), failure.reason)


class _Decoder(Dataset[AnnotatedAudio | Failure]):
    """Decode in a worker process, where an exception would end the run: a bad utterance becomes a Failure."""

    def __init__(self, dataset: AudioDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> AnnotatedAudio | Failure:
        try:
            return self.dataset[index]
        except Exception as error:
            utterance = self.dataset.utterances[index]
            return _failure(utterance.id, str(utterance.audio), "decode", error)


def _decoded(dataset: AudioDataset, config: DataConfig, device: torch.device) -> Iterator[AnnotatedAudio | Failure]:
    workers = min(_usual_workers(device) if config.num_workers is None else config.num_workers, len(dataset))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # more workers than cores: they wait for disks, too
        loader: Iterable[AnnotatedAudio | Failure] = DataLoader(
            _Decoder(dataset),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=config.prefetch_factor if workers else None,
            # Said outright: in a job of joblib's, the default is a way to start processes that DataLoader cannot use.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )
        return iter(loader)


def _usual_workers(device: torch.device) -> int:
    """Choose by what is left: a decoder beside two computing threads on two cores costs more than it saves."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if device.type == "cpu":
        return 1 if cores > 2 else 0
    return min(4, cores)


def _failure(id_: str, audio: str, stage: Stage, error: Exception) -> Failure:
    reason = str(error) if isinstance(error, BalrError) else f"{type(error).__name__}: {one_line(error)[:300]}"
    return Failure(id_, audio, stage, reason)

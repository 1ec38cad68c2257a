"""Decoding ahead: batches of a plan, loaded in this process or others; a bad utterance becomes a Failure."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch.utils.data import DataLoader, Dataset

from balr.data.batching import Batch
from balr.data.dataset import AnnotatedAudio, AudioDataset
from balr.errors import BalrError, Failure, InputError, Stage, one_line


@dataclass(frozen=True)
class Decoded:
    """Hold a batch: its utterances without their waveforms, those end to end in one tensor, and what failed."""

    utterances: tuple[AnnotatedAudio, ...]
    samples: torch.Tensor
    lengths: tuple[int, ...]
    failures: tuple[Failure, ...]

    def pin_memory(self) -> Self:
        """Return the same with the samples where a GPU copies them from while it computes."""
        return replace(self, samples=self.samples.pin_memory())

    def waveforms(self, device: torch.device) -> list[torch.Tensor]:
        """Return the waveforms `(samples,)` on a device, which takes them in one copy."""
        return list(torch.split(self.samples.to(device, non_blocking=True), list(self.lengths))) if self.lengths else []


def decoded_batches(
    dataset: AudioDataset, plan: Sequence[Batch], *, num_workers: int, prefetch_factor: int, pin_memory: bool
) -> Iterator[Decoded]:
    """Decode batch by batch, `num_workers` processes ahead (0: this one) by `prefetch_factor` batches each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # more workers than cores: they wait for disks, too
        batches: Iterator[Decoded] = iter(
            DataLoader(
                _Decoder(dataset),
                batch_size=None,
                sampler=plan,
                num_workers=num_workers,
                prefetch_factor=prefetch_factor if num_workers else None,
                pin_memory=pin_memory,
                # Said outright: in a job of joblib's, the default is a way to start processes that DataLoader
                # cannot use.
                multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
            )
        )
    return _telling_of_deaths(batches)


def _telling_of_deaths(batches: Iterator[Decoded]) -> Iterator[Decoded]:
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a process that decodes died, of a file that crashes its decoder or of too little shared memory "
            "(/dev/shm); what was embedded is saved, and data.num_workers=0 goes on without such processes."
        ) from error


def failure(id: str, audio: Path | None, stage: Stage, error: Exception) -> Failure:
    """Say of an utterance where and why it failed."""
    reason = str(error) if isinstance(error, BalrError) else f"{type(error).__name__}: {one_line(error)[:300]}"
    return Failure(id, str(audio), stage, reason)


class _Decoder(Dataset[Decoded]):
    """Decode in a worker process, where an exception would end the run."""

    def __init__(self, dataset: AudioDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, batch: Batch) -> Decoded:
        items = [self._decode(index) for index in batch]
        found = [item for item in items if isinstance(item, AnnotatedAudio)]
        waveforms = [item.audio for item in found if item.audio is not None]
        return Decoded(
            utterances=tuple(replace(item, audio=None) for item in found),
            samples=waveforms[0] if len(waveforms) == 1 else torch.cat([torch.empty(0), *waveforms]),
            lengths=tuple(waveform.numel() for waveform in waveforms),
            failures=tuple(item for item in items if isinstance(item, Failure)),
        )

    def _decode(self, index: int) -> AnnotatedAudio | Failure:
        try:
            return self.dataset[index]
        except Exception as error:
            utterance = self.dataset.utterances[index]
            return failure(utterance.id, utterance.audio, "decode", error)

"""Decoding: batches of a plan, loaded in this process or others; a bad utterance becomes a Failure."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from balr.data.batching import Batch
from balr.data.dataset import AnnotatedAudio, AudioDataset
from balr.data.read_ahead import ReadAhead
from balr.data.workers import Loss, at_work
from balr.errors import BalrError, Failure, Stage, UtteranceError, one_line

_Item = AnnotatedAudio | Failure


@dataclass(frozen=True)
class Decoded:
    """Hold a batch: its utterances without their waveforms, those end to end in one tensor, and what failed."""

    utterances: tuple[AnnotatedAudio, ...]
    samples: torch.Tensor
    lengths: tuple[int, ...]
    failures: tuple[Failure, ...]

    @property
    def ids(self) -> list[str]:
        """Return the ids of all utterances of the batch, failed ones too."""
        return [*(item.id for item in self.utterances), *(failure.id for failure in self.failures)]

    def pin_memory(self) -> Self:
        """Return the same with the samples where a GPU copies them from while it computes."""
        return replace(self, samples=self.samples.pin_memory())

    def waveforms(self, device: torch.device) -> list[torch.Tensor]:
        """Return the waveforms `(samples,)` on a device, which takes them in one copy."""
        return list(torch.split(self.samples.to(device, non_blocking=True), list(self.lengths))) if self.lengths else []


def decoded_batches(
    dataset: AudioDataset,
    plan: Sequence[Batch],
    *,
    num_workers: int,
    prefetch_factor: int,
    timeout_seconds: float,
    read_ahead: ReadAhead,
    quiet: Callable[[], None],
    idle: Callable[[], object] = lambda: None,
) -> Generator[Decoded | None, None, None]:
    """Decode the batches of a plan, `num_workers` processes (0: this one) ahead by `prefetch_factor` batches each.

    None comes where `read_ahead` has no room until some of what was decoded is embedded. With processes, an utterance
    that crashes one or takes longer than `timeout_seconds` becomes a Failure like any other; `quiet` and `idle` are for
    `Workers`.
    """
    decoder = _Decoder(dataset)
    if num_workers == 0:
        for batch in plan:
            while not read_ahead.reserve(batch):
                yield None
            yield _together([decoder(index) for index in batch])
        return
    with at_work(decoder, number=num_workers, timeout_seconds=timeout_seconds, quiet=quiet, idle=idle) as workers:
        for items in workers.decoded(plan, ahead=num_workers * prefetch_factor, read_ahead=read_ahead):
            yield None if items is None else _together([decoder.lost(items)] if isinstance(items, Loss) else items)


def failure(id: str, audio: Path | None, stage: Stage, error: Exception) -> Failure:
    """Say of an utterance where and why it failed."""
    reason = str(error) if isinstance(error, BalrError) else f"{type(error).__name__}: {one_line(error)[:300]}"
    return Failure(id, str(audio), stage, reason)


def _together(items: Sequence[_Item]) -> Decoded:
    found = [item for item in items if isinstance(item, AnnotatedAudio)]
    waveforms = [item.audio for item in found if item.audio is not None]
    return Decoded(
        utterances=tuple(replace(item, audio=None) for item in found),
        samples=waveforms[0] if len(waveforms) == 1 else torch.cat([torch.empty(0), *waveforms]),
        lengths=tuple(waveform.numel() for waveform in waveforms),
        failures=tuple(item for item in items if isinstance(item, Failure)),
    )


@dataclass(frozen=True)
class _Decoder:
    """Decode an utterance of a dataset; whatever goes wrong is a Failure."""

    dataset: AudioDataset

    def __call__(self, index: int) -> _Item:
        try:
            return self.dataset[index]
        except Exception as error:
            return self._failure(index, error)

    def lost(self, loss: Loss) -> Failure:
        return self._failure(loss.index, UtteranceError(loss.reason))

    def _failure(self, index: int, error: Exception) -> Failure:
        utterance = self.dataset.utterances[index]
        return failure(utterance.id, utterance.audio, "decode", error)

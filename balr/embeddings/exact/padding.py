"""Exact batches of utterances of different lengths, around WeSpeaker's untouched networks.

No WeSpeaker network takes lengths, and padding with zeros changes an embedding. Here the padding that a convolution can
read from within an utterance is set to zero before each convolution, as its own zero padding would be; layers with
global context (pooling, squeeze and excitation, attention) run once per length, without padding.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from balr.data.batching import padded_frames
from balr.embeddings.architectures import has_global_context, run_network

log = logging.getLogger(__name__)

_PROBE_FRAMES = (136, 57, 96, 136)
_PROBE_FILLING = 30.0

Lengths = tuple[int, ...]
Rows = Sequence[int]


def by_group(
    features: Sequence[torch.Tensor], groups: Sequence[Rows], run: Callable[[Sequence[torch.Tensor]], torch.Tensor]
) -> torch.Tensor:
    """Run a function on each group of rows and return all embeddings `(batch, dim)` in the order of the features."""
    embeddings = torch.cat([run([features[row] for row in rows]) for rows in groups])
    order = torch.tensor([row for rows in groups for row in rows])
    return embeddings[order.argsort().to(embeddings.device, non_blocking=True)] if len(groups) > 1 else embeddings


def rows_by_length(lengths: Sequence[int]) -> dict[int, list[int]]:
    """Group rows by their length."""
    rows: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        rows.setdefault(length, []).append(row)
    return rows


class LengthsError(Exception):
    """The lengths of a batch cannot be followed through a network."""


@dataclass
class _Batch:
    """Know the length of each utterance at each layer, by the number of frames that the padded tensor has there."""

    lengths_at: dict[int, Lengths]
    device: torch.device
    tails: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    groups: dict[int, list[tuple[int, torch.Tensor]]] = field(default_factory=dict)

    def lengths(self, frames: int) -> Lengths:
        if frames not in self.lengths_at:
            raise LengthsError(f"the lengths in a tensor of {frames} frames are not known")
        return self.lengths_at[frames]

    def learn(self, frames: int, lengths: Lengths) -> None:
        if self.lengths_at.setdefault(frames, lengths) != lengths:
            raise LengthsError(f"two tensors of {frames} frames hold utterances of different lengths")

    def tails_at(self, frames: int, reach: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the row and frame indices of the `reach` frames that follow each utterance."""
        if (frames, reach) not in self.tails:
            spots = [(n, t) for n, k in enumerate(self.lengths(frames)) for t in range(k, min(k + reach, frames))]
            indices = torch.tensor(spots, dtype=torch.long).reshape(-1, 2).to(self.device, non_blocking=True)
            self.tails[frames, reach] = (indices[:, 0], indices[:, 1])
        return self.tails[frames, reach]

    def groups_at(self, frames: int) -> list[tuple[int, torch.Tensor]]:
        """Return each length that occurs, with the rows of its utterances."""
        if frames not in self.groups:
            self.groups[frames] = [
                (length, torch.tensor(rows).to(self.device, non_blocking=True))
                for length, rows in sorted(rows_by_length(self.lengths(frames)).items())
            ]
        return self.groups[frames]


class RaggedNetwork:
    """Run a network on batches of different lengths. Threads may share it.

    `time_dim` is the dimension of the frames in a batch of features: 1 for `(batch, frames, mels)`, 2 for
    `(batch, mels, frames)`.
    """

    def __init__(self, network: nn.Module, *, time_dim: int) -> None:
        self.network = network
        self.time_dim = time_dim
        # ReDimNet2 cuts off the last frames of an utterance down to a multiple of this.
        self._frame_multiple = int(getattr(getattr(network, "backbone", None), "time_stride", 1))
        self._thread = threading.local()
        for module in network.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d) and kernel_span(module) != (1, 1, 0, 0):
                module.register_forward_pre_hook(self._clear_tails)
                module.register_forward_hook(self._learn_lengths)
            if (context := has_global_context(module)) is not None:
                method, dim = context
                setattr(module, method, self._by_length(getattr(module, method), dim))

    def __call__(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the embeddings `(batch, dim)` of features `(frames, mels)`, each as if it were alone."""
        cut = [self._whole_strides(one) for one in features]
        lengths = tuple(one.shape[self.time_dim - 1] for one in cut)
        frames = padded_frames(max(lengths)) if len(cut) > 1 else lengths[0]
        frames = -(-frames // self._frame_multiple) * self._frame_multiple
        if min(lengths) == frames:
            return run_network(self.network, torch.stack(cut))
        return self.run_padded(self._padded(cut, frames, 0.0), lengths)

    def run_padded(self, padded: torch.Tensor, lengths: Lengths) -> torch.Tensor:
        """Return the embeddings `(batch, dim)` of padded features `(batch, frames, mels)`; the padding is ignored."""
        with self._in_batch(_Batch({padded.shape[self.time_dim]: lengths}, padded.device)):
            return run_network(self.network, padded)

    def difference_from_alone(self, example: Callable[[int], torch.Tensor], device: torch.device) -> float:
        """Compare a padded batch with its utterances alone; `example` returns features of a number of frames.

        Returns the largest relative difference, infinity if lengths could not be followed. The padding is loud but
        finite: fast convolutions mix neighbouring frames and subtract them again, which a NaN would not survive.
        """
        features = [self._whole_strides(example(frames).to(device)) for frames in _PROBE_FRAMES]
        lengths = tuple(one.shape[self.time_dim - 1] for one in features)
        alone = torch.cat([run_network(self.network, one.unsqueeze(0)) for one in features]).float()
        try:
            together = self.run_padded(self._padded(features, max(lengths) + 24, _PROBE_FILLING), lengths).float()
        except (LengthsError, RuntimeError, IndexError) as error:
            log.debug("a ragged batch failed: %s", error)
            return float("inf")
        relative = (together - alone).abs().amax(dim=1) / alone.abs().amax(dim=1)
        return float(relative.max().nan_to_num(float("inf")))

    def _whole_strides(self, features: torch.Tensor) -> torch.Tensor:
        frames = features.shape[self.time_dim - 1]
        return features.narrow(self.time_dim - 1, 0, frames // self._frame_multiple * self._frame_multiple)

    def _padded(self, features: Sequence[torch.Tensor], frames: int, filling: float) -> torch.Tensor:
        axis = self.time_dim - 1
        padded = features[0].new_full((len(features), *_with_size(features[0].shape, axis, frames)), filling)
        for row, one in zip(padded, features, strict=True):
            row.narrow(axis, 0, one.shape[axis]).copy_(one)
        return padded

    @property
    def _batch(self) -> _Batch | None:
        return getattr(self._thread, "batch", None)

    @contextmanager
    def _in_batch(self, batch: _Batch | None) -> Iterator[None]:
        outer, self._thread.batch = self._batch, batch
        try:
            yield
        finally:
            self._thread.batch = outer

    def _clear_tails(self, conv: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Set, in place, the padding that the kernel can read from within an utterance to zero."""
        if (batch := self._batch) is None:
            return
        frames = inputs[0].shape[-1]
        kernel, stride, left, _ = kernel_span(conv)
        lengths = batch.lengths(frames)
        reach = max((_shrunk(length, conv) - 1) * stride + kernel - left - length for length in lengths)
        if reach > 0:
            inputs[0].movedim(-1, 1)[batch.tails_at(frames, reach)] = 0.0

    def _learn_lengths(self, conv: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if (batch := self._batch) is not None:
            lengths = batch.lengths(inputs[0].shape[-1])
            batch.learn(output.shape[-1], tuple(_shrunk(length, conv) for length in lengths))

    def _by_length(self, layer: Callable[..., torch.Tensor], time_dim: int) -> Callable[..., torch.Tensor]:
        """Make a layer with global context run once per length in a batch, on the utterances of that length."""

        def run(inputs: torch.Tensor, **settings: Any) -> torch.Tensor:
            if (batch := self._batch) is None:
                return layer(inputs, **settings)
            frames = inputs.shape[time_dim]
            output: torch.Tensor | None = None
            with self._in_batch(None):
                for length, rows in batch.groups_at(frames):
                    part = layer(inputs[rows].narrow(time_dim, 0, length), **settings)
                    keeps_time = part.ndim == inputs.ndim and part.shape[time_dim] == length
                    if output is None:
                        shape = _with_size(part.shape, time_dim, frames) if keeps_time else part.shape
                        output = part.new_zeros(_with_size(shape, 0, len(inputs)))
                    (output.narrow(time_dim, 0, length) if keeps_time else output)[rows] = part
            assert output is not None
            return output

        return run


def _with_size(shape: Sequence[int], dim: int, size: int) -> list[int]:
    changed = list(shape)
    changed[dim] = size
    return changed


def kernel_span(conv: nn.Module) -> tuple[int, int, int, int]:
    """Return the frames that a kernel spans, its stride, and the frames padded on the left and on the right."""
    assert isinstance(conv, nn.Conv1d | nn.Conv2d)
    span = (conv.kernel_size[-1] - 1) * conv.dilation[-1] + 1
    if conv.padding == "same":
        return span, conv.stride[-1], (span - 1) // 2, span - 1 - (span - 1) // 2
    padding = 0 if isinstance(conv.padding, str) else int(conv.padding[-1])
    return span, conv.stride[-1], padding, padding


def _shrunk(length: int, conv: nn.Module) -> int:
    """Return how many frames a convolution makes of an utterance of `length` frames."""
    span, stride, left, right = kernel_span(conv)
    return (length + left + right - span) // stride + 1

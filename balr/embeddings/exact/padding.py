"""Exact batches of utterances of different lengths, around WeSpeaker's untouched networks.

No WeSpeaker network takes lengths, and zeros at the end of a shorter utterance change its embedding. Here a
convolution's input is zeroed where a kernel can read past an utterance's end, as its own zero padding would be alone;
layers that look at all time (pooling, squeeze and excitation, attention) run on utterances of equal length at a time.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from balr.data.batching import padded_frames
from balr.embeddings.architectures import has_global_context, run_network

log = logging.getLogger(__name__)

_PROBE_FRAMES = (136, 57, 96, 136)
_POISON = 30.0
LARGEST_RELATIVE_DIFFERENCE: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
)

Lengths = tuple[int, ...]


class LengthsError(Exception):
    """Tell that the lengths of a batch could not be followed through a network."""


@dataclass
class _Batch:
    """Know the valid length of each utterance wherever the network is, by how many frames all have there."""

    lengths_at: dict[int, Lengths]
    device: torch.device
    tails: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    groups: dict[int, list[tuple[int, torch.Tensor]]] = field(default_factory=dict)

    def lengths(self, frames: int) -> Lengths:
        if frames not in self.lengths_at:
            raise LengthsError(f"nothing is known of a tensor of {frames} frames")
        return self.lengths_at[frames]

    def learn(self, frames: int, lengths: Lengths) -> None:
        if self.lengths_at.setdefault(frames, lengths) != lengths:
            raise LengthsError(f"two tensors of {frames} frames hold utterances of different lengths")

    def tails_at(self, frames: int, reach: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (row, frame) indices of so many frames past each utterance's end."""
        if (frames, reach) not in self.tails:
            spots = [(n, t) for n, k in enumerate(self.lengths(frames)) for t in range(k, min(k + reach, frames))]
            indices = torch.tensor(spots, dtype=torch.long).reshape(-1, 2).to(self.device, non_blocking=True)
            self.tails[frames, reach] = (indices[:, 0], indices[:, 1])
        return self.tails[frames, reach]

    def groups_at(self, frames: int) -> list[tuple[int, torch.Tensor]]:
        """Return each length there is and the rows of the utterances that have it."""
        if frames not in self.groups:
            lengths = torch.tensor(self.lengths(frames))
            self.groups[frames] = [
                (length, (lengths == length).nonzero().flatten().to(self.device, non_blocking=True))
                for length in sorted(set(self.lengths(frames)))
            ]
        return self.groups[frames]


class RaggedNetwork:
    """Run a network on batches of different lengths; threads may share it, and batches of one length go straight in.

    `time_dim` is the dimension of the frames in a batch of features and `frame_multiple` what the network itself cuts
    an utterance's frames down to a multiple of.
    """

    def __init__(self, network: nn.Module, *, time_dim: int) -> None:
        self.network = network
        self.time_dim = time_dim
        self.frame_multiple = int(getattr(getattr(network, "backbone", None), "time_stride", 1))
        self._here = threading.local()
        for module in network.modules():
            self._prepare(module)

    def __call__(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the embeddings `(batch, dim)` of features of one utterance each, as if each were alone."""
        cut = [self._whole_strides(one) for one in features]
        lengths = tuple(one.shape[self.time_dim - 1] for one in cut)
        frames = padded_frames(max(lengths)) if len(cut) > 1 else lengths[0]
        frames = -(-frames // self.frame_multiple) * self.frame_multiple
        if min(lengths) == frames:
            return run_network(self.network, torch.stack(cut))
        return self.run_padded(self._padded(cut, frames, 0.0), lengths)

    def run_padded(self, padded: torch.Tensor, lengths: Lengths) -> torch.Tensor:
        """Return the embeddings of a padded batch, whatever its padding holds."""
        with self._in_batch(_Batch({padded.shape[self.time_dim]: lengths}, padded.device)):
            return run_network(self.network, padded)

    def difference_from_alone(self, example: Callable[[int], torch.Tensor]) -> float:
        """Compare a poisoned ragged batch with its utterances alone, `example` giving features of so many frames.

        The largest relative difference, or infinity where lengths could not be followed. Poison is finite: fast
        convolutions mix neighbouring frames and take out again what does not belong, but for a NaN.
        """
        features = [self._whole_strides(example(frames)) for frames in _PROBE_FRAMES]
        lengths = tuple(one.shape[self.time_dim - 1] for one in features)
        alone = torch.cat([run_network(self.network, one.unsqueeze(0)) for one in features]).float()
        try:
            together = self.run_padded(self._padded(features, max(lengths) + 24, _POISON), lengths).float()
        except (LengthsError, RuntimeError, IndexError) as error:
            log.debug("a ragged batch failed: %s", error)
            return float("inf")
        relative = (together - alone).abs().amax(dim=1) / alone.abs().amax(dim=1)
        return float(relative.max().nan_to_num(float("inf")))

    def _whole_strides(self, features: torch.Tensor) -> torch.Tensor:
        frames = features.shape[self.time_dim - 1]
        return features.narrow(self.time_dim - 1, 0, frames // self.frame_multiple * self.frame_multiple)

    def _padded(self, features: Sequence[torch.Tensor], frames: int, filling: float) -> torch.Tensor:
        axis = self.time_dim - 1
        shape = (len(features), *_with_size(features[0].shape, axis, frames))
        padded = features[0].new_full(shape, filling)
        for row, one in zip(padded, features, strict=True):
            row.narrow(axis, 0, one.shape[axis]).copy_(one)
        return padded

    def _prepare(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d | nn.Conv2d) and _span(module) != (1, 1, 0, 0):
            module.register_forward_pre_hook(self._clear_tails)
            module.register_forward_hook(self._learn_lengths)
        if (seen := has_global_context(module)) is not None:
            method, time_dim = seen
            setattr(module, method, self._by_length(getattr(module, method), time_dim))

    @contextmanager
    def _in_batch(self, batch: _Batch | None) -> Iterator[None]:
        outer = getattr(self._here, "batch", None)
        self._here.batch = batch
        try:
            yield
        finally:
            self._here.batch = outer

    def _clear_tails(self, conv: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        """Zero, in place, the frames past each utterance's end that a kernel can read from within."""
        batch: _Batch | None = getattr(self._here, "batch", None)
        if batch is None:
            return
        inputs = given[0]
        frames = inputs.shape[-1]
        kernel, stride, left, _ = _span(conv)
        lengths = batch.lengths(frames)
        ends = [(_shrunk(length, conv) - 1) * stride + kernel - left for length in lengths]
        reach = max(end - length for end, length in zip(ends, lengths, strict=True))
        if reach > 0:
            inputs.movedim(-1, 1)[batch.tails_at(frames, reach)] = 0.0

    def _learn_lengths(self, conv: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        batch: _Batch | None = getattr(self._here, "batch", None)
        if batch is not None:
            lengths = batch.lengths(given[0].shape[-1])
            batch.learn(made.shape[-1], tuple(_shrunk(length, conv) for length in lengths))

    def _by_length(self, whole: Callable[[torch.Tensor], torch.Tensor], time_dim: int) -> Callable[..., torch.Tensor]:
        """Run a layer's own method once for each length in a batch, on the utterances of that length."""

        def run(inputs: torch.Tensor, **settings: Any) -> torch.Tensor:
            batch: _Batch | None = getattr(self._here, "batch", None)
            if batch is None:
                return whole(inputs, **settings)
            frames = inputs.shape[time_dim]
            made: torch.Tensor | None = None
            with self._in_batch(None):
                for length, rows in batch.groups_at(frames):
                    part = whole(inputs[rows].narrow(time_dim, 0, length), **settings)
                    keeps_time = part.ndim == inputs.ndim and part.shape[time_dim] == length
                    if made is None:
                        shape = _with_size(part.shape, time_dim, frames) if keeps_time else part.shape
                        made = part.new_zeros(_with_size(shape, 0, len(inputs)))
                    (made.narrow(time_dim, 0, length) if keeps_time else made)[rows] = part
            assert made is not None
            return made

        return run


def _with_size(shape: Sequence[int], dim: int, size: int) -> list[int]:
    changed = list(shape)
    changed[dim] = size
    return changed


def _span(conv: nn.Module) -> tuple[int, int, int, int]:
    """Return the frames that a kernel spans, its stride, and the frames padded on the left and on the right."""
    assert isinstance(conv, nn.Conv1d | nn.Conv2d)
    span = (conv.kernel_size[-1] - 1) * conv.dilation[-1] + 1
    if conv.padding == "same":
        return span, conv.stride[-1], (span - 1) // 2, span - 1 - (span - 1) // 2
    padding = 0 if isinstance(conv.padding, str) else int(conv.padding[-1])
    return span, conv.stride[-1], padding, padding


def _shrunk(length: int, conv: nn.Module) -> int:
    span, stride, left, right = _span(conv)
    return (length + left + right - span) // stride + 1

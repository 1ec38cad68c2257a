"""Exact batches of utterances of different lengths, around WeSpeaker's untouched networks.

No WeSpeaker network takes lengths, and padding with zeros changes an embedding. Here the padding is set to zero before
each convolution, as its own zero padding would be; layers with global context (pooling, squeeze and excitation,
attention) leave the padding out of their reductions.
"""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from balr.data.batching import padded_frames
from balr.embeddings.architectures import has_global_context, run_network
from balr.embeddings.exact.lengths import BatchLengths, Lengths, Span, kernel_span
from balr.embeddings.exact.masking import LengthsError, MaskedReductions, simam
from balr.embeddings.exact.precision import LARGEST_RELATIVE_DIFFERENCE, noise
from balr.embeddings.exact.verdicts import Verdicts
from balr.embeddings.rows import pad_rows

log = logging.getLogger(__name__)

_PROBE_FRAMES = (136, 57, 96, 136)
_PROBE_FILLING = 30.0
_FRAMES_ALIGNED_ON_A_GPU = 8  # where rows of frames do not begin at multiples of 16 bytes, 1-d convolutions are slow

Rows = Sequence[int]
Layer = Callable[..., torch.Tensor]


def by_group(
    features: Sequence[torch.Tensor], groups: Sequence[Rows], run: Callable[[Sequence[torch.Tensor]], torch.Tensor]
) -> torch.Tensor:
    """Run a function on each group of rows and return all embeddings `(batch, dim)` in the order of the features."""
    embeddings = torch.cat([run([features[row] for row in rows]) for rows in groups])
    order = torch.tensor([row for rows in groups for row in rows])
    return embeddings[order.argsort().to(embeddings.device, non_blocking=True)] if len(groups) > 1 else embeddings


class RaggedNetwork:
    """Run a network on batches of different lengths. Threads may share it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        # ReDimNet2 cuts off the last frames of an utterance down to a multiple of this.
        self._frame_multiple = int(getattr(getattr(network, "backbone", None), "time_stride", 1))
        self._aligned_to = self._frame_multiple
        if any(isinstance(module, nn.Conv1d) and module.weight.is_cuda for module in network.modules()):
            self._aligned_to = math.lcm(self._frame_multiple, _FRAMES_ALIGNED_ON_A_GPU)
        self._thread = threading.local()
        for module in network.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d) and (span := kernel_span(module)) != (1, 1, 0, 0):
                if span[0] > 1:
                    module.register_forward_pre_hook(self._clear_padding)
                module.register_forward_hook(partial(self._learn_lengths, span))
            if (context := has_global_context(module)) is not None:
                method, dim = context
                layer = getattr(module, method)
                setattr(module, method, self._across_time(layer, simam if method == "SimAM" else layer, dim))

    def __call__(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the embeddings `(batch, dim)` of features `(frames, mels)`, each as if it were alone."""
        cut = features if self._frame_multiple == 1 else [self._whole_strides(one) for one in features]
        lengths = tuple(map(len, cut))
        frames = padded_frames(max(lengths)) if len(cut) > 1 else lengths[0]
        frames = -(-frames // self._aligned_to) * self._aligned_to
        if min(lengths) == frames:
            return run_network(self.network, torch.stack(list(cut)))
        return self.run_padded(pad_rows(cut, frames), lengths)

    def run_padded(self, padded: torch.Tensor, lengths: Lengths) -> torch.Tensor:
        """Return the embeddings `(batch, dim)` of padded features `(batch, frames, mels)`; the padding is ignored."""
        self._thread.batch = BatchLengths({padded.shape[1]: lengths}, padded.device)
        try:
            return run_network(self.network, padded)
        finally:
            del self._thread.batch

    def is_exact(self, mels: int, device: torch.device, *, verdicts: Verdicts) -> bool:
        """Return whether a batch of different lengths keeps each embedding, by a trial whose verdict is kept."""
        moved = verdicts.of("ragged", lambda: self.difference_from_alone(mels, device))
        exact: bool = moved < max(LARGEST_RELATIVE_DIFFERENCE[weight.dtype] for weight in self.network.parameters())
        if exact:
            log.info("a batch of different lengths moves embeddings by %.1e", moved)
        else:
            log.warning("a batch of different lengths would move embeddings by %.1e: lengths are not mixed", moved)
        return exact

    def difference_from_alone(self, mels: int, device: torch.device) -> float:
        """Compare a padded batch of noise with its utterances alone.

        Returns the largest relative difference, infinity if lengths could not be followed. The padding is loud but
        finite: fast convolutions mix neighbouring frames and subtract them again, which a NaN would not survive.
        Raises torch's OutOfMemoryError.
        """
        features = [self._whole_strides(noise(1, frames, mels)[0].to(device)) for frames in _PROBE_FRAMES]
        lengths = tuple(map(len, features))
        alone = torch.cat([run_network(self.network, one.unsqueeze(0)) for one in features]).float()
        try:
            together = self.run_padded(pad_rows(features, max(lengths) + 24, filling=_PROBE_FILLING), lengths).float()
        except torch.OutOfMemoryError:  # because of other work: the next batch tries again
            raise
        except (LengthsError, RuntimeError, IndexError) as error:
            log.debug("a ragged batch failed: %s", error)
            return float("inf")
        relative = (together - alone).abs().amax(dim=1) / alone.abs().amax(dim=1)
        return float(relative.max().nan_to_num(float("inf")))

    def _whole_strides(self, features: torch.Tensor) -> torch.Tensor:
        return features[: len(features) // self._frame_multiple * self._frame_multiple]

    @property
    def _batch(self) -> BatchLengths | None:
        return getattr(self._thread, "batch", None)

    def _clear_padding(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Set the padding of a layer's input to zero, in place."""
        if (batch := self._batch) is not None:
            first, padding = batch.padding_at(inputs[0].shape[-1], inputs[0].ndim)
            inputs[0][..., first:].masked_fill_(padding, 0.0)

    def _learn_lengths(self, span: Span, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if (batch := self._batch) is not None:
            batch.follow(inputs[0].shape[-1], output.shape[-1], span)

    def _across_time(self, layer: Layer, masked: Layer, time_dim: int) -> Layer:
        """Make a layer with global context see each utterance of a batch alone."""

        def run(inputs: torch.Tensor, **settings: Any) -> torch.Tensor:
            if (batch := self._batch) is None:
                return layer(inputs, **settings)
            with MaskedReductions(batch.mask_at(inputs.shape[time_dim])):
                return masked(inputs, **settings)

        return run

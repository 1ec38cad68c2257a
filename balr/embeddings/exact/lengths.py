"""The length of each utterance of a padded batch at each layer of a network."""

from dataclasses import dataclass, field

import torch
from torch import nn

from balr.embeddings.exact.masking import LengthsError, Mask

Lengths = tuple[int, ...]
Span = tuple[int, int, int, int]


@dataclass
class BatchLengths:
    """Know the length of each utterance at each layer, by the number of frames that the padded tensor has there.

    `device` is that of the masks that it returns.
    """

    lengths_at: dict[int, Lengths]
    device: torch.device
    paddings: dict[tuple[int, int], tuple[int, torch.Tensor]] = field(default_factory=dict)
    masks: dict[int, Mask] = field(default_factory=dict)
    learned: set[tuple[int, int, Span]] = field(default_factory=set)

    def lengths(self, frames: int) -> Lengths:
        """Return the length of each utterance in a tensor of so many frames. Raises LengthsError."""
        if frames not in self.lengths_at:
            raise LengthsError(f"the lengths in a tensor of {frames} frames are not known")
        return self.lengths_at[frames]

    def follow(self, before: int, after: int, span: Span) -> None:
        """Note what a convolution makes of the lengths in a tensor of `before` frames. Raises LengthsError."""
        if (before, after, span) in self.learned:
            return
        self.learned.add((before, after, span))
        lengths = tuple(_shrunk(length, span) for length in self.lengths(before))
        if self.lengths_at.setdefault(after, lengths) != lengths:
            raise LengthsError(f"two tensors of {after} frames hold utterances of different lengths")

    def padding_at(self, frames: int, ndim: int) -> tuple[int, torch.Tensor]:
        """Return the shortest length, and a mask `(batch, 1, ..., frames)` of the padding from that frame on."""
        if (frames, ndim) not in self.paddings:
            first = min(self.lengths(frames))
            padding = self.mask_at(frames).padding[:, first:]
            self.paddings[frames, ndim] = first, padding.reshape(len(padding), *[1] * (ndim - 2), -1)
        return self.paddings[frames, ndim]

    def mask_at(self, frames: int) -> Mask:
        """Return which frames are padding."""
        if frames not in self.masks:
            counts = torch.tensor(self.lengths(frames)).to(self.device, non_blocking=True)
            self.masks[frames] = Mask(torch.arange(frames, device=self.device) >= counts[:, None], counts.float())
        return self.masks[frames]


def kernel_span(conv: nn.Module) -> Span:
    """Return the frames that a kernel spans, its stride, and the frames padded on the left and on the right."""
    assert isinstance(conv, nn.Conv1d | nn.Conv2d)
    span = (conv.kernel_size[-1] - 1) * conv.dilation[-1] + 1
    if conv.padding == "same":
        return span, conv.stride[-1], (span - 1) // 2, span - 1 - (span - 1) // 2
    padding = 0 if isinstance(conv.padding, str) else int(conv.padding[-1])
    return span, conv.stride[-1], padding, padding


def _shrunk(length: int, span: Span) -> int:
    """Return how many frames a convolution makes of an utterance of `length` frames."""
    kernel, stride, left, right = span
    return (length + left + right - kernel) // stride + 1

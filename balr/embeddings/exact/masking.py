"""Layers with global context in one pass over a padded batch: reductions over time leave out the padding.

WeSpeaker's layers stay as they are; torch's functions give, while they run, what each utterance alone would get. A
layer takes a few kernels, however many lengths a batch holds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class LengthsError(Exception):
    """The lengths of a batch cannot be followed through a network."""


@dataclass(frozen=True)
class Mask:
    """Hold which frames of a batch are padding `(batch, frames)`, and how many of each utterance are not `(batch,)`."""

    padding: torch.Tensor
    counts: torch.Tensor
    shares: dict[Any, torch.Tensor] = field(default_factory=dict)

    def of(self, inputs: torch.Tensor, dim: Any, *, may_append: bool = False) -> torch.Tensor | None:
        """Return the padding `(batch, 1, ..., frames)` of inputs reduced over `dim`, None if these are not frames.

        If one `may_append`, a last frame counts for every utterance: the pooling of xi-vectors appends its prior.
        """
        is_time = dim is None or inputs.ndim - 1 in _dims(inputs, dim)
        appended = inputs.shape[-1] - self.padding.shape[1]
        if not is_time or appended not in (0, int(may_append)):
            return None
        if inputs.shape[0] != len(self.padding) or dim is None:
            shapes = f"{tuple(inputs.shape)} are not those of a batch {tuple(self.padding.shape)}"
            raise LengthsError(f"the frames of a tensor {shapes}")
        padding = functional.pad(self.padding, (0, 1)) if appended else self.padding
        return padding.reshape(len(padding), *[1] * (inputs.ndim - 2), -1)

    def sizes(self, inputs: torch.Tensor, dim: Any, keepdim: bool) -> torch.Tensor:
        """Return how many numbers of each utterance a reduction over `dim` takes, to broadcast with its result."""
        dims = _dims(inputs, dim)
        others = math.prod(inputs.shape[each] for each in dims[:-1])
        counts = self.counts if others == 1 else self.counts * others
        return counts.reshape(-1, *[1] * (inputs.ndim - 1 - (0 if keepdim else len(dims))))


class MaskedReductions(TorchFunctionMode):
    """Make reductions over the last dimension, where that is the frames, see each utterance's own frames only.

    It covers what WeSpeaker's layers use: mean, sum, variance, softmax, average pooling, group normalisation and
    attention. Other functions run as they are.
    """

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self._mask = mask

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, or its masked form if it reduces frames."""
        masked = _MASKED.get(getattr(func, "__name__", ""))
        try:
            result = None if masked is None else masked(self._mask, *args, **(kwargs or {}))
        except TypeError as error:
            raise LengthsError(f"not masked with these arguments: {error}") from error
        return func(*args, **(kwargs or {})) if result is None else result


def simam(inputs: torch.Tensor, lambda_p: float = 1e-4) -> torch.Tensor:
    """Weight `(batch, channels, bins, frames)` by SimAM's energy, which WeSpeaker writes with the size of the tensor.

    Yang et al., "SimAM: A simple, parameter-free attention module" (ICML 2021).
    """
    distance = (inputs - inputs.mean(dim=[2, 3], keepdim=True)).square()
    variance = inputs.var(dim=[2, 3], keepdim=True)
    return inputs * torch.sigmoid(distance / (4 * (variance + lambda_p)) + 0.5)


def _mean(mask: Mask, inputs: torch.Tensor, dim: Any = None, *, keepdim: bool = False) -> torch.Tensor | None:
    padding = mask.of(inputs, dim)
    if padding is None:
        return None
    total = inputs.masked_fill(padding, 0).sum(dim=dim, keepdim=keepdim, dtype=torch.float32)
    return (total / mask.sizes(inputs, dim, keepdim)).to(inputs.dtype)


def _sum(mask: Mask, inputs: torch.Tensor, dim: Any = None, **settings: Any) -> torch.Tensor | None:
    padding = mask.of(inputs, dim, may_append=True)
    return None if padding is None else inputs.masked_fill(padding, 0).sum(dim=dim, **settings)


def _var(mask: Mask, inputs: torch.Tensor, dim: Any = None, *, keepdim: bool = False) -> torch.Tensor | None:
    padding = mask.of(inputs, dim)
    if padding is None:
        return None
    exact = inputs.float()
    mean: Any = _mean(mask, exact, dim, keepdim=True)
    squares: torch.Tensor = (exact - mean).masked_fill_(padding, 0).square_().sum(dim=dim, keepdim=keepdim)
    return (squares / (mask.sizes(inputs, dim, keepdim) - 1)).to(inputs.dtype)


def _softmax(mask: Mask, inputs: torch.Tensor, dim: Any = None, **_: Any) -> torch.Tensor | None:
    padding = mask.of(inputs, dim, may_append=True)
    return None if padding is None else inputs.masked_fill(padding, float("-inf")).softmax(dim=-1)


def _avg_pool1d(mask: Mask, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor | None:
    padding = mask.of(inputs, -1)
    if padding is None:
        return None
    window = (inputs.dtype, *args, *kwargs.items())
    if window not in mask.shares:  # how much of each window is not padding
        share = functional.avg_pool1d((~padding).to(inputs.dtype), *args, **kwargs)
        mask.shares[window] = share.clamp_(min=1e-4)
    return functional.avg_pool1d(inputs.masked_fill(padding, 0), *args, **kwargs) / mask.shares[window]


def _adaptive_avg_pool2d(mask: Mask, inputs: torch.Tensor, output_size: Any) -> torch.Tensor | None:
    return _mean(mask, inputs, (2, 3), keepdim=True) if output_size in (1, (1, 1)) else None


def _group_norm(
    mask: Mask, inputs: torch.Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> torch.Tensor | None:
    if mask.of(inputs, -1) is None:
        return None
    grouped = inputs.float().unflatten(1, (num_groups, -1)).flatten(2, -2)  # (batch, groups, channels, frames)
    mean: Any = _mean(mask, grouped, (2, 3), keepdim=True)
    centred = grouped - mean
    variance: Any = _mean(mask, centred.square(), (2, 3), keepdim=True)
    normal: torch.Tensor = (centred * (variance + eps).rsqrt()).reshape(inputs.shape)
    if weight is not None:
        per_channel = (1, -1, *[1] * (inputs.ndim - 2))
        normal = torch.addcmul(bias.reshape(per_channel).float(), normal, weight.reshape(per_channel).float())
    return normal.to(inputs.dtype)


def _scaled_dot_product_attention(
    mask: Mask, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **settings: Any
) -> torch.Tensor | None:
    padding = mask.of(key.transpose(-1, -2), -1)
    if padding is None:
        return None
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=~padding, **settings)


def _dims(inputs: torch.Tensor, dim: Any) -> list[int]:
    return sorted(each % inputs.ndim for each in (dim if isinstance(dim, tuple | list) else (dim,)))


_BY_NAME = (_mean, _sum, _var, _softmax, _avg_pool1d, _adaptive_avg_pool2d, _group_norm, _scaled_dot_product_attention)
# Each is named after the function of torch whose place it takes.
_MASKED: dict[str, Callable[..., torch.Tensor | None]] = {masked.__name__[1:]: masked for masked in _BY_NAME}

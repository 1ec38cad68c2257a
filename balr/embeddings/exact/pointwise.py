"""Convolutions of one frame or point in oneDNN: on one thread torch gives them to a slower matrix product."""

from functools import partial
from typing import Any

import torch
from torch import nn

from balr.embeddings.exact.replacement import replace_forwards
from balr.embeddings.exact.verdicts import Verdicts

_FEWEST_WEIGHTS_1D = 200_000  # oneDNN prepares a layer for each new length: too much for small ones over frames alone


def run_pointwise_in_onednn(network: nn.Module, example: torch.Tensor, *, verdicts: Verdicts) -> None:
    """Let oneDNN run, in place, the convolutions of kernel size 1 of a network on a CPU, but not small 1-d ones.

    torch itself does so except in fp32 on one thread (`use_mkldnn` in ATen's Convolution.cpp), where current processors
    are faster with it, too. If the embedding of the features `example` `(1, frames, mels)` changes, all is undone.
    """
    if example.device.type == "cpu" and torch.backends.mkldnn.is_available():
        forwards = {module: partial(_convolve, module) for module in network.modules() if _gains(module)}
        replace_forwards("pointwise convolutions in oneDNN", forwards, network, example, verdicts=verdicts)


def _convolve(conv: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Return `(batch, out, ..., frames)` for `(batch, channels, ..., frames)`."""
    if isinstance(conv, nn.Conv2d):
        return torch.mkldnn_convolution(inputs, conv.weight, conv.bias, (0, 0), conv.stride, (1, 1), 1)
    as_2d = inputs.unsqueeze(2), conv.weight.unsqueeze(2)  # (batch, channels, 1, frames), (out, channels, 1, 1)
    return torch.mkldnn_convolution(*as_2d, conv.bias, (0, 0), (1, *conv.stride), (1, 1), 1).squeeze(2)


def _gains(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        return False
    if isinstance(module, nn.Conv1d) and module.weight.numel() < _FEWEST_WEIGHTS_1D:
        return False
    return module.groups == 1 and set(module.kernel_size) == {1} and set(module.padding) == {0}

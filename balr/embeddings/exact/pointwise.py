"""Convolutions of one frame or point in oneDNN: on one thread torch gives them to a slower matrix product."""

import logging

import torch
from torch import nn

from balr.embeddings.exact.precision import LARGEST_RELATIVE_DIFFERENCE, relative_difference
from balr.embeddings.exact.verdicts import Verdicts

log = logging.getLogger(__name__)

_FEWEST_WEIGHTS_1D = 200_000  # oneDNN prepares a layer for each new length: too much for small ones over frames alone


class _PointwiseConv1d(nn.Conv1d):
    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        as_2d = input.unsqueeze(2), weight.unsqueeze(2)  # (batch, channels, 1, frames), (out, channels, 1, 1)
        return torch.mkldnn_convolution(*as_2d, bias, (0, 0), (1, *self.stride), (1, 1), 1).squeeze(2)


class _PointwiseConv2d(nn.Conv2d):
    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.mkldnn_convolution(input, weight, bias, (0, 0), self.stride, (1, 1), 1)


def run_pointwise_in_onednn(network: nn.Module, example: torch.Tensor, *, verdicts: Verdicts) -> None:
    """Let oneDNN run, in place, the convolutions of kernel size 1 of a network on a CPU, but not small 1-d ones.

    torch itself does so except in fp32 on one thread (`use_mkldnn` in ATen's Convolution.cpp), where current processors
    are faster with it, too. If the embedding of the features `example` `(1, frames, mels)` changes, all is undone.
    """
    if example.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    layers = {module: type(module) for module in network.modules() if _gains(module)}
    if not layers:
        return

    def replace() -> None:
        for layer in layers:
            layer.__class__ = _PointwiseConv1d if isinstance(layer, nn.Conv1d) else _PointwiseConv2d

    difference = verdicts.of_change("pointwise", network, example, replace, by=relative_difference)
    log.debug("%d convolutions of kernel size 1 in oneDNN, relative difference %.1e", len(layers), difference)
    if not difference < LARGEST_RELATIVE_DIFFERENCE[torch.float32]:
        log.warning("convolutions of kernel size 1 stay in torch: the output would change by %.1e", difference)
        for layer, original in layers.items():
            layer.__class__ = original


def _gains(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        return False
    if isinstance(module, nn.Conv1d) and module.weight.numel() < _FEWEST_WEIGHTS_1D:
        return False
    return module.groups == 1 and set(module.kernel_size) == {1} and set(module.padding) == {0}

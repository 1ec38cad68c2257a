"""Convolutions on an NVIDIA GPU that torch asks of cuDNN in a way that costs more than the convolutions themselves.

torch adds the bias of a convolution in a kernel of its own, then the shortcut and the ReLU of a residual block in two
more, and each reads and writes the whole tensor. And cuDNN's heuristics choose FFT for wide convolutions in fp32, which
is exact but takes ten times as long as a matrix product.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from balr.embeddings.exact.kernels import exact_kernels
from balr.embeddings.exact.replacement import replace_forwards
from balr.embeddings.exact.verdicts import Verdicts

_WIDEST_IN_FP32 = 128  # channels; wider layers are those for which cuDNN chose FFT
_TRIAL_SHAPE = (16, 10, 88)  # utterances, bins, frames
_CHANNELS_OF_TENSOR_CORES = 8  # they take multiples of it


def fuse_relu(network: nn.Module, example: torch.Tensor, *, dtype: torch.dtype, verdicts: Verdicts) -> None:
    """Compute, in place, the blocks of WeSpeaker's ResNets with cuDNN's fused convolutions.

    It needs batch norms that are folded, and is for a network that will compute in `dtype`. If the embedding of the
    features `example` `(1, frames, mels)` changes, the blocks are left as they were.
    """
    blocks = [block for block in network.modules() if _is_folded_block(block)]
    if dtype == torch.float32:
        blocks = [block for block in blocks if _convolutions(block)[1].out_channels <= _WIDEST_IN_FP32]
    if not blocks:
        return
    stem = network.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)

    # The network's own ReLU after its first convolution changes nothing then.
    relu_of_stem = _relu_of_conv if dtype == torch.float32 else _relu_of_conv_in_tensor_cores
    forwards: dict[Any, Callable[..., torch.Tensor]] = {stem: partial(relu_of_stem, stem)}
    for block in blocks:
        *first, last = _convolutions(block)
        shortcut = next(iter(_convolutions(block.get_submodule("shortcut"))), None)
        forwards |= {conv: partial(_relu_of_conv, conv) for conv in first}
        forwards |= {last: partial(_relu_of_sum, last, shortcut), block: partial(_run, block)}
        if shortcut is not None:
            forwards[shortcut] = partial(_without_bias, shortcut)
    replace_forwards("fused convolutions", forwards, network, example, verdicts=verdicts)


def avoid_fft(network: nn.Module, example: torch.Tensor, *, dtype: torch.dtype, verdicts: Verdicts) -> None:
    """Compute, in place, wide fp32 convolutions as matrix products where a trial shows cuDNN to take far longer.

    If the embedding of the features `example` `(1, frames, mels)` changes, the layers are left as they were.
    """
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d) and _may_take_fft(module)]
    if dtype != torch.float32 or not convs:
        return
    with exact_kernels():
        takes_longer = verdicts.of("fft", partial(_takes_far_longer, convs[0]))
    if takes_longer:
        products = {conv: partial(convolve_by_product, conv) for conv in convs}
        replace_forwards("convolutions as products", products, network, example, verdicts=verdicts)


def _may_take_fft(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return conv.in_channels > _WIDEST_IN_FP32 and shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


@torch.inference_mode()
def _takes_far_longer(conv: nn.Conv2d) -> bool:
    """Return whether cuDNN takes over twice as long as a matrix product."""
    utterances, bins, frames = _TRIAL_SHAPE
    inputs = torch.randn(utterances, conv.in_channels, bins, frames, device=conv.weight.device)

    def seconds(run: Callable[[], torch.Tensor]) -> float:
        taken = []
        for _ in range(4):
            started = time.perf_counter()
            run().flatten()[0].item()  # waits for the GPU
            taken.append(time.perf_counter() - started)
        return min(taken)

    return seconds(lambda: nn.functional.conv2d(inputs, conv.weight, None, 1, 1)) > 2 * seconds(
        lambda: convolve_by_product(conv, inputs)
    )


def convolve_by_product(conv: nn.Conv2d, inputs: torch.Tensor) -> torch.Tensor:
    """Convolve `(batch, channels, bins, frames)` by one matrix product for each utterance."""
    patches = nn.functional.unfold(inputs, (3, 3), padding=1)  # (batch, 9 * channels, bins * frames)
    weight = conv.weight.flatten(1).expand(len(inputs), -1, -1)
    product = torch.bmm(weight, patches) if conv.bias is None else torch.baddbmm(conv.bias[:, None], weight, patches)
    output: torch.Tensor = product.unflatten(2, inputs.shape[2:])
    return output


def _is_folded_block(module: nn.Module) -> bool:
    is_block = type(module).__name__ in ("BasicBlock", "Bottleneck")
    is_folded = not any(isinstance(layer, nn.BatchNorm2d) for layer in module.children())
    return is_block and is_folded and type(module).__module__ == "wespeaker.models.resnet"


def _convolutions(block: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in block.children() if isinstance(layer, nn.Conv2d)]


def _run(block: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Return the output of a residual block for `(batch, channels, bins, frames)`."""
    *first, last = _convolutions(block)
    output = inputs
    for conv in first:
        output = conv(output)
    result: torch.Tensor = last(output, block.shortcut(inputs))
    return result


def _relu_of_conv(conv: nn.Conv2d, inputs: torch.Tensor) -> torch.Tensor:
    geometry: Any = (conv.stride, conv.padding, conv.dilation, 1)
    return torch.cudnn_convolution_relu(inputs, conv.weight, conv.bias, *geometry)


def _relu_of_conv_in_tensor_cores(conv: nn.Conv2d, inputs: torch.Tensor) -> torch.Tensor:
    """Return the ReLU of a convolution of `(batch, 1, bins, frames)`, in channels last.

    With seven channels of zeros beside it, it costs less than in cuDNN's kernel for a single channel, which uses no
    tensor cores and returns a layout that the next layer has to change.
    """
    batch, channels, bins, frames = inputs.shape
    padded = inputs.new_zeros(batch, bins, frames, _CHANNELS_OF_TENSOR_CORES)
    padded[..., :channels] = inputs.movedim(1, -1)
    weight = nn.functional.pad(conv.weight, (0, 0, 0, 0, 0, _CHANNELS_OF_TENSOR_CORES - channels))
    weight = weight.contiguous(memory_format=torch.channels_last)
    geometry: Any = (conv.stride, conv.padding, conv.dilation, 1)
    return torch.cudnn_convolution_relu(padded.movedim(-1, 1), weight, conv.bias, *geometry)


def _relu_of_sum(
    conv: nn.Conv2d, shortcut: nn.Conv2d | None, inputs: torch.Tensor, added: torch.Tensor
) -> torch.Tensor:
    """Return the ReLU of a convolution plus the output of a shortcut, whose bias is added here."""
    bias = conv.bias if shortcut is None or conv.bias is None or shortcut.bias is None else conv.bias + shortcut.bias
    geometry: Any = (conv.stride, conv.padding, conv.dilation, 1)
    return torch.cudnn_convolution_add_relu(inputs, conv.weight, added, 1.0, bias, *geometry)


def _without_bias(conv: nn.Conv2d, inputs: torch.Tensor) -> torch.Tensor:
    return nn.functional.conv2d(inputs, conv.weight, None, conv.stride, conv.padding)

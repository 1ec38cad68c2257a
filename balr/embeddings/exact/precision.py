"""Reduced precision: the layers before the pooling, where nearly all the work is, in 16 bits; the rest in fp32."""

import logging

import torch
from torch import nn

from balr.embeddings.architectures import find_pooling
from balr.errors import ConfigError

log = logging.getLogger(__name__)

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_COSINE = 0.9999
# How far another way to compute the same embedding may move it, by the type that the network computes in.
LARGEST_RELATIVE_DIFFERENCE = {torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
_BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "arm_bf16")


def checked_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of `fp32`, `bf16` or `fp16`. Raises ConfigError if the device does not compute well in it."""
    if precision not in _TYPES:
        raise ConfigError(f"precision={precision}: must be one of {', '.join(_TYPES)}.")
    problem = None
    if precision == "fp32":
        pass
    elif device.type == "cpu" and precision == "fp16":
        problem = "fp16 is for GPUs; processors with bf16 units take bf16"
    elif device.type == "cpu":
        if not any(torch.cpu.get_capabilities().get(unit) for unit in _BF16_UNITS):
            problem = "this processor has no bf16 units (AVX512-BF16 or AMX), and without them bf16 is slower than fp32"
    elif device.type != "cuda":
        problem = f"reduced precision is not supported on {device.type}"
    elif precision == "bf16":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                problem = "this GPU has no bf16 units; use fp16"
    if problem:
        raise ConfigError(f"precision={precision}: {problem}.")
    return _TYPES[precision]


def lower_trunk(network: nn.Module, dtype: torch.dtype) -> None:
    """Convert, in place, the layers before the pooling to 16 bits, but for the statistics of batch norms.

    Raises ConfigError if a network is known not to run like that.
    """
    if dtype == torch.float16 and any(type(module).__name__ == "SimAMBasicBlock" for module in network.modules()):
        raise ConfigError("precision=fp16: SimAM sums squares over all frames and overflows fp16; use bf16 or fp32.")
    pooling = find_pooling(network)
    if pooling is None:
        raise ConfigError(f"precision: {type(network).__name__} has no pooling layer that balr knows; use fp32.")
    modules = list(network.modules())  # WeSpeaker's networks have them in the order in which they run
    kept = {module for part in modules[modules.index(pooling) :] for module in part.modules()}
    for module in modules:
        if module not in kept and not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)
    network.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    pooling.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def noise(batch: int, frames: int, mels: int) -> torch.Tensor:
    """Return random features `(batch, frames, mels)`, the same for each shape."""
    return torch.randn(batch, frames, mels, generator=torch.Generator().manual_seed(frames))


def relative_difference(embeddings: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest difference between two tensors `(batch, dim)` by the largest number of the second."""
    return float((embeddings - reference).abs().max() / reference.abs().max())


def least_cosine(embeddings: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the least cosine between embeddings `(batch, dim)` and their reference, row by row."""
    return float(nn.functional.cosine_similarity(embeddings.float(), reference.float()).min())


def refuse_far(cosine: float, option: str) -> None:
    """Raise ConfigError if the cosine of embeddings in 16 bits to those in fp32 is too low."""
    log.info("16 bits: cosine to fp32 %.6f on noise", cosine)
    if not cosine > LEAST_COSINE:
        raise ConfigError(f"{option}: the cosine of 16-bit embeddings of noise to fp32 is {cosine:.5f}; use fp32.")

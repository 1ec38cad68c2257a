"""Reduced precision: the trunk in 16 bits, where nearly all the work is, pooling and what follows in fp32."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from balr.embeddings.architectures import find_pooling, run_network
from balr.errors import ConfigError

log = logging.getLogger(__name__)

_TYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
)
LEAST_COSINE = 0.9999
_SUMS_SQUARES = "SimAMBasicBlock"
_BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "arm_bf16")


def checked_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type that `fp32`, `bf16` or `fp16` means. Raises ConfigError where the device is not made for it."""
    if precision not in _TYPES:
        raise ConfigError(f"precision={precision}: must be one of {', '.join(_TYPES)}.")
    if precision == "fp32":
        return torch.float32
    lacks = None
    if device.type == "cpu":
        if precision == "fp16":
            lacks = "fp16 is for GPUs; processors with bf16 units take bf16"
        elif not any(torch.cpu.get_capabilities().get(unit) for unit in _BF16_UNITS):
            lacks = "this processor has no bf16 units (AVX512-BF16 or AMX), where bf16 is slower than fp32"
    elif device.type == "cuda":
        with torch.cuda.device(device):
            if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
                lacks = "this GPU has no bf16 units; fp16 is what it takes"
    else:
        lacks = f"reduced precision is not supported on {device.type}"
    if lacks:
        raise ConfigError(f"precision={precision}: {lacks}.")
    return _TYPES[precision]


@contextmanager
def exact_kernels() -> Iterator[None]:
    """Keep tf32 out of convolutions, where torch lets it in: fp32 means fp32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def lower_trunk(network: nn.Module, dtype: torch.dtype, example: torch.Tensor) -> None:
    """Convert, in place, what runs before the pooling; batch norms keep their statistics in fp32.

    Raises ConfigError where a network cannot run that way or its embedding would not stay near that of fp32.
    """
    if dtype == torch.float16 and any(type(module).__name__ == _SUMS_SQUARES for module in network.modules()):
        raise ConfigError("precision=fp16: SimAM sums squares over all time, more than fp16 holds; use bf16 or fp32.")
    pooling = find_pooling(network)
    if pooling is None:
        raise ConfigError(f"precision: the trunk of {type(network).__name__} is not told from its head; use fp32.")
    with torch.inference_mode():
        reference = run_network(network, example)
    kept = {module for part in _head(network, pooling, example) for module in part.modules()}
    for module in network.modules():
        if module not in kept and not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)
    network.register_forward_pre_hook(lambda _, given: (given[0].to(dtype),))
    pooling.register_forward_pre_hook(lambda _, given: (given[0].float(),))
    try:
        with torch.inference_mode():
            lowered = run_network(network, example)
    except RuntimeError as error:
        raise ConfigError(f"precision: {type(network).__name__} does not run in {dtype}: {error}; use fp32.") from error
    refuse_far(lowered, reference, "precision")


def refuse_far(made: torch.Tensor, expected: torch.Tensor, option: str) -> None:
    """Raise ConfigError where embeddings in 16 bits are not near those of fp32, as a checkpoint may have it."""
    cosine = float(nn.functional.cosine_similarity(made.float(), expected.float()).min())
    log.info("16 bits: cosine to fp32 %.6f on noise", cosine)
    if not cosine > LEAST_COSINE:
        raise ConfigError(f"{option}: the cosine of 16-bit embeddings of noise to fp32 is {cosine:.5f}; use fp32.")


def _head(network: nn.Module, pooling: nn.Module, example: torch.Tensor) -> list[nn.Module]:
    """Return the pooling, what runs after it, and a front end, which is a part of a network and runs before all."""
    found = [module for name, module in network.named_children() if name == "frontend"]

    def note(module: nn.Module, _: Any) -> None:
        if module is pooling or pooling in found:
            found.append(module)

    with ExitStack() as hooks, torch.inference_mode():
        for module in network.modules():
            hooks.callback(module.register_forward_pre_hook(note).remove)
        run_network(network, example)
    return found

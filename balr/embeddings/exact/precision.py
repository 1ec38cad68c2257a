"""Reduced precision: the layers before the pooling, where nearly all the work is, in 16 bits; the rest in fp32."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

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


class _ExactKernels:
    """Change settings of the process while any thread is inside; the last one out gives back those of the user."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[Callable[[Any], None], Any]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = [(change, value) for read, change, _ in _settings() for value in _readable(read)]
                for _, change, exact in _settings():
                    change(exact)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for change, value in self._before:
                    change(value)


def _settings() -> list[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """Return how to read and change each setting of torch that makes fp32 less exact, and what keeps it exact."""
    backends: Any = torch.backends
    values: list[tuple[Any, str, Any]] = [(backends.cudnn, "enabled", True), (backends.cudnn, "benchmark", False)]
    values += [(backends.cudnn, "allow_tf32", False)]  # before those that it changes, as the one of matrix products is
    layers = (
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.cuda.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.matmul,
    )
    values += [(each, "fp32_precision", "ieee") for each in layers]
    named = [(partial(getattr, owner, name), partial(setattr, owner, name), value) for owner, name, value in values]
    return [(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"), *named]


def _readable(read: Callable[[], Any]) -> list[Any]:
    """Return the value of a setting, or none where torch refuses because the user set another that contradicts it."""
    try:
        return [read()]
    except RuntimeError:
        return []


_EXACT_KERNELS = _ExactKernels()


@contextmanager
def exact_kernels() -> Iterator[None]:
    """Keep tf32 and bf16 out of fp32, for all threads, whatever the user allows; by default torch allows tf32.

    Autocast is off in the calling thread, which is where torch keeps it.
    """
    with _EXACT_KERNELS, torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


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

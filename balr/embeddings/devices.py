"""The devices of a machine, and the batches, threads and processes that suit each."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from balr.config import DataConfig
from balr.embeddings.exact.kernels import exact_kernels
from balr.errors import ConfigError

_MOST_CONCURRENT = 32
_LARGE_GPU_BYTES = 60e9


@dataclass(frozen=True)
class Loading:
    """Hold how utterances are loaded and batched, with all that a DataConfig may leave open."""

    batch_size: int
    max_batch_seconds: float
    concurrent_batches: int
    num_workers: int
    prefetch_factor: int

    def limited_to(self, todo: int) -> "Loading":
        """Return these settings with no more threads and processes than there are utterances."""
        threads = min(self.concurrent_batches, max(1, todo))
        return replace(self, concurrent_batches=threads, num_workers=min(self.num_workers, todo))

    def planning(self) -> dict[str, Any]:
        """Return what decides the batches, and whether headers are read in processes of their own."""
        isolated = self.num_workers > 0
        return {"batch_size": self.batch_size, "max_batch_seconds": self.max_batch_seconds, "isolated": isolated}


def resolve_loading(config: DataConfig, device: torch.device) -> Loading:
    """Choose what a config leaves open for a device and the number of cores.

    On a CPU: one utterance per batch and as many batches at a time as there are threads (32 at most), which share the
    threads. Larger batches are no faster there, and threads that wait for each other at every layer are slower. On a
    GPU: large batches, two at a time, so that one is prepared while the other is computed.
    """
    if device.type == "cpu":
        threads = torch.get_num_threads()
        concurrent_batches = threads // -(-threads // _MOST_CONCURRENT)
        defaults = Loading(1, 120.0, concurrent_batches, max(1, concurrent_batches // 2), 4)
    else:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        is_cuda = device.type == "cuda"
        memory = torch.cuda.get_device_properties(device).total_memory if is_cuda and torch.cuda.is_available() else 0
        size, seconds = (512, 1200.0) if memory > _LARGE_GPU_BYTES else (256, 600.0)
        defaults = Loading(size, seconds, 2 if is_cuda else 1, min(8, cores), 2)
    chosen = {option.name: getattr(config, option.name) for option in fields(Loading)}
    return replace(defaults, **{name: value for name, value in chosen.items() if value is not None})


def select_device(device: str | torch.device) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `auto` is cuda if available, else cpu.

    Raises ConfigError that names the available devices.
    """
    # device_count() alone counts GPUs whose driver is too old to compute.
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available = ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
    name = str(device)
    if gpus and name in ("auto", "cuda"):
        name = f"cuda:{torch.cuda.current_device()}"  # a thread can only be given a GPU that has a number
    elif name == "auto":
        name = "cpu"
    if name not in available:
        raise ConfigError(f"device={name}: not on this machine, which has {', '.join(available)}.")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return a device as a run's record shows it, with the name of a GPU or the number of threads."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads"


@contextmanager
def shared_threads(concurrent_batches: int, device: torch.device) -> Iterator[None]:
    """Divide torch's threads among the batches computed at a time."""
    threads = torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the weights were copied on another stream
    with (
        torch.cuda.device(device) if device.type == "cuda" else nullcontext(),
        exact_kernels(),
    ):
        try:
            if device.type == "cpu":
                torch.set_num_threads(max(1, threads // concurrent_batches))
            yield
        finally:
            torch.set_num_threads(threads)


def prepare_thread(device: torch.device) -> None:
    """Give the calling thread a CUDA stream of its own, if the device is a GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))

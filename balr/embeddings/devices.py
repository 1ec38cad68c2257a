"""What a machine offers and how a run uses it: devices, threads, processes, sizes of batches."""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from balr.config import DataConfig
from balr.errors import ConfigError

_MOST_CONCURRENT = 8


@dataclass(frozen=True)
class Loading:
    """Fix what a DataConfig leaves to the machine: batches, processes that decode, threads that compute batches."""

    batch_size: int
    max_batch_seconds: float
    concurrent_batches: int
    num_workers: int
    prefetch_factor: int


def resolve_loading(config: DataConfig, device: torch.device) -> Loading:
    """Choose what a config leaves open by the device and the cores there are.

    On a CPU, as many utterances at a time as there are cores (8 at most), each with its share of the threads: batches
    bring nothing there, and threads that wait for one another at each layer lose to threads that do not. On a GPU,
    large batches and two at a time, so that one is being prepared while the other is computed.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if device.type == "cpu":
        threads = torch.get_num_threads()
        threads_each = -(-threads // _MOST_CONCURRENT)
        concurrent_batches = max(1, threads // threads_each)
        usual = Loading(1, 120.0, concurrent_batches, max(1, concurrent_batches // 2), 4)
    else:
        usual = Loading(64, 600.0, 2 if device.type == "cuda" else 1, min(8, cores), 2)
    said = {option.name: getattr(config, option.name) for option in fields(Loading)}
    return replace(usual, **{name: value for name, value in said.items() if value is not None})


def select_device(device: str | torch.device) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` means here; `auto` is cuda where there is one.

    Raises ConfigError that names the devices there are.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or not any(str(chosen) in (name, name.partition(":")[0]) for name in there):
        raise ConfigError(f"device={device}: not on this machine, which has {', '.join(there)}.")
    return chosen


def device_name(device: torch.device) -> str:
    """Return a device as a run record has it, with what it is."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads"


@contextmanager
def shared_threads(concurrent_batches: int, device: torch.device) -> Iterator[None]:
    """Share torch's threads out among those that compute, and keep tf32 off while they do."""
    threads = torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the weights were put there on another stream
    # For all threads, from here on: one that put tf32 back after its batch would let it into the batch of another.
    with _chosen(device), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        try:
            if device.type == "cpu":
                torch.set_num_threads(max(1, threads // concurrent_batches))
            yield
        finally:
            torch.set_num_threads(threads)


def prepare_thread(device: torch.device) -> None:
    """Give the calling thread a CUDA stream of its own on a GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))


def _chosen(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the one that is meant where none is named."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

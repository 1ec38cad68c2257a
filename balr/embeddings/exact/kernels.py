"""fp32 means fp32: what torch may compute less exactly, for speed, is off while balr computes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


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
    values += [(backends.cudnn, "allow_tf32", False)]  # which changes some of the next
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
    """Keep tf32 and bf16 out of fp32 in all threads, even where the user allows them; by default torch allows tf32.

    Autocast is off in the calling thread, which is where torch keeps it.
    """
    with _EXACT_KERNELS, torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield

"""How long the stages of a run take, in seconds added up over threads, so the sum may exceed the wall clock."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageTimer:
    """Add up the seconds of each stage; on a GPU, those of the work on the calling thread's CUDA stream."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._on_gpu: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def timed(self, stage: str, device: torch.device | None = None) -> Iterator[None]:
        """Time a block. One that raises does not count."""
        if device is None or device.type != "cuda":
            started = time.perf_counter()
            yield
            with self._lock:
                self._seconds[stage] += time.perf_counter() - started
            return
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(torch.cuda.current_stream(device))
        yield
        end.record(torch.cuda.current_stream(device))
        with self._lock:
            self._on_gpu.append((stage, start, end))
            self._collect()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage until now."""
        with self._lock:
            for _, _, end in self._on_gpu:
                end.synchronize()
            self._collect()
            return {stage: round(seconds, 3) for stage, seconds in self._seconds.items()}

    def _collect(self) -> None:
        """Add the stages that the GPU has finished."""
        while self._on_gpu and self._on_gpu[0][2].query():
            stage, start, end = self._on_gpu.popleft()
            self._seconds[stage] += start.elapsed_time(end) / 1000

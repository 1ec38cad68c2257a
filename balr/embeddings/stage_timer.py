"""How long the stages of a run take: seconds added up over the threads that compute, so they may exceed the clock's."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageTimer:
    """Add up the seconds of each stage; on a GPU, of what is put on the stream of the calling thread."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._within = threading.local()
        self._on_gpu: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def timed(self, stage: str, device: torch.device | None = None) -> Iterator[None]:
        """Time what is done inside, less what other stages inside take; it counts where it raises nothing."""
        if device is None or device.type != "cuda":
            around, self._within.seconds = getattr(self._within, "seconds", 0.0), 0.0
            started = time.perf_counter()
            try:
                yield
                self._add(stage, time.perf_counter() - started - self._within.seconds)
            finally:
                self._within.seconds = around + time.perf_counter() - started
            return
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        yield
        end.record()
        self._on_gpu.append((stage, start, end))
        self._collect(wait=False)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage until now."""
        self._collect(wait=True)
        with self._lock:
            return {stage: round(seconds, 3) for stage, seconds in self._seconds.items()}

    def _collect(self, *, wait: bool) -> None:
        while self._on_gpu:
            try:
                stage, start, end = self._on_gpu.popleft()
            except IndexError:  # another thread was quicker
                return
            if not (wait or end.query()):
                self._on_gpu.appendleft((stage, start, end))
                return
            end.synchronize()
            self._add(stage, start.elapsed_time(end) / 1000)

    def _add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] += seconds

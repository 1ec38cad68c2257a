"""What a worker process does, and the way of its results to its parent.

They come back as JSON or raw float32, never as pickles: a hostile file may have taken control of the worker.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from balr.errors import UtteranceError
from balr.shutdown import end_with_process

Result = Any  # of a task: a float32 array (samples,), or a value that JSON can hold
Read = Callable[[Any], Result]
Empty = Callable[[int], Any]  # gives an array or tensor (samples,) of float32


def receive(connection: "Connection[Any, Any]", empty: Empty) -> Result | UtteranceError:
    """Receive the result of a task, a waveform `(samples,)` in memory from `empty`.

    Raises EOFError or OSError if the worker is dead.
    """
    kind, value = json.loads(connection.recv_bytes())
    if kind == "error":
        return UtteranceError(value)
    if kind == "value":
        return value
    waveform = empty(value)
    left = np.asarray(waveform).data.cast("B")
    while left:  # straight into place: `Connection.recv_bytes_into` copies everything twice
        received = os.readv(connection.fileno(), [left])
        if not received:
            raise EOFError
        left = left[received:]
    return waveform


def work(read: Read, connection: "Connection[Any, Any]", parent: int | None) -> None:
    """Answer tasks until the parent is gone (None: the process that started this one)."""
    _set_up_process(parent)
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            _answer(connection, read, connection.recv())


def _answer(connection: "Connection[Any, Any]", read: Read, task: Any) -> None:
    """Send the result of a task: a line of JSON, then the samples if it is a waveform `(samples,)`."""
    try:
        result = read(task)
        answer = ["waveform", result.size] if isinstance(result, np.ndarray) else ["value", result]
    except Exception as error:
        answer = ["error", str(error) if isinstance(error, UtteranceError) else f"{type(error).__name__}: {error}"]
    connection.send_bytes(json.dumps(answer).encode())
    if answer[0] == "waveform":
        left = np.ascontiguousarray(result).data.cast("B")
        while left:
            left = left[os.write(connection.fileno(), left) :]


def _set_up_process(parent: int | None) -> None:
    """Ignore signals, end with the parent, and be the first to be killed if memory runs out."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # not those of a progress bar, with its locks
    if sys.__stderr__ is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where libraries complain about every damaged file
    end_with_process(os.getppid() if parent is None else parent, signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    import torch

    torch.set_num_threads(1)

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
from struct import Struct
from typing import Any

import numpy as np

from balr.errors import UtteranceError
from balr.shutdown import end_with_process

Result = Any  # of a task: a float32 array (samples,), or a value that JSON can hold
Read = Callable[[Any], Result]
Empty = Callable[[int], Any]  # gives an array or tensor (samples,) of float32

_HEADER = Struct("<cQ")  # of a result: its kind and how many bytes it has
_WAVEFORM, _VALUE, _ERROR = b"w", b"v", b"e"


def receive(connection: "Connection[Any, Any]", empty: Empty) -> Result | UtteranceError:
    """Receive the result of a task, a waveform `(samples,)` in memory from `empty`.

    Raises EOFError or OSError if the worker is dead.
    """
    kind, size = _HEADER.unpack(_read_into(connection, bytearray(_HEADER.size)))
    if kind == _WAVEFORM:
        waveform = empty(size // 4)
        _read_into(connection, np.asarray(waveform).data.cast("B"))
        return waveform
    value = json.loads(bytes(_read_into(connection, bytearray(size))))
    return UtteranceError(value) if kind == _ERROR else value


def _read_into(connection: "Connection[Any, Any]", memory: Any) -> Any:
    """Fill memory straight from a pipe: `Connection.recv_bytes_into` copies everything twice."""
    left = memoryview(memory)
    while left:
        received = os.readv(connection.fileno(), [left])
        if not received:
            raise EOFError
        left = left[received:]
    return memory


def work(read: Read, connection: "Connection[Any, Any]", parent: int | None) -> None:
    """Answer tasks until the parent is gone (None: the process that started this one)."""
    _set_up_process(parent)
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            _answer(connection, read, connection.recv())


def _answer(connection: "Connection[Any, Any]", read: Read, task: Any) -> None:
    """Send the kind and size of a task's result, and with them its samples `(samples,)` or JSON."""
    try:
        result, kind = read(task), _VALUE
    except Exception as error:
        result, kind = str(error) if isinstance(error, UtteranceError) else f"{type(error).__name__}: {error}", _ERROR
    if isinstance(result, np.ndarray):
        payload, kind = np.ascontiguousarray(result).data.cast("B"), _WAVEFORM
    else:
        payload = memoryview(json.dumps(result).encode())
    written = os.writev(connection.fileno(), [_HEADER.pack(kind, len(payload)), payload]) - _HEADER.size
    while len(payload) > written:
        payload = payload[max(0, written) :]
        written = os.write(connection.fileno(), payload)


def _set_up_process(parent: int | None) -> None:
    """Ignore signals, end with the parent, and be the first to be killed if memory runs out."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # not those of a progress bar, with its locks
    if sys.__stderr__ is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where libraries complain about every damaged file
    end_with_process(os.getppid() if parent is None else parent, signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    import torch

    torch.set_num_threads(1)

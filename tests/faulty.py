"""What processes of a decoder pool do in tests: importable, so that processes of a fork server find it, too."""

import faulthandler
import multiprocessing
import os
import time
from typing import Any

import numpy as np

from balr.errors import UtteranceError


def read(task: tuple[str, Any]) -> object:
    """Give a waveform of so many samples, or do what is told."""
    what, number = task
    faulthandler.disable()  # pytest's
    if what == "signal":
        os.kill(os.getpid(), number)
        time.sleep(60)
    if what == "exit":
        os._exit(number)
    if what == "sleep":
        time.sleep(number)
    if what == "rubbish":
        multiprocessing.current_process()._args[1].send_bytes(b"rubbish" * 10)  # type: ignore[attr-defined]
    if what == "bad":
        raise UtteranceError("bad audio")
    if what == "broken":
        raise KeyError(number)
    if what == "memory":
        raise MemoryError
    return [number, None] if what == "value" else np.full(number, number, np.float32)

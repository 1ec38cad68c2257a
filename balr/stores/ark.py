"""One embedding of a Kaldi archive, written and read. kaldiio would run what a place that ends with a pipe names."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from balr.records import Embedding

HEADER_BYTES = 10  # of a vector of floats: \0B, `FV `, and the number of them as an int32 and its size
_MAGIC = b"\0BFV \x04"
_LARGEST_DIM = 1 << 18


def key_of(id_: str) -> bytes:
    """Return what an entry begins with: its id, whose bytes need not be UTF-8, and a space."""
    return f"{id_} ".encode(errors="surrogateescape")


def encode_entry(id_: str, embedding: Embedding) -> bytes:
    """Return the entry of an embedding `(dim,)`."""
    return key_of(id_) + _MAGIC + len(embedding).to_bytes(4, "little") + embedding.tobytes()


def is_in_ark(place: str | Path) -> bool:
    """Return whether a place is one in an archive, such as `xvector.ark:27`."""
    name, _, offset = os.path.basename(place).rpartition(":")
    return name.endswith(".ark") and offset.isdecimal()


def read_ark(place: str | Path, *, id_: str = "") -> npt.NDArray[Any]:
    """Read the embedding `(dim,)` float32 at a place in an archive, of an utterance where its id is given.

    Raises OSError or ValueError.
    """
    name, _, offset = str(place).rpartition(":")
    key = key_of(id_) if id_ else b""
    with open(name, "rb") as file:
        file.seek(max(0, int(offset) - len(key)))
        if file.read(len(key)) != key:
            raise ValueError("the archive holds another utterance there")
        head = file.read(HEADER_BYTES)
        dim = int.from_bytes(head[len(_MAGIC) :], "little")
        if not head.startswith(_MAGIC) or not 0 < dim <= _LARGEST_DIM:
            raise ValueError("no vector of floats begins there")
        content = file.read(4 * dim)
    if len(content) < 4 * dim:
        raise ValueError("truncated")
    return np.frombuffer(content, np.float32)

"""Embeddings as files: `.npy` and `.txt` are written and read, `.pkl` of the earlier BA-LR toolkit only read."""

import io
import pickle
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from balr.errors import InputError, OutputError, one_line
from balr.records import Embedding
from balr.stores.ark import is_in_ark, read_ark

_LARGEST_BYTES = 1 << 20  # a hundred times what an embedding has; the rest of such a file is not read
_NPY_HEADER_BYTES = 128  # of an embedding: version 1, padded to a multiple of 64 bytes
SUFFIXES = (".npy", ".txt", ".pkl")

# All that a pickled numpy array refers to, by the names of numpy 1 and 2.
_ARRAY_PARTS = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
        ("_codecs", "encode"),
    }
)


def encode(embedding: Embedding, suffix: str) -> bytes:
    """Return the content of a `.npy` or `.txt` file for an embedding `(dim,)`."""
    content = io.BytesIO()
    if suffix == ".npy":
        np.save(content, embedding, allow_pickle=False)
    elif suffix == ".txt":
        np.savetxt(content, embedding, fmt="%.9g")  # nine digits give every float32 back
    else:
        raise OutputError(f"{suffix}: embeddings are written as .npy or .txt only.")
    return content.getvalue()


def checksum(content: bytes) -> str:
    """Return the CRC-32 of a file's content, in hexadecimal."""
    return f"{zlib.crc32(content):08x}"


def read_content(path: str | Path) -> bytes:
    """Read a file of the size of an embedding. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return file.read(_LARGEST_BYTES)


def decode(content: bytes, suffix: str) -> npt.NDArray[Any]:
    """Return the embedding `(dim,)` of a file whose checksum is that of what a run wrote."""
    if suffix == ".npy":  # faster than numpy, which parses each header anew
        return np.frombuffer(content, np.float32, offset=_NPY_HEADER_BYTES)
    return np.array(content.split(), np.float32)


def read_usable(path: Path) -> Embedding:
    """Read an embedding `(dim,)` that no list vouches for, as float32. Raises InputError."""
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused below
        embedding = read_embedding(path).astype(np.float32)
    if not np.isfinite(embedding).all() or not embedding.any():
        raise InputError(f"{path}: numbers that are not finite, or all zeros.")
    return embedding


def read_embedding(path: Path) -> npt.NDArray[Any]:
    """Read an embedding `(dim,)` from `.npy`, `.txt` or `.pkl`, or from a place in a Kaldi archive or parquet part.

    Raises InputError; runs no code from the file.
    """
    try:
        embedding = _read(path)
    except Exception as error:  # headers are parsed as Python, pickles may call anything: both fail in many ways
        raise InputError(f"{path}: not an embedding: {one_line(error)[:200]}.") from error
    if not (
        isinstance(embedding, np.ndarray) and embedding.ndim == 1 and embedding.size and embedding.dtype.kind in "fiu"
    ):
        raise InputError(f"{path}: not an embedding: one row of numbers is expected.")
    return embedding


def _read(path: Path) -> Any:
    if is_in_ark(path):
        return read_ark(path)
    if path.parent.suffix in (".parquet", ".arrows"):
        from balr.stores.parquet_parts import read_in_part

        return read_in_part(path)
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".txt":
        with warnings.catch_warnings():  # of an empty file, which the caller refuses
            warnings.simplefilter("ignore")
            return np.loadtxt(path, dtype=np.float32, ndmin=1)
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            return _ArrayUnpickler(file).load()
    raise ValueError(f"unknown kind of file, expected one of {', '.join(SUFFIXES)}")


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle numpy arrays and nothing else: a pickle may name any function to call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no array needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)

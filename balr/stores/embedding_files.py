"""Embeddings as files: `.npy` and `.txt` are written and read, `.pkl` of the earlier BA-LR toolkit only read."""

import io
import os
import pickle
import stat
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from balr.atomic import write_together
from balr.errors import InputError, OutputError, one_line

Vector = npt.NDArray[np.float32]

MISSING = "missing"
_LARGEST_BYTES = 1 << 20  # a hundred times what a vector has; the rest of such a file is not read
_NPY_HEADER_BYTES = 128  # of a vector: version 1, padded to a multiple of 64 bytes
VECTOR_SUFFIXES = (".npy", ".txt", ".pkl")

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


def write_vector(path: Path, vector: Vector) -> None:
    """Write an embedding `(dim,)` as `.npy` or `.txt`, whole or not at all. Raises OutputError."""
    (error,) = write_vectors([(path, vector)])
    if error is not None:
        raise error


def write_vectors(vectors: Iterable[tuple[Path, Vector]]) -> list[OutputError | None]:
    """Write embeddings together, each whole or not at all; return for each what kept it from its place."""
    return write_together((path, _content_of(path, vector)) for path, vector in vectors)


def _content_of(path: Path, vector: Vector) -> bytes:
    content = io.BytesIO()
    if path.suffix == ".npy":
        np.save(content, vector, allow_pickle=False)
    elif path.suffix == ".txt":
        np.savetxt(content, vector, fmt="%.9g")  # nine digits give every float32 back
    else:
        raise OutputError(f"{path}: vectors are written as .npy or .txt only.")
    return content.getvalue()


def flaw_of_vector(path: str | Path, *, dim: int | None = None) -> str | None:
    """Say what is wrong with a file that a run wrote or should have written; None: it holds an embedding `(dim,)`."""
    try:
        vector = whole_vector(path)
    except FileNotFoundError:
        return MISSING
    except (OSError, ValueError) as error:
        return one_line(error) if os.path.lexists(path) else MISSING  # a path too long is nowhere
    return None if dim in (None, vector.size) else f"{vector.size} numbers, not {dim}"


def whole_vector(path: str | Path) -> npt.NDArray[Any]:
    """Read an embedding `(dim,)` that a run wrote.

    Raises FileNotFoundError, OSError where it cannot be read, ValueError where what is there is none.
    """
    try:
        content = _content(path)
    except NotADirectoryError as error:
        raise FileNotFoundError(path) from error
    vector = _read_npy(content) if os.fspath(path).endswith(".npy") else _read_text(content)
    if not np.isfinite(vector).all():
        raise ValueError("numbers that are not finite")
    if not vector.any():
        raise ValueError("all zeros")
    return vector


def _content(path: str | Path) -> bytes:
    """Read a file of the size of an embedding. Raises ValueError where it is no file, which might never end."""
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a file")
        return file.read(_LARGEST_BYTES)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_text(content: bytes) -> npt.NDArray[Any]:
    lines = content.decode("ascii").split("\n")
    if lines.pop():  # it ends within its last number, which may be another one then
        raise ValueError("truncated")
    if not lines:
        raise ValueError("no numbers")
    return np.array(lines, np.float32)


def _read_npy(content: bytes) -> npt.NDArray[Any]:
    """Read a float vector `(dim,)`, quicker than numpy, which parses each header anew."""
    dtype, dim, start = _npy_layout(content[:_NPY_HEADER_BYTES])
    if len(content) != start + dim * dtype.itemsize:
        raise ValueError("truncated" if len(content) < start + dim * dtype.itemsize else "longer than its header says")
    return np.frombuffer(content, dtype, offset=start)


@lru_cache(maxsize=64)
def _npy_layout(header: bytes) -> tuple[np.dtype[Any], int, int]:
    file = io.BytesIO(header)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("of another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # it is parsed as Python, which fails in many ways
        raise ValueError("not an embedding that balr wrote") from error
    if len(shape) != 1 or shape[0] == 0 or dtype != np.float32:
        raise ValueError("not one row of float32 numbers")
    return dtype, shape[0], file.tell()


def read_vector(path: Path) -> npt.NDArray[Any]:
    """Read an embedding `(dim,)` from `.npy`, `.txt` or `.pkl`. Raises InputError; runs no code from the file."""
    try:
        vector = _read(path)
    except Exception as error:  # headers are parsed as Python, pickles call what they may: both fail in many ways
        raise InputError(f"{path}: not an embedding: {one_line(error)[:200]}.") from error
    if not (isinstance(vector, np.ndarray) and vector.ndim == 1 and vector.size and vector.dtype.kind in "fiu"):
        raise InputError(f"{path}: not an embedding: one row of numbers is expected.")
    return vector


def _read(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".txt":
        with warnings.catch_warnings():  # of an empty file, which the caller refuses
            warnings.simplefilter("ignore")
            return np.loadtxt(path, dtype=np.float32, ndmin=1)
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            return _ArrayUnpickler(file).load()
    raise ValueError(f"unknown kind of file, expected one of {', '.join(VECTOR_SUFFIXES)}")


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle numpy arrays and nothing else: a pickle may name any function to call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no array needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)

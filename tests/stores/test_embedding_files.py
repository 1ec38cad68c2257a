"""Embeddings on disk: the earlier toolkit's pickles are read, and no pickle can run code."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from balr.errors import InputError, OutputError
from balr.stores.embedding_files import encode, read_embedding


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("old_names", [False, True])
def test_arrays_pickled_by_the_earlier_toolkit_are_read(tmp_path: Path, protocol: int, old_names: bool) -> None:
    embedding = np.arange(5, dtype=np.float32)
    content = pickle.dumps(embedding, protocol=protocol)
    if old_names:  # as numpy 1 wrote them
        content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        content = content.replace(b"\x8c\x16numpy.core", b"\x8c\x15numpy.core")
        content = content.replace(b"numpy._core.numeric", b"numpy.core.numeric")
        content = content.replace(b"\x8c\x13numpy.core.numeric", b"\x8c\x12numpy.core.numeric")
        if protocol >= 4:  # frames carry their length: write the pickle without them
            content = pickle.PROTO + bytes([protocol]) + content[11:]
    (tmp_path / "v.pkl").write_bytes(content)
    assert np.array_equal(read_embedding(tmp_path / "v.pkl"), embedding)


class _Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch run",)


@pytest.mark.parametrize("inside_an_array", [False, True])
def test_a_pickle_that_calls_a_function_is_refused_and_does_nothing(tmp_path: Path, inside_an_array: bool) -> None:
    content = np.array([_Malicious()], dtype=object) if inside_an_array else _Malicious()
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="which no array needs"):
        read_embedding(tmp_path / "v.pkl")
    assert not Path("run").exists()


def test_an_npy_of_python_objects_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([_Malicious()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not an embedding"):
        read_embedding(tmp_path / "v.npy")
    assert not Path("run").exists()


@pytest.mark.parametrize("name", ["v.npy", "v.txt", "v.pkl"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"some words", b"\x80\x04"])
def test_a_damaged_embedding_is_one_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name) as error:
        read_embedding(tmp_path / name)
    assert "\n" not in str(error.value)


def test_embeddings_are_not_written_as_pickles() -> None:
    with pytest.raises(OutputError, match=r"\.npy or \.txt only"):
        encode(np.zeros(3, np.float32), ".pkl")

"""A damaged file is never taken for an embedding, whether a list names it or it lies beside the audio."""

import os
from pathlib import Path

import numpy as np
import pytest

from balr.records import Utterance
from balr.stores.base import StoredCorpus
from balr.stores.embedding_files import checksum, encode
from balr.stores.files import FilesStore
from balr.stores.reading import read_listed

WHOLE = np.linspace(-1, 0.123456, 8, dtype=np.float32)


def spoilt(content: bytes) -> dict[str, bytes]:
    finite = np.frombuffer(content, np.float32, offset=128).copy()
    finite[3] = np.nan
    return {
        "empty": b"",
        "half": content[: len(content) // 2],
        "header alone": content[:128],
        "longer": content + b"\0\0\0\0",
        "not finite": content[:128] + finite.tobytes(),
        "all zeros": encode(np.zeros(8, np.float32), ".npy"),
        "text": b"this is no embedding",
        "float64": encode(np.ones(8, np.float64), ".npy"),
        "int32": encode(np.ones(8, np.int32), ".npy"),
    }


def is_taken(path: Path) -> bool:
    """Return whether a file counts as the embedding of the audio beside it."""
    corpus = StoredCorpus(path.parent, [Utterance("a", path.with_name("a.wav"))], path.parent, is_beside_audio=True)
    return FilesStore(corpus, format=path.suffix[1:]).completed() == {"a"}


@pytest.mark.parametrize("kind", spoilt(bytes(128 + 32)))
def test_every_kind_of_damage_is_noticed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a_emb.npy"
    path.write_bytes(encode(WHOLE, ".npy"))
    assert is_taken(path)
    path.write_bytes(spoilt(path.read_bytes())[kind])
    assert not is_taken(path)


@pytest.mark.parametrize("text", ["", "1.5x\n", "0.5\n0.25", "0.5 0.25\n", "0.5\nnan\n", "0\n0\n", "(1,)", "\xff"])
def test_a_damaged_text_is_noticed_too(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a_emb.txt"
    path.write_bytes(encode(WHOLE, ".txt"))
    assert is_taken(path)
    path.write_text(text, encoding="latin-1")
    assert not is_taken(path)


@pytest.mark.parametrize("suffix", [".npy", ".txt"])
def test_no_bit_of_a_listed_file_can_be_another(tmp_path: Path, suffix: str) -> None:
    whole = encode(WHOLE, suffix)
    row = {"id": "a", "audio": "/a.wav", "embedding": f"a_emb{suffix}", "crc32": checksum(whole)}
    (tmp_path / row["embedding"]).write_bytes(whole)
    assert np.array_equal(read_listed(tmp_path, row), WHOLE)
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / row["embedding"]).write_bytes(content)
        with pytest.raises(ValueError, match="its CRC-32 is"):
            read_listed(tmp_path, row)


@pytest.mark.parametrize("suffix", ["npy", "txt"])
def test_what_is_no_file_waits_for_nobody(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a_emb.{suffix}"
    os.mkfifo(path)
    assert not is_taken(path)
    path.unlink()
    path.mkdir()
    assert not is_taken(path)

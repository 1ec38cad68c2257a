"""A damaged file is never read as an embedding."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from balr.stores.embedding_files import decode, encode, read_content


def write(path: Path, embedding: npt.NDArray[np.float32]) -> None:
    path.write_bytes(encode(embedding, path.suffix))


def spoilt(content: bytes) -> dict[str, bytes]:
    finite = np.frombuffer(content, np.float32, offset=128).copy()
    finite[3] = np.nan
    return {
        "empty": b"",
        "half": content[: len(content) // 2],
        "header alone": content[:128],
        "longer": content + b"\0\0\0\0",
        "not finite": content[:128] + finite.tobytes(),
        "text": b"this is no embedding",
    }


def flaw(path: Path) -> str | None:
    try:
        decode(read_content(path), path.suffix)
    except (OSError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", spoilt(bytes(128 + 32)))
def test_every_kind_of_damage_is_a_flaw(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a_emb.npy"
    write(path, np.linspace(-1, 1, 8, dtype=np.float32))
    assert flaw(path) is None
    path.write_bytes(spoilt(path.read_bytes())[kind])
    assert flaw(path) is not None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:9] + "x",
        lambda text: text + "nan\n",
        lambda text: text[:-1],
        lambda text: text[:-3],
    ],
)
def test_a_damaged_text_is_a_flaw_too(tmp_path: Path, damage: Callable[[str], str]) -> None:
    path = tmp_path / "a_emb.txt"
    write(path, np.linspace(-1, 0.123456, 8, dtype=np.float32))
    assert flaw(path) is None
    path.write_text(damage(path.read_text()))
    assert flaw(path) is not None


def test_no_bit_of_a_header_makes_a_file_anything_but_whole_or_broken(tmp_path: Path) -> None:
    path = tmp_path / "a_emb.npy"
    write(path, np.linspace(-1, 1, 8, dtype=np.float32))
    whole = path.read_bytes()
    for bit in range(8 * 128):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(content))
        flaw(path)
    for header in (
        "{'descr': (), 'fortran_order': False, 'shape': (8,)}",
        "{{}: 1}",
        "(" * 90,
        "{'shape': (8,(",
        "\xff",
    ):
        path.write_bytes(whole[:10] + header.encode("latin-1").ljust(118) + whole[128:])
        assert flaw(path) is not None, header


@pytest.mark.parametrize("suffix", ["npy", "txt"])
def test_what_is_no_file_is_a_flaw_and_waits_for_nobody(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"a_emb.{suffix}")
    (tmp_path / f"b_emb.{suffix}").mkdir()
    for name in "ab":
        assert flaw(tmp_path / f"{name}_emb.{suffix}") is not None


def test_numbers_of_another_kind_are_no_embedding_of_a_run(tmp_path: Path) -> None:
    for kind in (np.float64, np.float16, np.int32):
        np.save(tmp_path / "a_emb.npy", np.ones(8, kind))
        assert "float32" in str(flaw(tmp_path / "a_emb.npy"))

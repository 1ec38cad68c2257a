"""An embedding that is there but broken counts as missing, is told of and made again; leftovers are cleared away."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, vectors

from balr.stores.embedding_files import flaw_of_vector, write_vector


def spoilt(content: bytes) -> dict[str, bytes]:
    finite = np.frombuffer(content, np.float32, offset=128).copy()
    finite[3] = np.nan
    return {
        "empty": b"",
        "half": content[: len(content) // 2],
        "header alone": content[:128],
        "longer": content + b"\0\0\0\0",
        "not finite": content[:128] + finite.tobytes(),
        "text": b"this is no vector",
    }


def test_broken_embeddings_are_told_of_and_made_again(
    balr: Command, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    before = vectors(tmp_path / "out")
    paths = sorted((tmp_path / "out").rglob("*_emb.npy"))
    for path, content in zip(paths, spoilt(paths[0].read_bytes()).values(), strict=True):
        path.write_bytes(content)
    capsys.readouterr()
    assert balr(f"input={corpus}", "save_dir=out") == 0
    told = capsys.readouterr().err
    assert told.count("its embedding is made again") == 6
    assert "6 utterances in" in told and "0 already there" in told
    assert vectors(tmp_path / "out") == before
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert "6 already there" in capsys.readouterr().err


@pytest.mark.parametrize("kind", spoilt(bytes(128 + 32)))
def test_every_kind_of_damage_is_a_flaw(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a_emb.npy"
    write_vector(path, np.linspace(-1, 1, 8, dtype=np.float32))
    assert flaw_of_vector(path) is None
    path.write_bytes(spoilt(path.read_bytes())[kind])
    assert flaw_of_vector(path) not in (None, "missing")
    assert flaw_of_vector(tmp_path / "absent_emb.npy") == "missing"


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
def test_a_broken_vector_of_text_is_a_flaw_too(tmp_path: Path, damage: Callable[[str], str]) -> None:
    path = tmp_path / "a_emb.txt"
    write_vector(path, np.linspace(-1, 0.123456, 8, dtype=np.float32))
    assert flaw_of_vector(path, dim=8) is None
    path.write_text(damage(path.read_text()))
    assert flaw_of_vector(path, dim=8) is not None


def test_no_bit_of_a_header_makes_a_file_anything_but_whole_or_broken(tmp_path: Path) -> None:
    path = tmp_path / "a_emb.npy"
    write_vector(path, np.linspace(-1, 1, 8, dtype=np.float32))
    whole = path.read_bytes()
    for bit in range(8 * 128):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(content))
        flaw_of_vector(path, dim=8)
    for header in (
        "{'descr': (), 'fortran_order': False, 'shape': (8,)}",
        "{{}: 1}",
        "(" * 90,
        "{'shape': (8,(",
        "\xff",
    ):
        path.write_bytes(whole[:10] + header.encode("latin-1").ljust(118) + whole[128:])
        assert flaw_of_vector(path, dim=8) not in (None, "missing"), header


@pytest.mark.parametrize("suffix", ["npy", "txt"])
def test_what_is_no_file_is_a_flaw_and_waits_for_nobody(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"a_emb.{suffix}")
    (tmp_path / f"b_emb.{suffix}").mkdir()
    for name in "ab":
        assert flaw_of_vector(tmp_path / f"{name}_emb.{suffix}") not in (None, "missing")


def test_numbers_of_another_kind_are_no_embedding_of_a_run(tmp_path: Path) -> None:
    for kind in (np.float64, np.float16, np.int32):
        np.save(tmp_path / "a_emb.npy", np.ones(8, kind))
        assert "float32" in str(flaw_of_vector(tmp_path / "a_emb.npy"))


def test_what_a_killed_run_left_half_written_is_cleared_away_and_nothing_else(
    balr: Command, corpus: Path, tmp_path: Path
) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    ours = tmp_path / "out" / "spk0" / f".{'0123456789abcdef' * 2}.tmp"
    theirs = [tmp_path / "out" / name for name in (".notes.tmp", "a.tmp", ".0123.tmp")]
    for path in (ours, *theirs):
        path.write_bytes(b"half")
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert not ours.exists() and all(path.exists() for path in theirs)

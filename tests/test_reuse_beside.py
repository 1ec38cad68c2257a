"""Embeddings of an earlier toolkit beside the audio count as done where asked, whatever their kind; bad ones do not."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, rows, run_command

from balr.stores.reading import load_embeddings


def write_beside(audio: Path, embedding: np.ndarray, suffix: str) -> Path:
    path = audio.with_name(f"{audio.stem}_emb{suffix}")
    if suffix == ".npy":
        np.save(path, embedding)
    elif suffix == ".txt":
        np.savetxt(path, embedding)
    else:
        path.write_bytes(pickle.dumps(embedding))
    return path


@pytest.fixture
def dim(balr: Command, corpus: Path) -> int:
    assert balr(f"input={corpus}", "save_dir=plain") == 0
    return load_embeddings("plain")[1].shape[1]


@pytest.mark.parametrize("store", ["files", "parquet", "kaldi"])
def test_what_lies_beside_the_audio_is_taken_over_and_the_rest_embedded(
    balr: Command, corpus: Path, dim: int, store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    audio = sorted(corpus.rglob("*.wav"))
    given = {
        path.relative_to(corpus).as_posix(): np.random.default_rng(number).normal(size=dim).astype(np.float32)
        for number, path in enumerate(audio[:3])
    }
    for path, embedding, suffix in zip(audio, given.values(), (".npy", ".txt", ".pkl"), strict=False):
        write_beside(path, embedding, suffix)
    assert balr(f"input={corpus}", "save_dir=out", f"store={store}", "reuse_beside=true") == 0
    told = capfd.readouterr().err.rpartition("0 already there")[2]
    assert "3 embeddings beside the audio are reused" in told
    assert "embedded       3" in told and "already there  3" in told
    ids, matrix, _ = load_embeddings("out")
    found, plain = dict(zip(ids, matrix, strict=True)), dict(zip(*load_embeddings("plain")[:2], strict=True))
    assert found.keys() == plain.keys()
    for id_, embedding in found.items():
        assert np.allclose(embedding, given.get(id_, plain[id_]), rtol=1e-6)
    assert json.loads(Path("out/run.json").read_text())["runs"][0]["reused_beside"] == 3
    assert run_command("balr", "verify", "out", str(corpus), cwd=Path.cwd()).returncode == 0
    assert balr(f"input={corpus}", "save_dir=out", f"store={store}", "reuse_beside=true") == 0
    assert "already there  6" in capfd.readouterr().err


def test_what_cannot_be_an_embedding_of_the_model_is_embedded(
    balr: Command, corpus: Path, dim: int, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, third, fourth, *_ = sorted(corpus.rglob("*.wav"))
    write_beside(first, np.ones(dim + 1, np.float32), ".npy")
    write_beside(second, np.full(dim, np.nan, np.float32), ".txt")
    third.with_name(f"{third.stem}_emb.pkl").write_bytes(b"cposix\nsystem\n(S'touch pwned'\ntR.")
    fourth.with_name(f"{fourth.stem}_emb.txt").write_text("no numbers")
    assert balr(f"input={corpus}", "save_dir=out", "reuse_beside=true") == 0
    told = capfd.readouterr().err.rpartition("0 already there")[2]
    assert "4 embeddings beside the audio are not reused, first: " in told and "embedded       6" in told
    assert not Path("pwned").exists()
    assert np.array_equal(load_embeddings("out")[1], load_embeddings("plain")[1])


def test_nothing_is_taken_over_unless_asked_or_where_it_has_no_meaning(
    balr: Command, corpus: Path, dim: int, capfd: pytest.CaptureFixture[str]
) -> None:
    write_beside(next(corpus.rglob("*.wav")), np.ones(dim, np.float32), ".npy")
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert "reused" not in capfd.readouterr().err and len(rows(Path("out/metadata.csv"))) == 6
    for other in ("save_dir=null", "force=true", "save_output=false"):
        assert balr(f"input={corpus}", "save_dir=out2", other, "reuse_beside=true") == 2
        assert "reuse_beside=true: takes embeddings over into a save_dir" in capfd.readouterr().err

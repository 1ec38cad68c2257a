"""Embeddings of an earlier toolkit beside the audio count as done where asked, whatever their kind; bad ones do not."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, break_off_after, embeddings, rows, speechlike, write_wav

from balr.data.corpus import Corpus
from balr.records import Utterance
from balr.reuse import reuse_beside
from balr.runs.verify import verify
from balr.shutdown import Stop
from balr.stores.base import StoredCorpus
from balr.stores.files import FilesStore
from balr.stores.reading import load_embeddings

BATCHES = ("data.batch_size=4", "data.max_batch_seconds=60")


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
    assert not verify(Path("out"), Corpus.from_dir(corpus)).findings
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


@pytest.fixture
def given(tmp_path: Path) -> dict[str, np.ndarray]:
    """Write eight utterances of nearly equal length, which share batches, and return what lies beside three of them."""
    for number in range(8):
        write_wav(tmp_path / "alike" / f"{number}.wav", speechlike(1.0 + 0.003 * number, seed=number))
    found = {f"{number}.wav": np.random.default_rng(number).normal(size=32).astype(np.float32) for number in (0, 3, 5)}
    for id_, embedding in found.items():
        write_beside(tmp_path / "alike" / id_, embedding, ".txt")
    return found


def reused_by_runs(folder: str) -> list[int]:
    return [run["reused_beside"] for run in json.loads((Path(folder) / "run.json").read_text())["runs"]]


def test_what_is_taken_over_is_not_computed_again_with_its_neighbours(
    balr: Command, given: dict[str, np.ndarray]
) -> None:
    assert balr("input=alike", "save_dir=out", "store=parquet", "reuse_beside=true", *BATCHES) == 0
    ids, matrix, _ = load_embeddings("out")
    found = dict(zip(ids, matrix, strict=True))
    assert len(found) == 8 and all(np.array_equal(found[id_], embedding) for id_, embedding in given.items())
    assert reused_by_runs("out") == [3]


@pytest.mark.parametrize(("count", "by_runs"), [(2, [2, 1]), (5, [3, 0])])
def test_a_run_that_was_cut_short_ends_with_the_bytes_of_an_undisturbed_one(
    balr: Command, given: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, count: int, by_runs: list[int]
) -> None:
    with monkeypatch.context() as patch:
        break_off_after(patch, count)
        assert balr("input=alike", "save_dir=out", "reuse_beside=true", *BATCHES) == 2
    assert len(rows(Path("out/metadata.csv"))) == count
    assert balr("input=alike", "save_dir=out", "reuse_beside=true", *BATCHES) == 0
    assert balr("input=alike", "save_dir=undisturbed", "reuse_beside=true", *BATCHES) == 0
    assert embeddings(Path("out")) == embeddings(Path("undisturbed"))
    assert all(np.array_equal(np.load(f"out/{id_[0]}_emb.npy"), embedding) for id_, embedding in given.items())
    assert reused_by_runs("out") == by_runs
    counts = [run["counts"] for run in json.loads(Path("out/run.json").read_text())["runs"]]
    assert counts[0]["already_there"] == by_runs[0] and counts[1]["embedded"] + counts[1]["already_there"] == 8
    assert not verify(Path("out"), Corpus.from_dir(Path("alike").absolute())).findings


def test_a_run_that_is_stopped_takes_no_more_over(given: dict[str, np.ndarray], tmp_path: Path) -> None:
    utterances = [Utterance(id_, tmp_path / "alike" / id_) for id_ in given]
    (tmp_path / "out").mkdir()
    store, stop = FilesStore(StoredCorpus(tmp_path / "out", utterances, tmp_path / "alike"), format="npy"), Stop()
    stop.set()
    assert not reuse_beside(utterances, store, embedding_dim=32, stop=stop) and not store.completed()
    assert reuse_beside(utterances, store, embedding_dim=32, stop=Stop()) == store.completed() == given.keys()


def test_a_name_with_no_room_for_a_suffix_and_numbers_too_large_end_no_run(balr: Command, tmp_path: Path) -> None:
    write_wav(tmp_path / "odd" / f"{'a' * 250}.wav", speechlike(1.0))
    write_beside(write_wav(tmp_path / "odd" / "b.wav", speechlike(1.0)), np.full(32, 1e300), ".txt")
    assert balr("input=odd", "save_dir=out", "reuse_beside=true") == 0
    assert len(rows(Path("out/metadata.csv"))) == 2 and reused_by_runs("out") == [0]

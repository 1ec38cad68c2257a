"""`balr export`: any store to any other, with the same numbers, changed only as asked."""

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Command, speechlike, write_wav
from typer.testing import CliRunner

from balr import cli, load_embeddings
from balr.errors import BalrError
from balr.export import export
from balr.main import main
from balr.runs.verify import verify

STORES = ("files", "parquet", "kaldi")


@pytest.fixture(scope="module", params=STORES)
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[Path]:
    """Return what a run left in each of the stores, and check that exports leave it as it is."""
    folder = tmp_path_factory.mktemp(request.param)
    lines = ["id,audio,speaker,age"]
    for n in range(6):
        write_wav(folder / f"utt{n}.wav", speechlike(1.0 + 0.2 * n, seed=n))
        lines.append(f"u{n},utt{n}.wav,s{n % 2},{n}")
    (folder / "list.csv").write_text("\n".join(lines))
    model = [f"embeddings.model.model_dir={tiny_checkpoint}", "data=serial"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["input=list.csv", "save_dir=source", f"store={request.param}", *model]) == 0
    before = contents(folder / "source")
    yield folder / "source"
    assert contents(folder / "source") == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    ids, matrix, _ = load_embeddings(folder)
    return dict(zip(ids, matrix, strict=True))


def same(found: dict[str, npt.NDArray[np.float32]], wanted: dict[str, npt.NDArray[np.float32]]) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[id_], wanted[id_]) for id_ in wanted)


def test_every_store_is_written_and_read_back_bit_for_bit(source: Path, tmp_path: Path) -> None:
    wanted = table(source)
    for to in STORES:
        assert export(source, tmp_path / to, to=to) == 6
        assert same(table(tmp_path / to), wanted)
        _, _, columns = load_embeddings(tmp_path / to)
        assert sorted(columns["age"].to_pylist()) == [str(n) for n in range(6)]
        assert set(columns["speaker"].to_pylist()) == {"s0", "s1"}
        assert not verify(tmp_path / to).findings


def test_npz_and_csv_hold_the_same_numbers(source: Path, tmp_path: Path) -> None:
    wanted = table(source)
    assert export(source, tmp_path / "x.npz", to="npz") == export(source, tmp_path / "x.csv", to="csv") == 6
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        assert same(dict(zip(found["ids"].tolist(), found["data"], strict=True)), wanted)
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert same({row[0]: np.array(row[2:], np.float32) for row in rows}, wanted)


def test_means_norms_and_speakers_are_those_of_numpy(source: Path, tmp_path: Path) -> None:
    wanted = table(source)
    matrix = np.stack([wanted[f"u{n}"] for n in range(6)]).astype(np.float64)
    centred = matrix - matrix.mean(axis=0)
    speakers = np.stack([centred[n::2].mean(axis=0) for n in range(2)])
    speakers /= np.linalg.norm(speakers, axis=1, keepdims=True)
    options = {"mean": "self", "per_speaker": True, "normalize": True}
    for to, out in (("kaldi", "speakers"), ("parquet", "parts")):
        assert export(source, tmp_path / out, to=to, **options) == 2
        found = table(tmp_path / out)
        assert np.allclose(np.stack([found["s0"], found["s1"]]), speakers, rtol=0, atol=1e-5)
    np.save(tmp_path / "mean.npy", matrix.mean(axis=0).astype(np.float32))
    export(source, tmp_path / "centred.npz", to="npz", mean=str(tmp_path / "mean.npy"))
    with np.load(tmp_path / "centred.npz") as found:
        order = np.argsort(found["ids"])
        assert np.allclose(found["data"][order], centred, rtol=0, atol=1e-5)


def test_what_cannot_be_exported_is_one_line(source: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    np.save(tmp_path / "short.npy", np.ones(3, np.float32))
    np.save(tmp_path / "first.npy", table(source)["u0"])
    for options, reason in (
        ({"to": "tar"}, "one of files, parquet, kaldi, npz, csv is expected"),
        ({"to": "files", "per_speaker": True}, "files are named after utterances"),
        ({"to": "npz", "mean": "nowhere.npy"}, "mean=nowhere.npy: no such file"),
        ({"to": "npz", "mean": str(tmp_path / "short.npy")}, "short.npy: 3 numbers, and the embeddings have 32"),
        ({"to": "npz", "mean": str(tmp_path / "first.npy"), "normalize": True}, "so they have no direction: u0"),
    ):
        with pytest.raises(BalrError, match=reason):
            export(source, tmp_path / "new", **options)
    with pytest.raises(BalrError, match="taken: exists"):
        export(source, tmp_path / "taken", to="csv")
    with pytest.raises(BalrError, match="holds no embeddings"):
        export(tmp_path, tmp_path / "new", to="csv")
    assert not (tmp_path / "new").exists()


def test_the_command_says_what_it_wrote(
    source: Path, monkeypatch: pytest.MonkeyPatch, one_error_line: Callable[[], str]
) -> None:
    command = ["export", str(source), "out.csv", "--to", "csv", "--normalize"]
    done = CliRunner().invoke(cli.app, [*command, "l2"])
    assert (done.exit_code, done.output) == (0, "6 embeddings written to out.csv\n")
    monkeypatch.setattr(sys, "argv", ["balr", *command, "l1"])
    assert cli.run_command() == 2 and "l1: l2 is expected" in one_error_line()


def test_embeddings_that_a_list_gives_are_exported_with_those_of_the_run(
    balr: Command, corpus: Path, tmp_path: Path
) -> None:
    np.save(corpus / "given.npy", np.ones(32, np.float32))
    (corpus / "list.csv").write_text("id,audio,embedding\nu0,spk0/utt0.wav,\nu1,,given.npy\n")
    assert balr(f"input={corpus / 'list.csv'}", "save_dir=source") == 0
    wanted = table(tmp_path / "source")
    assert set(wanted) == {"u0", "u1"}
    for to in STORES:
        assert export(tmp_path / "source", tmp_path / to, to=to) == 2
        assert same(table(tmp_path / to), wanted)


def test_a_store_without_embeddings_is_refused_by_every_format(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "metadata.csv").write_text("id,audio,speaker,embedding,crc32\n")
    for to in (*STORES, "npz", "csv"):
        with pytest.raises(BalrError, match="holds no embeddings"):
            export(tmp_path / "source", tmp_path / to, to=to, mean="self")

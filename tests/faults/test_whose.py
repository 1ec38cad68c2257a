"""Whose an embedding is: what no list tells to be of an utterance's audio and of this model never passes for it."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Command, interrupt_at, rows, speechlike, vectors, write_wav

PLANNED = ".balr.planned.csv"
OneLine = Callable[[], str]


@pytest.fixture
def broken_off(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Return a context in which only so many files can be written: what is left is what a kill leaves."""

    @contextmanager
    def at(good_writes: int) -> Iterator[None]:
        written: list[int] = []

        def fsync(file: int) -> None:
            written.append(file)
            if len(written) > good_writes:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            yield

    return at


def corpora(tmp_path: Path) -> tuple[Path, Path]:
    """Return two folders of the same name with files of the same names, which hold other audio."""
    for number in range(4):
        for seed, name in ((0, "vox1"), (10, "vox2")):
            write_wav(tmp_path / name / "wav" / f"{number}.wav", speechlike(1.0 + 0.1 * number, seed=seed + number))
    return tmp_path / "vox1" / "wav", tmp_path / "vox2" / "wav"


def test_what_a_killed_run_made_of_another_corpus_does_not_pass_for_this_one_s(
    balr: Command, tmp_path: Path, broken_off: Callable[..., Iterator[None]], one_error_line: OneLine
) -> None:
    first, second = corpora(tmp_path)
    with broken_off(5):  # run.json, what is planned, lengths, two embeddings
        assert balr(f"input={first}", "save_dir=out") == 2
    one_error_line()
    made = vectors(tmp_path / "out")
    assert len(made) == 2 and not (tmp_path / "out" / "metadata.csv").exists()
    assert balr(f"input={second}", "save_dir=out") == 2
    assert "holds embeddings of another corpus" in one_error_line() and vectors(tmp_path / "out") == made
    assert balr(f"input={second}", "save_dir=out", "force=true") == 2


def test_what_a_killed_run_made_is_not_made_again_also_when_the_list_has_changed(
    balr: Command,
    tmp_path: Path,
    broken_off: Callable[..., Iterator[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, _ = corpora(tmp_path)
    with broken_off(6):
        assert balr(f"input={first}", "save_dir=out") == 2
    made = vectors(tmp_path / "out")
    assert len(made) == 3
    write_wav(first / "new.wav", speechlike(0.7))
    (first / "0.wav").unlink()
    with broken_off(3):
        assert balr(f"input={first}", "save_dir=out") == 2
    capsys.readouterr()
    assert balr(f"input={first}", "save_dir=out") == 0
    assert "4 utterances in" in capsys.readouterr().err
    assert made.items() <= vectors(tmp_path / "out").items()
    assert not (tmp_path / "out" / PLANNED).exists()
    assert (
        len(rows(tmp_path / "out" / "metadata.csv")) == len(vectors(tmp_path / "out")) == 5 - ("0_emb.npy" not in made)
    )


def test_what_a_killed_run_made_outlasts_a_run_of_another_list(
    balr: Command, tmp_path: Path, broken_off: Callable[..., Iterator[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        write_wav(tmp_path / f"{number}.wav", speechlike(1.0 + 0.1 * number, seed=number))
    (tmp_path / "a.csv").write_text("id,audio,note\n0,0.wav,x\n1,1.wav,y\n2,2.wav,z\n")
    (tmp_path / "b.csv").write_text("id,audio\n3,3.wav\n")
    with broken_off(5):
        assert balr("input=a.csv", "save_dir=out") == 2
    made = vectors(tmp_path / "out")
    assert len(made) == 2
    assert balr("input=b.csv", "save_dir=out") == 0
    listed = {row["id"]: row for row in rows(tmp_path / "out" / "metadata.csv")}
    assert listed.keys() == {"3", "2", "1"} and listed["1"]["note"] == "y"
    capsys.readouterr()
    assert balr("input=a.csv", "save_dir=out") == 0
    assert "3 utterances in a.csv, 2 already there" in capsys.readouterr().err


def test_a_name_that_comes_to_mean_another_file_is_made_again(
    balr: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus"
    write_wav(corpus / "x.wav", speechlike(1.0, seed=1))
    assert balr("input=corpus", "save_dir=out") == 0
    write_wav(corpus / "x.flac", speechlike(1.2, seed=2))  # its content tells what it is
    assert balr("input=corpus", "save_dir=out") == 0
    (corpus / "x.wav").unlink()
    capsys.readouterr()
    assert balr("input=corpus", "save_dir=out") == 0
    assert "made again: no list tells that it is of this audio" in capsys.readouterr().err
    assert balr("input=corpus", "save_dir=alone") == 0
    assert vectors(tmp_path / "out")["x_emb.npy"] == vectors(tmp_path / "alone")["x_emb.npy"]


@pytest.mark.parametrize("lost", [["run.json"], ["run.json", "metadata.csv"]])
def test_embeddings_of_nobody_knows_which_model_are_refused(
    balr: Command,
    corpus: Path,
    tmp_path: Path,
    one_error_line: OneLine,
    capsys: pytest.CaptureFixture[str],
    lost: list[str],
) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    before = vectors(tmp_path / "out")
    capsys.readouterr()
    for name in lost:
        (tmp_path / "out" / name).unlink()
    assert balr(f"input={corpus}", "save_dir=out", "embeddings.model.features.window_type=povey") == 2
    assert "no run.json that tells what made them" in one_error_line() and vectors(tmp_path / "out") == before
    assert balr(f"input={corpus}", "save_dir=out", "embeddings.model.features.window_type=povey", "force=true") == 0
    after = vectors(tmp_path / "out")
    assert after.keys() == before.keys() and not set(after.values()) & set(before.values())


def test_a_part_is_not_replaced_where_another_model_was_being_replaced(
    balr: Command,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_error_line: OneLine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = "embeddings.model.features.window_type=povey"
    assert balr(f"input={corpus}", "save_dir=out") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert balr(f"input={corpus}", "save_dir=out", other, "force=true") == 130
    (tmp_path / "part.csv").write_text(f"id,audio\nspk0/utt0.wav,{corpus}/spk0/utt0.wav\n")
    capsys.readouterr()
    assert balr("input=part.csv", f"root_dir={corpus}", "save_dir=out", other, "force=true") == 2
    assert "of another list" in one_error_line()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["replacing"] is True
    assert balr(f"input={corpus}", "save_dir=out", other, "force=true") == 0
    assert balr(f"input={corpus}", "save_dir=alone", other) == 0
    assert vectors(tmp_path / "out") == vectors(tmp_path / "alone")


def test_a_file_of_two_ids_stays_where_one_of_them_was_embedded(
    balr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from balr.data.audio import load_waveform
    from balr.errors import UtteranceError

    write_wav(tmp_path / "a.wav", speechlike(1.0))
    (tmp_path / "list.csv").write_text("id,audio\none,a.wav\ntwo,a.wav\n")
    assert balr("input=list.csv", "save_dir=out") == 0
    loads: list[Path] = []

    def once(path: Path, *arguments: object, **settings: object) -> object:
        loads.append(path)
        if len(loads) > 1:
            raise UtteranceError("gone")
        return load_waveform(path, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("balr.data.decoding.load_waveform", once)
    assert balr("input=list.csv", "save_dir=out", "force=true") == 1
    (listed,) = rows(tmp_path / "out" / "metadata.csv")
    assert (tmp_path / "out" / listed["embedding"]).is_file()
    assert len(rows(tmp_path / "out" / "failures.csv")) == 1


def test_two_ids_of_one_audio_stay_listed_by_two_lists(balr: Command, tmp_path: Path) -> None:
    write_wav(tmp_path / "x.wav", speechlike(1.0))
    for id_ in "ab":
        (tmp_path / f"{id_}.csv").write_text(f"id,audio\n{id_},x.wav\n")
        assert balr(f"input={id_}.csv", "save_dir=out") == 0
    assert [row["id"] for row in rows(tmp_path / "out" / "metadata.csv")] == ["b", "a"]


def test_a_forced_run_without_a_record_that_is_interrupted_mixes_no_models(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "embeddings.model.features.window_type=povey"
    assert balr(f"input={corpus}", "save_dir=out") == 0
    (tmp_path / "out" / "run.json").unlink()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert balr(f"input={corpus}", "save_dir=out", other, "force=true") == 130
    assert balr(f"input={corpus}", "save_dir=out", other) == 0
    assert balr(f"input={corpus}", "save_dir=alone", other) == 0
    assert vectors(tmp_path / "out") == vectors(tmp_path / "alone")


def test_beside_the_audio_a_second_run_goes_on(
    balr: Command, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert balr(f"input={corpus}", "save_dir=null") == 130
    capsys.readouterr()
    assert balr(f"input={corpus}", "save_dir=null") == 0
    assert "3 already there" in capsys.readouterr().err and len(vectors(corpus)) == 6


def test_the_folder_of_another_run_below_is_left_alone(
    balr: Command, corpus: Path, tmp_path: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "embeddings.model.features.window_type=povey"
    assert balr(f"input={corpus / 'spk0'}", "save_dir=out/spk0", other) == 0
    before = vectors(tmp_path / "out" / "spk0")
    capsys.readouterr()
    for force in ("false", "true"):
        assert balr(f"input={corpus}", "save_dir=out", f"force={force}") == 2
        assert "spk0: is the save_dir of another run" in one_error_line()
    assert vectors(tmp_path / "out" / "spk0") == before

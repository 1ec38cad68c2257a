"""One folder holds one corpus, one model and one list of ids; anything else is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import XVECTOR, Command, embeddings, interrupt_at, rows, speechlike, wait_until, write_wav
from typer.testing import CliRunner
from untrained_checkpoint import write_checkpoint

from balr import load_embeddings
from balr.cli import app
from balr.embeddings.wespeaker import WespeakerModel
from balr.main import main
from balr.runs.record import identity

OneLine = Callable[[], str]

_MODEL_NAME = ("embeddings.model.model_name=avg_model.pt",)


def test_two_corpora_do_not_meet_in_one_folder_whether_their_ids_are_the_same_or_not(
    balr: Command, corpus: Path, tmp_path: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        write_wav(tmp_path / "same" / f"spk{number % 2}" / f"utt{number}.wav", speechlike(1.0, seed=99))
    write_wav(tmp_path / "other" / "another.wav", speechlike(1.0, seed=99))
    assert balr(f"input={corpus}", "save_dir=out") == 0
    before = embeddings(tmp_path / "out")
    for folder in ("same", "other"):
        for force in ("force=false", "force=true"):
            capsys.readouterr()
            assert balr(f"input={folder}", "save_dir=out", force) == 2
            assert f"holds embeddings of another corpus, in {corpus}" in one_error_line()
    assert embeddings(tmp_path / "out") == before


def test_the_folder_of_the_corpus_is_no_save_dir(balr: Command, corpus: Path, one_error_line: OneLine) -> None:
    before = sorted(corpus.rglob("*"))
    assert balr(f"input={corpus}", f"save_dir={corpus}") == 2
    assert "is save_dir, too" in one_error_line() and sorted(corpus.rglob("*")) == before
    assert balr(f"input={corpus}", "save_dir=null") == 0


def test_another_model_or_feature_setting_is_refused_in_the_same_folder(
    balr: Command, corpus: Path, tmp_path: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    before = embeddings(tmp_path / "out")
    capsys.readouterr()
    assert balr(f"input={corpus}", "save_dir=out", "embeddings.model.features.window_type=povey") == 2
    assert "features.window_type None there, povey here" in one_error_line()
    assert embeddings(tmp_path / "out") == before
    povey = ("embeddings.model.features.window_type=povey", "force=true")
    assert balr(f"input={corpus}", "save_dir=out", *povey) == 0
    after = embeddings(tmp_path / "out")
    assert all(after[name] != before[name] for name in before)
    assert balr(f"input={corpus}", "save_dir=out", povey[0]) == 0


@pytest.mark.parametrize("store", ["files", "parquet"])
def test_another_channel_of_the_corpus_is_refused_in_the_same_folder(
    balr: Command, corpus: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    for number, path in enumerate(sorted(corpus.rglob("*.wav"))):
        write_wav(path, np.stack([speechlike(0.6, seed=2 * number + side) for side in (0, 1)], axis=1))
    command = [f"input={corpus}", "save_dir=out", f"store={store}"]
    assert balr(*command, "channel=0") == 0
    before = load_embeddings("out")[1]
    capsys.readouterr()
    for channel, shown in (("channel=1", "1"), ("device=cpu", "null")):
        assert balr(*command, channel) == 2
        assert f"holds embeddings of channel=0, and this is channel={shown};" in one_error_line()
    assert np.array_equal(load_embeddings("out")[1], before)
    assert balr(*command, "channel=1", "force=true") == 0
    assert not (load_embeddings("out")[1] == before).all(axis=1).any()


def test_a_corpus_reached_through_a_link_is_the_same_corpus(balr: Command, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(corpus)
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert balr(f"input={tmp_path / 'link'}", "save_dir=out") == 0


def test_a_run_that_cannot_load_its_model_leaves_the_lists_as_they_were(
    balr: Command, corpus: Path, tmp_path: Path
) -> None:
    (corpus / "text.wav").write_text("this is text")
    assert balr(f"input={corpus}", "save_dir=out") == 1
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert balr(f"input={corpus}", "save_dir=out", "device=cuda:99") == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before
    assert balr(f"input={corpus}", "save_dir=new", "device=cuda:99") == 2
    assert not (tmp_path / "new").exists()


def test_a_model_dir_that_was_downloaded_to_is_the_same_model_the_next_time(tmp_path: Path) -> None:
    model = {"model_repo": "me/mine", "revision": None, "model_name": "m.pt", "config_name": "c.yaml"}

    def identity_of(folder: Path) -> object:
        found = identity({**model, "model_dir": str(folder)}, "fp32")
        return found["files"], found["settings"]

    before = identity_of(tmp_path)
    for name in ("m.pt", "c.yaml"):
        (tmp_path / name).write_text(name)
    assert identity_of(tmp_path) != before, "files of unknown origin"
    (tmp_path / ".downloaded-from").write_text("me/mine@main")
    assert identity_of(tmp_path) == before


def test_folders_of_one_name_get_save_dirs_of_their_own(balr: Command, tmp_path: Path) -> None:
    for name in ("A", "D"):
        write_wav(tmp_path / name / "wav" / f"{name}.wav", speechlike(1.0))
        assert balr(f"input={name}/wav") == 0
    found = sorted(path.name for path in (tmp_path / "outputs" / "embeddings").iterdir())
    assert found == ["A-wav", "D-wav"]


def test_other_weights_in_the_same_folder_are_another_model(
    corpus: Path, tmp_path: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"input={corpus}", "save_dir=out", "embeddings.model.model_dir=c", "data=serial", *_MODEL_NAME]
    write_checkpoint(tmp_path / "c", "XVEC", XVECTOR, seed=1)
    assert main(command) == 0
    (tmp_path / "c").rename(tmp_path / "moved")
    capsys.readouterr()
    assert main([*command, f"embeddings.model.model_dir={tmp_path / 'moved'}"]) == 0, "the same weights elsewhere"
    write_checkpoint(tmp_path / "c", "XVEC", XVECTOR, seed=2)
    capsys.readouterr()
    assert main(command) == 2
    assert f"those of {tmp_path}/c, and this model is {tmp_path}/c" in one_error_line()


def test_a_list_of_other_utterances_is_refused_also_with_force(
    balr: Command, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (0, 1):
        (corpus / f"{number}.csv").write_text(f"id,audio\nu{number},spk{number}/utt{number}.wav\n")
    assert balr(f"input={corpus / '0.csv'}", "save_dir=out") == 0
    before = embeddings(tmp_path / "out")
    for force in ("false", "true"):
        capsys.readouterr()
        assert balr(f"input={corpus / '1.csv'}", "save_dir=out", f"force={force}") == 2
        assert "1 embeddings of utterances that this corpus does not list, first 'u0'" in capsys.readouterr().err
    assert embeddings(tmp_path / "out") == before


def test_a_corpus_that_grows_is_completed_and_one_that_shrinks_says_how_to_go_on(
    balr: Command, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    write_wav(corpus / "new.wav", speechlike(1.0))
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert len(rows(tmp_path / "out" / "metadata.csv")) == 7
    (corpus / "new.wav").unlink()
    capsys.readouterr()
    assert balr(f"input={corpus}", "save_dir=out") == 2
    assert "--forget" in capsys.readouterr().err
    CliRunner().invoke(app, ["verify", "out", str(corpus), "--forget"])
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert len(rows(tmp_path / "out" / "metadata.csv")) == 6


def test_lists_are_not_written_over_the_input_or_over_another_csv(
    balr: Command, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = corpus / "metadata.csv"
    listed.write_text(f"id,audio\na,{corpus / 'spk0' / 'utt0.wav'}\n")
    text = listed.read_text()
    assert balr(f"input={listed}", f"save_dir={corpus}", "force=true") == 2
    assert "lies in save_dir, whose lists are overwritten" in capsys.readouterr().err
    for force in ("force=false", "force=true"):
        assert balr(f"input={corpus / 'spk0'}", f"save_dir={corpus}", force) == 2
        assert "was not written by balr" in capsys.readouterr().err
    assert listed.read_text() == text


@pytest.mark.parametrize("is_listed", [True, False])
def test_embeddings_of_an_unknown_model_are_refused_and_unlisted_ones_are_overwritten(
    balr: Command, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_listed: bool
) -> None:
    povey = "embeddings.model.features.window_type=povey"
    assert balr(f"input={corpus}", "save_dir=out") == 0
    before = embeddings(tmp_path / "out")
    (tmp_path / "out" / "run.json").unlink()
    if not is_listed:
        (tmp_path / "out" / "metadata.csv").unlink()
    assert balr(f"input={corpus}", "save_dir=out", povey) == (2 if is_listed else 0)
    if is_listed:
        assert "no run.json that says which model" in capsys.readouterr().err
        assert embeddings(tmp_path / "out") == before
        assert balr(f"input={corpus}", "save_dir=out", povey, "force=true") == 0
    after = embeddings(tmp_path / "out")
    assert after.keys() == before.keys() and not set(after.values()) & set(before.values())


def test_an_id_that_comes_to_mean_another_file_is_embedded_again(balr: Command, tmp_path: Path) -> None:
    for number in (1, 2):
        write_wav(tmp_path / f"{number}.wav", speechlike(1.0, seed=number))
        (tmp_path / "list.csv").write_text(f"id,audio\nx,{number}.wav\n")
        assert balr("input=list.csv", "save_dir=out") == 0
        (listed,) = rows(tmp_path / "out" / "metadata.csv")
        assert listed["embedding"] == f"{number}_emb.npy"


def test_beside_the_audio_a_second_run_goes_on(
    balr: Command, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert balr(f"input={corpus}", "save_dir=null") == 130
    capsys.readouterr()
    assert balr(f"input={corpus}", "save_dir=null") == 0
    assert "3 already there" in capsys.readouterr().err and len(embeddings(corpus)) == 6
    (listed,) = [path for path in Path("outputs").rglob("metadata.csv") if len(rows(path)) == 6]
    assert all(Path(row["embedding"]).is_file() for row in rows(listed))


def test_the_folder_of_another_run_below_is_left_alone(
    balr: Command, corpus: Path, tmp_path: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "embeddings.model.features.window_type=povey"
    assert balr(f"input={corpus / 'spk0'}", "save_dir=out/spk0", other) == 0
    before = embeddings(tmp_path / "out" / "spk0")
    capsys.readouterr()
    for force in ("false", "true"):
        assert balr(f"input={corpus}", "save_dir=out", f"force={force}") == 2
        assert "spk0: is the save_dir of another run" in one_error_line()
    assert embeddings(tmp_path / "out" / "spk0") == before


def test_a_save_dir_that_is_removed_while_a_run_works_ends_it_in_one_line(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, calls = WespeakerModel.embed, []

    def removing(self: WespeakerModel, *arguments: Any, **settings: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 5:
            manifest = tmp_path / "out" / "metadata.csv"
            wait_until(lambda: manifest.exists() and len(rows(manifest)) >= 3)
            shutil.rmtree(tmp_path / "out")
        return whole(self, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(WespeakerModel, "embed", removing)
        assert balr(f"input={corpus}", "save_dir=out") == 2
    told = capsys.readouterr().err
    assert "metadata.csv: cannot be written: No such file or directory. This run saved" in told
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert len(rows(tmp_path / "out" / "metadata.csv")) == 6

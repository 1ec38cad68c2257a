"""One folder holds embeddings of one model, each of the audio it is listed with; all else is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from conftest import TINY, Command, interrupt_at, rows, speechlike, vectors, write_wav
from untrained_checkpoint import write_checkpoint

from balr.main import main
from balr.runs.record import identity

OneLine = Callable[[], str]

_MODEL_NAME = ("embeddings.model.model_name=avg_model.pt",)


def test_two_corpora_with_the_same_ids_do_not_meet_in_one_folder(
    balr: Command, corpus: Path, tmp_path: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other" / "corpus"
    for number in range(6):
        write_wav(other / f"spk{number % 2}" / f"utt{number}.wav", speechlike(1.0, seed=99))
    assert balr(f"input={corpus}", "save_dir=out") == 0
    before = vectors(tmp_path / "out")
    capsys.readouterr()
    assert balr(f"input={other}", "save_dir=out") == 2
    assert "holds embeddings of another corpus" in one_error_line()
    assert vectors(tmp_path / "out") == before


def test_another_model_or_feature_setting_is_refused_in_the_same_folder(
    balr: Command, corpus: Path, tmp_path: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    before = vectors(tmp_path / "out")
    capsys.readouterr()
    assert balr(f"input={corpus}", "save_dir=out", "embeddings.model.features.window_type=povey") == 2
    assert "features.window_type (None there, povey here)" in one_error_line()
    assert vectors(tmp_path / "out") == before
    povey = ("embeddings.model.features.window_type=povey", "force=true")
    assert balr(f"input={corpus}", "save_dir=out", *povey) == 0
    after = vectors(tmp_path / "out")
    assert all(after[name] != before[name] for name in before)
    assert balr(f"input={corpus}", "save_dir=out", povey[0]) == 0


def test_a_folder_whose_embeddings_were_half_replaced_is_refused_until_all_are(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    povey = "embeddings.model.features.window_type=povey"
    assert balr(f"input={corpus}", "save_dir=out") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert balr(f"input={corpus}", "save_dir=out", povey, "force=true") == 130
    for override in (povey, "device=cpu"):
        capsys.readouterr()
        assert balr(f"input={corpus}", "save_dir=out", override) == 2
        assert "was to replace another model's embeddings stopped" in capsys.readouterr().err
    assert balr(f"input={corpus}", "save_dir=out", povey, "force=true") == 0
    assert balr(f"input={corpus}", "save_dir=out", povey) == 0


def test_other_weights_in_the_same_folder_are_another_model(
    corpus: Path, tmp_path: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"input={corpus}", "save_dir=out", "embeddings.model.model_dir=c", "data=serial", *_MODEL_NAME]
    write_checkpoint(tmp_path / "c", "CAMPPlus", TINY, seed=1)
    assert main(command) == 0
    (tmp_path / "c").rename(tmp_path / "moved")
    capsys.readouterr()
    assert main([*command, f"embeddings.model.model_dir={tmp_path / 'moved'}"]) == 0, "the same weights elsewhere"
    write_checkpoint(tmp_path / "c", "CAMPPlus", TINY, seed=2)
    capsys.readouterr()
    assert main(command) == 2
    assert "model_name sha256" in one_error_line()


def test_an_embedding_does_not_pass_for_that_of_a_file_with_the_same_stem(
    balr: Command, corpus: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(corpus / "spk0" / "utt0.flac", speechlike(1.0, seed=50), 16_000)
    assert balr(f"input={corpus}", "save_dir=out", "audio_formats=[wav]") == 0
    capsys.readouterr()
    assert balr(f"input={corpus}", "save_dir=out", "audio_formats=[flac]") == 2
    assert "utt0_emb.npy' is " in one_error_line()


def test_a_corpus_reached_through_a_link_is_the_same_corpus(balr: Command, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(corpus)
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert balr(f"input={tmp_path / 'link'}", "save_dir=out") == 0


def test_a_list_is_not_written_over_the_input_or_over_somebody_else_s(
    balr: Command, corpus: Path, one_error_line: OneLine
) -> None:
    listed = corpus / "metadata.csv"
    listed.write_text(f"id,audio\na,{corpus / 'spk0' / 'utt0.wav'}\n")
    text = listed.read_text()
    assert balr(f"input={listed}", f"save_dir={corpus}", "force=true") == 2
    assert "is the input and would be overwritten" in one_error_line()
    for force in ("force=false", "force=true"):
        assert balr(f"input={corpus / 'spk0'}", f"save_dir={corpus}", force) == 2
        assert "was not written by balr" in one_error_line()
    assert listed.read_text() == text


def test_a_second_list_into_the_same_folder_keeps_the_first_one_listed(
    balr: Command, corpus: Path, tmp_path: Path
) -> None:
    for number in (0, 1):
        (corpus / f"{number}.csv").write_text(f"id,audio,take{number}\nu{number},spk{number}/utt{number}.wav,x\n")
        assert balr(f"input={corpus / f'{number}.csv'}", "save_dir=out") == 0
    listed = {row["id"]: (row["take0"], row["take1"]) for row in rows(tmp_path / "out" / "metadata.csv")}
    assert listed == {"u0": ("x", ""), "u1": ("", "x")}


def test_a_run_that_cannot_load_its_model_leaves_the_lists_as_they_were(
    balr: Command, corpus: Path, tmp_path: Path
) -> None:
    (corpus / "text.wav").write_text("this is text")
    assert balr(f"input={corpus}", "save_dir=out") == 1
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert balr(f"input={corpus}", "save_dir=out", "device=cuda:99") == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before
    assert balr(f"input={corpus}", "save_dir=new", "device=cuda:99") == 2
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".balr.lock"]


def test_force_does_not_leave_two_models_in_one_folder(
    balr: Command, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    povey = ("embeddings.model.features.window_type=povey", "force=true")
    assert balr(f"input={corpus}", "save_dir=out") == 0
    write_wav(tmp_path / "other" / "x.wav", speechlike(1.0))
    assert balr("input=other", "save_dir=out", *povey) == 2
    assert "holds embeddings of another corpus" in capsys.readouterr().err
    (corpus / "bad.wav").write_text("no audio, and first, as nobody knows its length")
    assert balr(f"input={corpus}", "save_dir=out", *povey, "fail_fast=true") == 1
    assert balr(f"input={corpus}", "save_dir=out", povey[0]) == 2
    assert "was to replace another model's embeddings stopped" in capsys.readouterr().err


def test_a_model_dir_that_was_downloaded_to_is_the_same_model_the_next_time(tmp_path: Path) -> None:
    model = {"model_repo": "me/mine", "revision": None, "model_name": "m.pt", "config_name": "c.yaml"}
    before = identity({**model, "model_dir": str(tmp_path)}, "fp32")
    for name in ("m.pt", "c.yaml"):
        (tmp_path / name).write_text(name)
    assert identity({**model, "model_dir": str(tmp_path)}, "fp32") != before, "files of unknown origin"
    (tmp_path / ".downloaded-from").write_text("me/mine@main")
    assert identity({**model, "model_dir": str(tmp_path)}, "fp32") == before


def test_two_corpora_with_other_ids_do_not_meet_in_one_folder_either(
    balr: Command, corpus: Path, tmp_path: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "other" / "another.wav", speechlike(1.0, seed=99))
    assert balr(f"input={corpus}", "save_dir=out") == 0
    for force in ("force=false", "force=true"):
        capsys.readouterr()
        assert balr("input=other", "save_dir=out", force) == 2
        assert f"holds embeddings of another corpus, in {corpus}" in one_error_line()


def test_folders_of_one_name_get_save_dirs_of_their_own(balr: Command, tmp_path: Path) -> None:
    for name in ("A", "D"):
        write_wav(tmp_path / name / "wav" / f"{name}.wav", speechlike(1.0))
        assert balr(f"input={name}/wav") == 0
    found = sorted(path.name for path in (tmp_path / "outputs" / "embeddings").iterdir())
    assert found == ["A-wav", "D-wav"]

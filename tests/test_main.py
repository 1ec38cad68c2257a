"""The whole way through Hydra's door, in this process: runs, resumes, sweeps and every kind of bad input."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import TINY, Command, speechlike, write_wav
from untrained_checkpoint import write_checkpoint

from balr.data.dataset import AudioDataset
from balr.embeddings.wespeaker import WespeakerModel
from balr.main import main

OneLine = Callable[[], str]

_MODEL_NAME = ("embeddings.model.model_name=avg_model.pt",)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def vectors(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*_emb.*"))}


def test_a_run_leaves_every_embedding_and_a_list_that_is_read_back(balr: Command, corpus: Path, tmp_path: Path) -> None:
    (corpus / "list.csv").write_text(
        "id,audio,speaker,age\n" + "".join(f"u{n},spk{n % 2}/utt{n}.wav,s{n % 2},{n}0\n" for n in range(6))
    )
    assert balr(f"input={corpus / 'list.csv'}", "save_dir=out") == 0
    listed = rows(tmp_path / "out" / "metadata.csv")
    assert list(listed[0]) == ["id", "audio", "speaker", "embedding", "age"]
    assert listed[1] == {
        "id": "u1",
        "audio": str(corpus / "spk1" / "utt1.wav"),
        "speaker": "s1",
        "embedding": "spk1/utt1_emb.npy",
        "age": "10",
    }
    again = AudioDataset.from_csv(tmp_path / "out" / "metadata.csv")
    assert [(u.id, u.speaker, u.extra["age"]) for u in again.utterances] == [
        (f"u{n}", f"s{n % 2}", f"{n}0") for n in range(6)
    ]
    first = again[0]
    assert first.embedding is not None and first.embedding.shape == (32,) and np.isfinite(first.embedding).all()
    assert not (tmp_path / "out" / "failures.csv").exists()
    assert not list(corpus.rglob("*_emb*")), "nothing is written into the corpus"


def test_the_same_command_again_does_only_what_is_left(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    whole = vectors(tmp_path / "out")
    (tmp_path / "out" / "spk0" / "utt2_emb.npy").unlink()
    embedded = _count_embedded(monkeypatch)
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert len(embedded) == 1 and vectors(tmp_path / "out") == whole
    monkeypatch.setattr(WespeakerModel, "__init__", _must_not_run)
    assert balr(f"input={corpus}", "save_dir=out") == 0


def test_force_embeds_all_again(balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    np.save(tmp_path / "out" / "spk0" / "utt0_emb.npy", np.zeros(32, np.float32))
    embedded = _count_embedded(monkeypatch)
    assert balr(f"input={corpus}", "save_dir=out", "force=true") == 0
    assert len(embedded) == 6
    assert np.load(tmp_path / "out" / "spk0" / "utt0_emb.npy").any()


def test_an_embedding_beside_the_audio_does_not_count_as_done_elsewhere(
    balr: Command, corpus: Path, tmp_path: Path
) -> None:
    assert balr(f"input={corpus}", "save_dir=null") == 0
    assert (corpus / "spk0" / "utt0_emb.npy").is_file()
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert len(vectors(tmp_path / "out")) == 6


def test_save_output_false_computes_and_writes_nothing(balr: Command, corpus: Path, tmp_path: Path) -> None:
    assert balr(f"input={corpus}", "save_dir=out", "save_output=false") == 0
    assert not (tmp_path / "out").exists() and not vectors(corpus)


def test_vectors_can_be_text(balr: Command, corpus: Path, tmp_path: Path) -> None:
    assert balr(f"input={corpus}", "save_dir=npy") == 0
    assert balr(f"input={corpus}", "save_dir=txt", "vector_format=txt") == 0
    text = AudioDataset.from_csv(tmp_path / "txt" / "metadata.csv")[3].embedding
    assert text is not None and np.array_equal(text, np.load(tmp_path / "npy" / "spk1" / "utt1_emb.npy"))


def test_bad_utterances_are_listed_with_reasons_and_the_rest_is_embedded(
    balr: Command, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = speechlike(1.0)
    whole = (corpus / "spk0" / "utt0.wav").read_bytes()
    bad = {
        "text.wav": "not readable as audio",
        "empty.wav": "empty",
        "cut.wav": "truncated",
        "none.wav": "no samples",
        "short.wav": "too short: 0.010 s, one frame takes 0.025 s",
        "nan.wav": "not numbers",
    }
    (corpus / "text.wav").write_text("this is text")
    (corpus / "empty.wav").write_bytes(b"")
    (corpus / "cut.wav").write_bytes(whole[: len(whole) // 2])
    write_wav(corpus / "none.wav", samples[:0])
    write_wav(corpus / "short.wav", samples[:160])
    write_wav(corpus / "nan.wav", np.where(np.arange(16_000) == 9, np.nan, samples), subtype="FLOAT")
    assert balr(f"input={corpus}", "save_dir=out") == 1
    failures = {row["id"]: row for row in rows(tmp_path / "out" / "failures.csv")}
    assert failures.keys() == bad.keys()
    for name, reason in bad.items():
        assert reason in failures[name]["reason"]
        assert failures[name]["audio"] == str(corpus / name)
        assert failures[name]["stage"] == ("embed" if name == "short.wav" else "decode")
    assert len(rows(tmp_path / "out" / "metadata.csv")) == len(vectors(tmp_path / "out")) == 6
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert [line.split()[-1] for line in printed.splitlines() if line.split()[:1] == ["failed"]] == ["6"]

    for name in bad:
        (corpus / name).unlink()
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert not (tmp_path / "out" / "failures.csv").exists()


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
        _interrupt_at(patch, 3)
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
    assert not list((tmp_path / "new").iterdir())


def test_an_embedding_whose_audio_went_bad_is_gone_after_force(balr: Command, corpus: Path, tmp_path: Path) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    (corpus / "spk0" / "utt0.wav").write_text("this is text now")
    assert balr(f"input={corpus}", "save_dir=out", "force=true") == 1
    assert len(vectors(tmp_path / "out")) == len(rows(tmp_path / "out" / "metadata.csv")) == 5
    assert balr(f"input={corpus}", "save_dir=out") == 1


def test_odd_names_come_back_from_the_list(balr: Command, corpus: Path, tmp_path: Path) -> None:
    odd = ["new\nline.wav", "tab\t.wav", "[b]bold.wav", 'quote".wav', "é.wav", os.fsdecode(b"caf\xe9.wav")]
    for name in odd:
        os.link(corpus / "spk0" / "utt0.wav", corpus / name)
    assert balr(f"input={corpus}", "save_dir='out[v2]'") == 0
    again = AudioDataset.from_csv(tmp_path / "out[v2]" / "metadata.csv")
    assert {u.id for u in again.utterances} >= set(odd)
    assert all(item.embedding is not None for item in again)


def test_interrupting_a_run_saves_its_lists_and_stops_a_sweep(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_error_line: OneLine
) -> None:
    seen = _interrupt_at(monkeypatch, 3)
    assert balr("-m", f"input={corpus}", "embeddings.model.features.window_type=hamming,povey", "save_dir=out") == 130
    assert len(seen) == 3
    (listed,) = (tmp_path / "out").rglob("metadata.csv")
    assert len(rows(listed)) == len(vectors(tmp_path / "out")) == 2
    assert "interrupted; what was embedded until now is saved" in one_error_line()


def test_a_sweep_over_anything_keeps_its_jobs_apart(balr: Command, corpus: Path, tmp_path: Path) -> None:
    for swept in (
        "audio_formats=[wav],[wav,flac]",
        "vector_format=npy,txt",
        "force=true,false",
        "data.prefetch_factor=1,2",
    ):
        folder = swept.partition("=")[0]
        assert balr("-m", f"input={corpus}", swept, f"++save_dir={folder}") == 0
        assert len(list((tmp_path / folder).rglob("metadata.csv"))) == 2, swept


def test_a_sweep_over_corpora_keeps_them_apart(balr: Command, corpus: Path, tmp_path: Path) -> None:
    assert balr("-m", f"input={corpus / 'spk0'},{corpus / 'spk1'}", "save_dir=out", "device=cpu") == 0
    found = {path.parent.parent.name: len(rows(path)) for path in (tmp_path / "out").rglob("metadata.csv")}
    assert found == {"spk0": 3, "spk1": 3}


def test_a_sweep_gives_every_job_its_own_results(balr: Command, corpus: Path, tmp_path: Path) -> None:
    sweep = "embeddings.model.features.window_type=hamming,povey"
    assert balr("-m", f"input={corpus}", sweep, "device=cpu") == 0
    folders = sorted(path.parent for path in (tmp_path / "outputs" / "embeddings").rglob("metadata.csv"))
    assert [("window_type=hamming" in str(f), "window_type=povey" in str(f)) for f in folders] == [
        (True, False),
        (False, True),
    ]
    hamming, povey = (vectors(folder) for folder in folders)
    assert len(hamming) == len(povey) == 6 and all(hamming[name] != povey[name] for name in hamming)
    assert len(list((tmp_path / "outputs" / "sweeps").rglob("balr.log"))) == 2


def test_a_sweep_with_one_save_dir_keeps_its_jobs_apart_below_it(balr: Command, corpus: Path, tmp_path: Path) -> None:
    sweep = "embeddings.model.features.window_type=hamming,povey"
    assert balr("-m", f"input={corpus}", sweep, "save_dir=out") == 0
    assert len(list((tmp_path / "out").rglob("metadata.csv"))) == 2
    assert len(vectors(tmp_path / "out")) == 12


def test_a_failing_job_does_not_stop_the_others_and_the_exit_code_is_one(
    corpus: Path, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nothing").mkdir()
    models = f"embeddings.model.model_dir={tmp_path / 'nothing'},{tiny_checkpoint}"
    code = main(
        ["-m", f"input={corpus}", models, "embeddings.model.model_name=avg_model.pt", "embeddings.model.model_repo=''"]
    )
    assert code == 1
    assert len(vectors(tmp_path / "outputs" / "embeddings")) == 6
    printed = capsys.readouterr().err
    assert "does not hold avg_model.pt and config.yaml" in printed and "Traceback" not in printed


def test_hydra_s_flags_stand_anywhere_among_the_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["input=x", "--cfg", "job", "device=cpu"], ["--cfg", "job", "input=x", "device=cpu"]):
        assert main(argv) == 0
        assert "device: cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("input=nowhere", "nowhere: no such file or folder"),
        ("embeddings/model=resnet34lm", "did you mean resnet34_lm"),
        ("embeddings.model.modelname=x", "embeddings.model.modelname: no such key; did you mean"),
        ("devise=cpu", "devise: no such key; did you mean device?"),
        ("nonsense", "after the one input, KEY=VALUE is expected"),
        ("force=perhaps", "'perhaps' is not a valid bool"),
        ("vector_format=pkl", "must be npy or txt"),
        ("data.num_workers=-1", "data.num_workers=-1: must be a whole number, 0 or more"),
        ("data.prefetch_factor=0", "must be a whole number, 1 or more"),
        ("data.chunk_seconds=0", "data.chunk_seconds=0: must be a number, 1 or more"),
        ("data.num_workers=1.5", "must be a whole number, 0 or more"),
        ("data=null", "ValueError"),
        ("embeddings.model.features.int16_scale=no", "features.int16_scale=no: must be bool"),
        ("embeddings.model.features.sample_rate_hz=16000.5", "must be int over 0"),
        ("+embeddings.model.x=[{_target_:os.mkdir,path:run}]", "not a class of balr"),
        ("+embeddings.model.x=[[{_target_:balr.data.dataset.AudioDataset}]]", "not a class of balr"),
        ("input=" + "x" * 300, "no such file or folder"),
        ("input='~nobody-here/x'", "no such file or folder"),
        ("device=cuda:99", "which has cpu"),
        ("device=gpu", "device=gpu: must be auto, cpu, cuda, cuda:N or mps"),
        ("save_dir=list.csv/out", "cannot be written to: Not a directory"),
        ("save_dir=''", "save_dir is empty"),
        ("embeddings.model.features.window_type=round", "must be one of hamming"),
        ("embeddings.model._target_=os.system", "not a class of balr that fits here (EmbeddingsModel)"),
        ("embeddings.model._target_=balr.main.os.system", "not a class of balr that fits here (EmbeddingsModel)"),
        (
            "embeddings.model._target_=balr.config.FeaturesConfig",
            "not a class of balr that fits here (EmbeddingsModel)",
        ),
        ("embeddings.model.features._target_=subprocess.call", "not a class of balr"),
        ("data._target_=balr.config.RunConfig", "not a class of balr that fits here (DataConfig)"),
        ("+embeddings.model.colour=red", "does not take these settings"),
        ("root_dir=nowhere", "root_dir=nowhere: no such folder"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_two(
    balr: Command, corpus: Path, tmp_path: Path, one_error_line: OneLine, override: str, message: str
) -> None:
    (tmp_path / "list.csv").write_text(f"audio\n{corpus / 'spk0' / 'utt0.wav'}\n")
    assert balr("input=list.csv", override) == 2
    assert message in one_error_line()


def test_all_missing_values_are_listed_at_once(one_error_line: OneLine) -> None:
    assert main(["embeddings.model.model_name=???"]) == 2
    assert "Missing input, embeddings.model.model_name" in one_error_line()


def test_a_csv_path_that_leaves_the_corpus_writes_nothing_outside(
    balr: Command, corpus: Path, tmp_path: Path, one_error_line: OneLine
) -> None:
    write_wav(tmp_path / "x.wav", speechlike(1.0))
    (corpus / "list.csv").write_text("audio\n../x.wav\n")
    assert balr(f"input={corpus / 'list.csv'}", "save_dir=out") == 2
    assert "leads out of the corpus folder" in one_error_line()
    assert balr(f"input={corpus / 'list.csv'}", "save_dir=out", f"root_dir={corpus}/../corpus") == 2
    (corpus / "list.csv").write_text(f"audio\n{tmp_path / 'x.wav'}\n")
    assert balr(f"input={corpus / 'list.csv'}", "save_dir=out") == 0
    assert {path.name for path in tmp_path.rglob("*_emb.npy")} == {"x_emb.npy"}
    assert len(vectors(tmp_path / "out")) == 1


def test_an_unexpected_error_is_one_line_with_its_traceback_in_the_log(
    balr: Command, corpus: Path, one_error_line: OneLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(WespeakerModel, "extract_embeddings", surprise)
    assert balr(f"input={corpus}") == 2
    assert "unexpected ZeroDivisionError: a bug" in one_error_line()
    (log,) = (tmp_path / "outputs" / "runs").rglob("balr.log")
    assert "Traceback" in log.read_text()


def test_the_environment_and_the_arguments_are_left_as_they_were(
    balr: Command, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = dict(os.environ)
    assert balr(f"input={corpus}", "device=cpu") == 0
    assert dict(os.environ) == before


def _count_embedded(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    whole = WespeakerModel.embed

    def counted(self: WespeakerModel, waveforms: list[torch.Tensor], **settings: float) -> torch.Tensor:
        seen.extend(waveforms)
        return whole(self, waveforms, **settings)

    monkeypatch.setattr(WespeakerModel, "embed", counted)
    return seen


def _interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[object]:
    whole, seen = WespeakerModel.embed, []

    def interrupted(self: WespeakerModel, waveforms: list[torch.Tensor], **settings: float) -> torch.Tensor:
        seen.append(waveforms)
        if len(seen) == number:
            raise KeyboardInterrupt
        return whole(self, waveforms, **settings)

    monkeypatch.setattr(WespeakerModel, "embed", interrupted)
    return seen


def _must_not_run(*_: object, **__: object) -> None:
    raise AssertionError("the model is loaded although nothing is left to do")

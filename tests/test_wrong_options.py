"""Whatever is wrong with a command is one line and an exit code, never a traceback."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command, embeddings, speechlike, write_wav

from balr.embeddings.wespeaker import WespeakerModel
from balr.main import main

OneLine = Callable[[], str]


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
        ("data.chunk_seconds=0", "data.chunk_seconds=0.0: must be a number, 1 or more"),
        ("data.max_audio_seconds=null", "data.max_audio_seconds=null: field 'data.max_audio_seconds' is not Optional"),
        ("data.decode_timeout_seconds=0.5", "data.decode_timeout_seconds=0.5: must be a number, 1 or more"),
        ("fail_fast=perhaps", "'perhaps' is not a valid bool"),
        ("data.num_workers=1.5", "data.num_workers=1.5: Value '1.5' of type 'float' could not be converted to Integer"),
        ("data.batch_size=abc", "data.batch_size=abc: Value 'abc' of type 'str' could not be converted to Integer"),
        ("data=null", "data=null: a config is chosen by data=NAME; there are auto, cpu, gpu, serial."),
        ("store.rows=3", "store.rows: no such key; did you mean store?"),
        ("data.batch_size=[1]", "could not be converted to Integer"),
        ("audio_formats=[[wav]]", "must be suffixes"),
        ("embeddings.model.features.int16_scale=3.5", "features.int16_scale=3.5: Value '3.5' is not a valid bool"),
        ("embeddings.model.features.sample_rate_hz=16000.5", "could not be converted to Integer"),
        ("embeddings.model.features.frame_shift_ms=0.001", "frame_shift_ms=0.001: must be a number from 1 to 1,000"),
        ("+embeddings.model.x=[{_target_:os.mkdir,path:run}]", "embeddings.model.x: no such key"),
        ("+data.x=3", "data.x: no such key"),
        ("+x=3", "x: no such key"),
        ("input=" + "x" * 300, "no such file or folder"),
        ("input='~nobody-here/x'", "no such file or folder"),
        ("device=cuda:99", "which has cpu"),
        ("device=gpu", "device=gpu: must be auto, cpu, cuda, cuda:N or mps"),
        ("save_dir=list.csv/out", "cannot be written to: Not a directory"),
        ("save_dir=''", "save_dir=: must be a folder"),
        ("embeddings.model.features.window_type=round", "must be one of hamming"),
        ("embeddings.model._target_=os.system", "not a class of balr that fits here (EmbeddingsModel)"),
        ("embeddings.model._target_=balr.main.os.system", "not a class of balr that fits here (EmbeddingsModel)"),
        (
            "embeddings.model._target_=balr.config.FeaturesConfig",
            "not a class of balr that fits here (EmbeddingsModel)",
        ),
        ("+embeddings.model.features._target_=subprocess.call", "features._target_: no such key"),
        ("data._target_=balr.config.RunConfig", "data._target_: no such key"),
        ("+embeddings.model.colour=red", "embeddings.model.colour: no such key"),
        ("+embeddings.model._partial_=true", "embeddings.model._partial_: no such key"),
        ("root_dir=nowhere", "root_dir=nowhere: no such folder"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_two(
    balr: Command, corpus: Path, tmp_path: Path, one_error_line: OneLine, override: str, message: str
) -> None:
    (tmp_path / "list.csv").write_text(f"audio\n{corpus / 'spk0' / 'utt0.wav'}\n")
    assert balr("input=list.csv", override) == 2
    assert message in one_error_line()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~embeddings.model", "a config is chosen by embeddings/model=NAME; there are campplus, "),
        ("~embeddings.model.model_name", "~embeddings.model.model_name: ModelConfig (DictConfig) does not support del"),
        ("embeddings.model=campplus_lm", "a config is chosen by embeddings/model=NAME; there are campplus, "),
        ("embeddings.model=3", "a config is chosen by embeddings/model=NAME"),
        ("embeddings.model.model_dir=[a,b]", "embeddings.model.model_dir=[a,b]: Cannot convert 'list' to string"),
        ("embeddings.model.model_name=null", "'embeddings.model.model_name' is not Optional"),
        (
            "embeddings.model.features=3",
            "embeddings.model.features=3: Invalid type assigned: int is not a subclass of FeaturesConfig",
        ),
        (
            "embeddings.model.features.frame_length_ms=inf",
            "features.frame_length_ms=inf: must be a number from 1 to 1,000",
        ),
        ("embeddings=campplus_lm", "embeddings: no such key; did you mean embeddings/model "),
        ("embeddings/model=[campplus,resnet34]", "a config is chosen by embeddings/model=NAME; there are campplus"),
        ("data=3", "data=3: a config is chosen by data=NAME"),
        ("hydra.launcher=joblib_cpu", "a config is chosen by hydra/launcher=NAME; there are joblib_cpu, "),
        ("model=campplus_lm", "model: no such key; did you mean embeddings/model?"),
    ],
)
def test_what_describes_no_model_is_refused_before_anything_loads(
    corpus: Path, one_error_line: OneLine, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.setattr("balr.extraction.run", None)
    assert main([f"input={corpus}", override]) == 2
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
    assert len(embeddings(tmp_path / "out")) == 1


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


def test_hydra_s_flags_stand_anywhere_among_the_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["input=x", "--cfg", "job", "device=cpu"], ["--cfg", "job", "input=x", "device=cpu"]):
        assert main(argv) == 0
        assert "device: cpu" in capsys.readouterr().out


def test_the_environment_and_the_arguments_are_left_as_they_were(
    balr: Command, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = dict(os.environ)
    assert balr(f"input={corpus}", "device=cpu") == 0
    assert dict(os.environ) == before


def test_a_wrong_type_is_refused_before_a_configuration_is_shown(one_error_line: OneLine) -> None:
    assert main(["input=x", "data.batch_size=abc", "--cfg", "job"]) == 2
    assert "data.batch_size=abc: Value 'abc' of type 'str' could not be converted to Integer" in one_error_line()


def test_a_flag_that_takes_an_override_for_its_value_says_what_it_takes(one_error_line: OneLine) -> None:
    assert main(["--info", "input=x"]) == 2
    assert "--info/-i: invalid choice: 'input=x' (choose from" in one_error_line()


@pytest.mark.parametrize("argv", [["input=x", "--foo", "device=cpu"], ["--foo", "input=x"], ["-q"]])
def test_a_flag_that_is_none_is_named(one_error_line: OneLine, argv: list[str]) -> None:
    assert main(argv) == 2
    flag = next(word for word in argv if word.startswith("-"))
    assert f"unrecognized arguments: {flag}" in one_error_line()

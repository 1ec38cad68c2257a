"""A folder given by --config-dir is trusted like a Makefile, but a model of it is still a class of balr."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command, rows

from balr.main import main

MODEL = """
embeddings:
  model:
    {_target_: os.system, model_repo: a/b, model_name: x, config_name: y, model_dir: z, revision: null, engine: torch}
"""
COMMAND = "defaults: [_wespeaker, _self_]\nmodel: {_target_: os.system, command: touch MARKER}\n"


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    """Return a folder with two models: one of a class that is not balr's, one that overrides a setting."""
    folder = tmp_path / "conf" / "embeddings" / "model"
    folder.mkdir(parents=True)
    (folder / "foreign.yaml").write_text(f"# @package _global_\n{MODEL}\n")
    command = COMMAND.replace("MARKER", str(tmp_path / "marker"))
    (folder / "command.yaml").write_text(f"# @package embeddings\n{command}")
    mine = "# @package embeddings\ndefaults: [_wespeaker, _self_]\nmodel:\n  features:\n    window_type: povey\n"
    (folder / "mine.yaml").write_text(mine)
    return tmp_path / "conf"


def test_a_model_is_a_class_of_balr(
    corpus: Path, tmp_path: Path, config_dir: Path, one_error_line: Callable[[], str]
) -> None:
    assert main([f"input={corpus}", "--config-dir", str(config_dir), "embeddings/model=foreign"]) == 2
    assert "_target_=os.system: not a class of balr" in one_error_line()
    assert main([f"input={corpus}", "--config-dir", str(config_dir), "embeddings/model=command"]) == 2
    assert "embeddings.model.command: no such key" in one_error_line() and not (tmp_path / "marker").exists()


def test_a_model_of_one_s_own_is_as_good_as_those_that_ship(
    balr: Command, corpus: Path, tmp_path: Path, config_dir: Path
) -> None:
    command = [f"input={corpus}", "--config-dir", str(config_dir), "embeddings/model=mine"]
    assert balr(*command, "save_dir=out") == 0
    assert len(rows(tmp_path / "out" / "metadata.csv")) == 6
    assert balr(*command, "-m", "precision=fp32") == 0


def test_a_folder_may_be_below_one_s_home(
    config_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(config_dir.parent))
    for flag in (["--config-dir=~/conf"], ["--config-dir", "~/conf"]):
        assert main(["input=x", *flag, "embeddings/model=mine", "--cfg", "job"]) == 0
        assert "window_type: povey" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_blamed_itself(one_error_line: Callable[[], str]) -> None:
    assert main(["input=x", "--config-dir", "nope", "embeddings/model=mine"]) == 2
    assert "nope' not found" in one_error_line()


def test_a_run_that_would_be_unpickled_is_refused(one_error_line: Callable[[], str]) -> None:
    assert main(["input=x", "--experimental-rerun", "x.pickle"]) == 2
    assert "unpickles" in one_error_line()

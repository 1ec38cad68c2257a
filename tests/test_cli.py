"""`balr …`: flags become overrides that mean just what was typed."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from typer.testing import CliRunner

from balr import cli
from balr import main as main_module
from balr.config import config_dir
from balr.overrides import to_overrides


def forwarded(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """Return what `balr` hands to the main of Hydra's door."""
    seen: list[str] = []

    def record(argv: list[str]) -> int:
        seen.extend(argv)
        return 0

    monkeypatch.setattr(main_module, "main", record)
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    return seen


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
    | st.text(st.sampled_from("\\'\"${} a"))  # what quoting is about, which hardly comes up among all characters
)
def test_any_path_comes_through_hydra_as_itself(path: str) -> None:
    (override,) = OverridesParser.create().parse_overrides(to_overrides({"input": path}))
    config = OmegaConf.create({"input": override.value()})
    assert config.input == path and isinstance(config.input, str)


@given(st.lists(st.text(st.characters(exclude_characters="\0,", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_list_of_formats_comes_through_hydra_as_itself(formats: list[str]) -> None:
    (override,) = OverridesParser.create().parse_overrides(to_overrides({"audio_formats": formats}))
    assert list(OmegaConf.create({"formats": override.value()}).formats) == formats


def test_only_flags_that_were_given_are_forwarded_and_before_the_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forwarded(monkeypatch, "extract", "a.csv") == ["input='a.csv'"]
    assert forwarded(monkeypatch, "extract", "a.csv", "device=cpu", "--force", "--device", "cuda") == [
        "input='a.csv'",
        "device='cuda'",
        "force=true",
        "device=cpu",
    ]
    assert forwarded(monkeypatch, "extract", "--no-save-output", "--no-force", "a") == [
        "input='a'",
        "force=false",
        "save_output=false",
    ]


def test_flags_stand_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ["input='DATA/metadata.csv'", "device='cuda'", "force=true", "save_dir='D'", "a=1", "b=2"]
    for arguments in (
        ("--force", "--save-dir", "D", "--device", "cuda", "DATA/metadata.csv", "a=1", "b=2"),
        ("DATA/metadata.csv", "a=1", "--force", "--save-dir", "D", "b=2", "--device", "cuda"),
        ("DATA/metadata.csv", "a=1", "b=2", "--device=cuda", "--save-dir=D", "--force"),
    ):
        assert forwarded(monkeypatch, "extract", *arguments) == expected


def test_formats_are_repeated_or_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (
        ("--audio-formats", "wav,flac", "--audio-formats", "mp3"),
        ("--audio-formats", "wav, flac,mp3"),
    ):
        assert "audio_formats=['wav','flac','mp3']" in forwarded(monkeypatch, "extract", "a", *arguments)


def test_hydra_s_own_flags_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("extract", "a", "-m", "device=cpu,cuda:0", "--config-dir", "mine", "--root-dir", "r")
    assert forwarded(monkeypatch, *arguments) == [
        "--multirun",
        "--config-dir",
        "mine",
        "input='a'",
        "root_dir='r'",
        "device=cpu,cuda:0",
    ]
    shown = forwarded(monkeypatch, "extract", "--cfg", "job", "--resolve", "embeddings/model=campplus")
    assert shown == ["--resolve", "--cfg", "job", "embeddings/model=campplus"]


def test_an_existing_file_with_an_equals_sign_is_the_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a=b.csv").touch()
    assert forwarded(monkeypatch, "extract", "a=b.csv") == ["input='a=b.csv'"]
    assert forwarded(monkeypatch, "extract", "a=c.csv") == ["a=c.csv"]


def test_the_exit_code_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module, "main", lambda _: 1)
    assert CliRunner().invoke(cli.app, ["extract", "a"]).exit_code == 1


def test_models_lists_every_shipped_checkpoint_at_80_columns() -> None:
    lines = CliRunner().invoke(cli.app, ["models"]).output.splitlines()
    names = {line.split()[0] for line in lines if not line.startswith(" ")} - {"embeddings/model=", "EER:"}
    assert names - {"normalisation."} == {path.stem for path in (config_dir() / "embeddings/model").glob("[!_]*.yaml")}
    assert all(len(line) < 80 for line in lines)
    assert sum("/wespeaker-" in line for line in lines) == 16 and any("0.80/0.94/1.70" in line for line in lines)


@pytest.mark.parametrize(
    "command", [[], ["extract"], ["verify"], ["evaluate"], ["report"], ["export"], ["download"], ["models"]]
)
def test_help_reads_well_at_80_columns(command: list[str]) -> None:
    output = CliRunner().invoke(cli.app, [*command, "--help"]).output
    assert "Usage: " in output and all(len(line) <= 80 for line in output.splitlines())
    assert "[bold]" not in output and "…" not in output


def test_help_of_the_other_entry_point_fits_80_columns_and_names_every_config(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main_module.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(len(line) <= 80 for line in output.splitlines())
    groups = ("data", "store", "shard", "evaluation", "experiment", "hydra/launcher")
    assert all(path.stem in output for group in groups for path in (config_dir() / group).glob("[!_]*.yaml"))


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("extract recordings --model campplus_lm", "did you mean embeddings/model=VALUE?"),
        ("--model=campplus_lm recordings", "did you mean embeddings/model=VALUE?"),
        ("extract recordings --channel 1", "did you mean channel=VALUE?"),
        ("extract --info", "python -m balr.main --info"),
        ("extract recordings model=campplus_lm", "did you mean embeddings/model?"),
        ("recordings", "did you mean balr extract recordings?"),
        ("recordings/ --force", "did you mean balr extract recordings/ --force?"),
        ("extrakt recordings", "Did you mean 'extract'"),
        ("extract -m recordings other", "did you mean -m input=recordings,other?"),
        ("extract recordings input=other", "did you mean -m input=recordings,other?"),
        ("extract recordings --devise cpu", "--device"),
    ],
)
def test_a_mistyped_command_is_one_line_that_suggests_what_was_meant(
    typed: str,
    suggested: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_error_line: Callable[[], str],
) -> None:
    (tmp_path / "recordings").mkdir()
    monkeypatch.setattr(sys, "argv", ["balr", *typed.split()])
    assert cli.run_command() == 2 and suggested in one_error_line()


def test_input_options_and_overrides_stand_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (
        ("x=1", "DATA", "--force", "~y"),
        ("--force", "x=1", "~y", "DATA"),
        ("DATA", "x=1", "~y", "--force"),
    ):
        assert forwarded(monkeypatch, "extract", *arguments) == ["input='DATA'", "force=true", "x=1", "~y"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("embeddings/model = campplus_", ["campplus_lm"]),
        ("embeddings/model =", ["campplus", "resnet34_lm"]),
        ("device=cpu data = ser", ["serial"]),
        ("embeddings/model=campplus_", ["embeddings/model=campplus_lm"]),
        ("embeddings/model = resnet34_lm,campplus_", ["resnet34_lm,campplus_lm"]),
        ("+experiment = comp", ["compare_models"]),
        ("precision = b", ["bf16"]),
        ("--device c", ["cpu", "cuda"]),
        ("--precision b", ["bf16"]),
    ],
)
def test_names_are_completed_in_bash_which_splits_at_equals_signs(words: str, offered: list[str]) -> None:
    typed = f"balr extract a {words}"
    environment = {"_BALR_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    result = CliRunner().invoke(cli.app, [], prog_name="balr", env={**os.environ, **environment})
    assert set(offered) <= set(result.output.split())


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("embeddings/model=campplus_", ["embeddings/model=campplus_lm"]),
        ("embeddings/model=resnet34_lm,campplus_", ["embeddings/model=resnet34_lm,campplus_lm"]),
        ("data", ["data="]),
        ("--device m", ["mps"]),
    ],
)
def test_overrides_are_completed_in_the_shell(typed: str, offered: list[str]) -> None:
    environment = {**os.environ, "_BALR_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": f"balr extract a {typed}"}
    result = CliRunner().invoke(cli.app, [], prog_name="balr", env=environment)
    assert all(value in result.output for value in offered), result.output


def test_an_override_that_is_longer_than_any_name_of_a_file_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forwarded(monkeypatch, "extract", f"input={'x' * 300}") == [f"input={'x' * 300}"]


def test_every_command_prints_names_that_are_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8"))
    monkeypatch.setattr(sys, "argv", ["balr", "models"])
    monkeypatch.setattr(cli, "published_table", lambda: os.fsdecode(b"caf\xe9"))
    assert cli.run_command() == 0
    sys.stdout.flush()
    assert printed.getvalue() == b"caf\\udce9\n"


def test_an_unexpected_error_of_a_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, one_error_line: Callable[[], str]
) -> None:
    def surprise(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug\non two lines")

    monkeypatch.setattr("balr.export.export", surprise)
    monkeypatch.setattr(sys, "argv", ["balr", "export", "here", "there", "--to", "files"])
    assert cli.run_command() == 2
    assert one_error_line() == "ERROR unexpected ZeroDivisionError: a bug on two lines"


def test_a_bare_command_shows_its_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["balr"])
    assert cli.run_command() == 0 and "Usage: " in capsys.readouterr().out

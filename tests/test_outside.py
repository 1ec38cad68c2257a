"""Configs from outside choose among what is here; one that makes Hydra call anything else is refused before it does."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command, rows

from balr.main import main

CALLBACK = "hydra: {callbacks: {x: {_target_: os.system, command: touch MARKER}}}"
HIDDEN = "embeddings: {x: {_target_: os.system, command: touch MARKER}}\nhydra: {callbacks: {x: '${embeddings.x}'}}"
MADE = "hydra: {callbacks: {x: '${oc.create:{_target_: os.system, command: touch MARKER}}'}}"
FACTORY = 'hydra: {job_logging: {handlers: {terminal: {"()": os.system, command: touch MARKER}}}}'
HANDLER = "hydra: {job_logging: {handlers: {terminal: {class: subprocess.Popen, args: [touch, MARKER]}}}}"
LAUNCHER = "hydra: {launcher: {_target_: os.getcwd}}"
OURS = "hydra: {callbacks: {x: {_target_: balr.provenance._output, _args_: [touch, MARKER]}}}"
LATER = "hydra: {callbacks: {x: {_target_: '${oc.select:hydra.job.id,balr.errors.one_line}', text: x}}}"
LOG = "hydra: {job_logging: {handlers: {file: {class: logging.FileHandler, filename: MARKER}}}}"
ENVIRONMENT = "hydra: {job: {env_set: {HF_ENDPOINT: http://elsewhere}}}"
PLACE = "hydra: {output_subdir: MARKER}"
PARAMETERS = "hydra: {sweeper: {params: {embeddings/model: evil}}}"
SWEEPS = "hydra: {mode: MULTIRUN}"
MODEL = """
embeddings:
  model:
    {_target_: os.system, command: touch MARKER, model_repo: a/b, model_name: x, config_name: y, features: {}}
"""


@pytest.fixture
def outside(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a config from outside as `embeddings/model/evil.yaml`."""

    def write(text: str) -> Path:
        folder = tmp_path / "conf" / "embeddings" / "model"
        folder.mkdir(parents=True)
        content = text.replace("MARKER", str(tmp_path / "marker"))
        (folder / "evil.yaml").write_text(f"# @package _global_\n{content}\n")
        return tmp_path / "conf"

    return write


@pytest.mark.parametrize(
    "text",
    (
        *(CALLBACK, HIDDEN, MADE, FACTORY, HANDLER, LAUNCHER),
        *(OURS, LATER, LOG, ENVIRONMENT, PLACE, PARAMETERS, SWEEPS),
    ),
)
@pytest.mark.parametrize("sweep", [(), ("-m",)], ids=["run", "sweep"])
def test_hydra_is_not_made_to_call_what_a_config_from_outside_names(
    corpus: Path,
    tmp_path: Path,
    outside: Callable[[str], Path],
    one_error_line: Callable[[], str],
    text: str,
    sweep: tuple[str, ...],
) -> None:
    models = "resnet34_lm,evil" if sweep else "evil"
    assert main([f"input={corpus}", "--config-dir", str(outside(text)), f"embeddings/model={models}", *sweep]) == 2
    line = one_error_line()
    assert "set by a config from outside: refused" in line or "not a launcher or sweeper of Hydra's" in line
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("job", ["name: ../marker", "chdir: true"])
def test_the_log_and_the_folder_of_a_job_are_not_chosen_from_outside(
    corpus: Path, tmp_path: Path, one_error_line: Callable[[], str], job: str
) -> None:
    (tmp_path / "conf" / "exp").mkdir(parents=True)
    (tmp_path / "conf" / "exp" / "e.yaml").write_text(f"# @package _global_\nhydra: {{job: {{{job}}}}}\n")
    assert main([f"input={corpus}", "--config-dir", str(tmp_path / "conf"), "+exp=e"]) == 2
    assert f"hydra.job.{job.partition(':')[0]}: set by a config from outside" in one_error_line()


def test_nor_by_the_search_path(
    corpus: Path, tmp_path: Path, outside: Callable[[str], Path], one_error_line: Callable[[], str]
) -> None:
    searched = f"hydra.searchpath=[file://{outside(CALLBACK)}]"
    assert main([f"input={corpus}", searched, "embeddings/model=evil"]) == 2
    assert "hydra.callbacks" in one_error_line() and not (tmp_path / "marker").exists()


def test_a_model_of_it_is_a_class_of_balr(
    corpus: Path, tmp_path: Path, outside: Callable[[str], Path], one_error_line: Callable[[], str]
) -> None:
    command = [f"input={corpus}", "--config-dir", str(outside(MODEL)), "embeddings/model=evil"]
    assert main(command) == 2
    assert "_target_=os.system: not a class of balr" in one_error_line() and not (tmp_path / "marker").exists()


def test_a_harmless_one_is_as_good_as_those_that_ship(
    balr: Command, corpus: Path, tmp_path: Path, outside: Callable[[str], Path]
) -> None:
    folder = outside(MODEL)
    harmless = "# @package embeddings\ndefaults: [_wespeaker, _self_]\nmodel:\n  features:\n    window_type: povey\n"
    (folder / "embeddings" / "model" / "mine.yaml").write_text(harmless)
    command = [f"input={corpus}", "--config-dir", str(folder), "embeddings/model=mine"]
    assert balr(*command, "save_dir=out") == 0
    assert len(rows(tmp_path / "out" / "metadata.csv")) == 6
    assert balr(*command, "-m", "precision=fp32") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("data=../../../../tmp/x",),
        ("-m", "data=auto,../x"),
        ("+embeddings/model@x=../x",),
        ("+experiment='../../x'",),
        ("--config-name", "../x"),
        ("--experimental-rerun", "x.pickle"),
    ],
)
def test_nothing_leads_out_of_the_configs(one_error_line: Callable[[], str], arguments: tuple[str, ...]) -> None:
    assert main(["input=nowhere", *arguments]) == 2
    line = one_error_line()
    assert "leads out of the configs" in line or "unpickles" in line


def test_every_combination_of_a_sweep_is_looked_at(
    corpus: Path, tmp_path: Path, outside: Callable[[str], Path], one_error_line: Callable[[], str]
) -> None:
    folder = outside("data: {x: 1}")
    (folder / "data").mkdir()
    (folder / "data" / "b.yaml").write_text("# @package _global_\nhydra: {callbacks: {x: {_target_: os.getcwd}}}\n")
    sweep = ["-m", "embeddings/model=resnet34_lm,campplus_lm", "data=auto,b", "force=true,false"]
    assert main([f"input={corpus}", "--config-dir", str(folder), *sweep]) == 2
    assert "hydra.callbacks" in one_error_line()

"""Sweeps through Hydra's door: every job has results of its own, and a bad one does not stop the others."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Command, embeddings, interrupt_at, rows

from balr.jobs import JobResult
from balr.main import main

OneLine = Callable[[], str]


def test_interrupting_a_run_saves_its_lists_and_stops_a_sweep(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = interrupt_at(monkeypatch, 3)
    assert balr("-m", f"input={corpus}", "embeddings.model.features.window_type=hamming,povey", "save_dir=out") == 130
    assert len(seen) == 3
    (listed,) = (tmp_path / "out").rglob("metadata.csv")
    assert len(rows(listed)) == len(embeddings(tmp_path / "out")) == 3
    told = capsys.readouterr().err
    assert "stopped by SIGINT; the same command goes on from there" in told and "not reached    3" in told


def test_a_sweep_over_anything_keeps_its_jobs_apart(balr: Command, corpus: Path, tmp_path: Path) -> None:
    for swept in (
        "audio_formats=[wav],[wav,flac]",
        "vector_format=npy,txt",
    ):
        folder = swept.partition("=")[0]
        assert balr("-m", f"input={corpus}", swept, f"++save_dir={folder}") == 0
        assert len(list((tmp_path / folder).rglob("metadata.csv"))) == 2, swept


def test_a_sweep_over_corpora_keeps_them_apart(balr: Command, corpus: Path, tmp_path: Path) -> None:
    assert balr("-m", f"input={corpus / 'spk0'},{corpus / 'spk1'}", "save_dir=out", "device=cpu") == 0
    found = {path.parent.parent.name: len(rows(path)) for path in (tmp_path / "out").rglob("metadata.csv")}
    assert found == {"corpus-spk0": 3, "corpus-spk1": 3}


def test_a_sweep_gives_every_job_its_own_results(balr: Command, corpus: Path, tmp_path: Path) -> None:
    sweep = "embeddings.model.features.window_type=hamming,povey"
    assert balr("-m", f"input={corpus}", sweep, "device=cpu") == 0
    folders = sorted(path.parent for path in (tmp_path / "outputs" / "embeddings").rglob("metadata.csv"))
    assert [("window_type-hamming" in str(f), "window_type-povey" in str(f)) for f in folders] == [
        (True, False),
        (False, True),
    ]
    hamming, povey = (embeddings(folder) for folder in folders)
    assert len(hamming) == len(povey) == 6 and all(hamming[name] != povey[name] for name in hamming)
    assert len(list((tmp_path / "outputs" / "sweeps").rglob("balr.log"))) == 2


def test_a_failing_job_does_not_stop_the_others_and_the_exit_code_is_one(
    corpus: Path, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nothing").mkdir()
    models = f"embeddings.model.model_dir={tmp_path / 'nothing'},{tiny_checkpoint}"
    code = main(
        ["-m", f"input={corpus}", models, "embeddings.model.model_name=avg_model.pt", "embeddings.model.model_repo=''"]
    )
    assert code == 1
    assert len(embeddings(tmp_path / "outputs" / "embeddings")) == 6
    printed = capsys.readouterr().err
    assert "does not hold both avg_model.pt and config.yaml" in printed and "Traceback" not in printed
    assert re.search(r"ERROR 1 of 2 jobs failed: \S*nothing\S*\n$", printed)


def test_a_sweep_names_its_lines_and_ends_with_a_table_of_its_jobs(
    balr: Command, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "text.wav").write_text("no audio")
    assert balr("-m", f"input={corpus}", "embeddings.model.features.window_type=hamming,povey", "save_dir=out") == 1
    printed = capsys.readouterr().err
    table = [line.split() for line in printed.rpartition("failed  x real time")[2].splitlines()[1:3]]
    folders = sorted(str(path.parent) for path in Path("out").rglob("metadata.csv"))
    assert [(row[1], row[2], row[-1]) for row in table] == [("6", "1", "out/…")] * 2
    assert len(folders) == 2 and len(embeddings(Path("out"))) == 12, "kept apart below one save_dir"
    assert [f"out/{row[0].partition('/')[2]}" for row in table] == [f"out/{Path(folder).name}" for folder in folders]
    for row in table:
        assert f"WARNING {row[0]}: text.wav: decode: " in printed and f"INFO {row[0]}: done" in printed
    assert "ERROR 2 of 2 jobs failed: " in printed


def test_results_that_an_earlier_sweep_left_in_the_folder_are_none_of_this_one(
    balr: Command, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ("-m", "save_dir=out", "hydra.sweep.dir=sweep")
    (corpus / "spk0" / "text.wav").write_text("no audio")
    assert balr(*sweep, f"input={corpus / 'spk1'},{corpus / 'spk0'}") == 1
    capsys.readouterr()
    assert balr(*sweep, f"input={corpus / 'spk1'}") == 0
    table = capsys.readouterr().err.rpartition("x real time")[2].splitlines()[1:]
    assert len(table) == 1 and table[0].startswith("corpus-spk1/")


def test_a_page_that_cannot_be_drawn_changes_no_exit_code(
    balr: Command, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def surprise(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("balr.report.report", surprise)
    (corpus / "spk0" / "text.wav").write_text("no audio")
    evaluated = ("+evaluation=trials", "evaluation.bootstrap=0", "save_dir=out")
    assert balr("-m", f"input={corpus}", *evaluated) == 1
    told = capsys.readouterr().err
    assert "WARNING no page was written: a bug\nERROR 1 of 1 jobs failed: " in told and "EER" in told


def test_a_log_line_of_a_single_run_has_no_name(
    balr: Command, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert "\nINFO done\n" in capsys.readouterr().err


def test_a_save_dir_that_names_the_job_is_taken_as_it_is(balr: Command, corpus: Path, tmp_path: Path) -> None:
    sweep = "embeddings.model.features.window_type=hamming,povey"
    save_dir = "save_dir='out/${balr.corpus:${input}}/x/${balr.label:}'"
    assert balr("-m", f"input={corpus}", sweep, save_dir) == 0
    folders = [path.parent for path in (tmp_path / "out").rglob("metadata.csv")]
    assert [folder.parent for folder in folders] == [tmp_path / "out" / "corpus" / "x"] * 2


@pytest.mark.filterwarnings("ignore")  # those of Optuna
def test_a_sweeper_that_optimises_gets_the_eer(
    corpus: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the real Optuna sweeper: what it minimises is what evaluation.json says."""
    monkeypatch.setattr("balr.report.report", lambda *_: None)  # whose page takes seconds
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install 'balr[optuna]'")
    model = [f"embeddings.model.model_dir={tiny_checkpoint}", "data=serial", "embeddings.model.model_name=avg_model.pt"]
    sweeper = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    sweeper += ["hydra.sweeper.sampler.seed=1", "hydra.sweep.dir=sweep"]
    evaluation = ["+evaluation=trials", "evaluation.bootstrap=0", "evaluation.mean=choice(self,none)"]
    assert main(["input=corpus", "save_dir=out", *model, *sweeper, *evaluation]) == 0
    found = yaml.safe_load((corpus.parent / "sweep" / "optimization_results.yaml").read_text())
    files = (corpus.parent / "out").rglob("evaluation.json")
    eers = {one["mean"]: one["metrics"]["eer"]["value"] for one in (json.loads(file.read_text()) for file in files)}
    assert found["best_value"] == pytest.approx(min(eers[mean] for mean in eers))


def test_without_an_evaluation_a_sweeper_gets_the_seconds_for_a_second_of_audio() -> None:
    assert JobResult("job", 0, 6, 0, x_real_time=50.0).objective == pytest.approx(0.02)
    assert JobResult("job", 0, 6, 0, x_real_time=50.0, eer=0.03).objective == 0.03
    assert JobResult("job", 2, reason="no model").objective == math.inf

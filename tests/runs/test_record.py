"""run.json tells of every run what it was given, what computed, what became of it and how it ended."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, interrupt_at, speechlike, write_wav

from balr.atomic import sha256


def runs(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "run.json").read_text())["runs"])


def test_a_run_is_recorded_with_all_that_decided_its_numbers(
    balr: Command, corpus: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    (run,) = runs(tmp_path / "out")
    assert run["corpus"]["input"] == str(corpus) and run["corpus"]["utterances"] == 6
    assert run["checkpoint"]["weights_sha256"] == sha256(tiny_checkpoint / "avg_model.pt")
    assert run["checkpoint"]["config_sha256"] == sha256(tiny_checkpoint / "config.yaml")
    assert run["checkpoint"]["architecture"] == "XVEC" and run["embedding_dim"] == 32
    assert run["features"]["num_mel_bins"] == 80 and run["features"]["window_type"] == "hamming"
    assert run["precision"] == "fp32" and run["device"].startswith("cpu")
    assert run["batching"]["concurrent_batches"] == 1 and run["batching"]["batches"] == 6
    assert run["software"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    checkout = Path(__file__).parents[2]
    if (checkout / ".git").exists():
        command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        assert run["software"]["git"].removesuffix("-dirty") == head
    assert run["machine"]["cores"] >= 1 and run["started"] <= run["ended"]
    assert run["counts"] == {
        "total": 6,
        "embedded": 6,
        "already_there": 0,
        "without_audio": 0,
        "failed": 0,
        "not_reached": 0,
        "upsampled": 0,
    }
    assert run["audio_hours"] == pytest.approx(9 / 3600, rel=1e-3) and run["x_real_time"] > 0
    took = run["stage_seconds"]
    assert set(took) == {"decode_wait", "features", "forward", "write"} and took["forward"] > 0
    # One thread loads and writes, another computes meanwhile: each is bound by the clock, their sum is not.
    for thread in ("decode_wait", "write"), ("features", "forward"):
        assert sum(took[stage] for stage in thread) <= run["embedding_seconds"] + 0.003  # rounded to a millisecond
    assert run["exit"] == "done"


def test_each_run_adds_an_entry_and_says_how_it_ended(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert balr(f"input={corpus}", "save_dir=out") == 130
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert balr(f"input={corpus}", "save_dir=out") == 0
    first, second, third = runs(tmp_path / "out")
    assert (
        first["exit"] == "interrupted by SIGINT" and first["counts"]["not_reached"] == 6 - first["counts"]["embedded"]
    )
    assert second["counts"]["already_there"] == first["counts"]["embedded"]
    assert third["counts"]["already_there"] == 6 and third["exit"] == "done" and "checkpoint" not in third
    assert first["corpus"] == second["corpus"] == third["corpus"]


def test_another_list_has_another_hash(balr: Command, corpus: Path, tmp_path: Path) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    write_wav(corpus / "new.wav", speechlike(1.0))
    assert balr(f"input={corpus}", "save_dir=out") == 0
    before, after = (run["corpus"] for run in runs(tmp_path / "out"))
    assert before["sha256"] != after["sha256"]


def test_a_run_that_was_killed_is_told_apart_by_the_next(balr: Command, corpus: Path, tmp_path: Path) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    kept = json.loads((tmp_path / "out" / "run.json").read_text())
    kept["runs"][0] |= {"ended": None, "exit": None}
    (tmp_path / "out" / "run.json").write_text(json.dumps(kept))
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert runs(tmp_path / "out")[0]["exit"].startswith("unknown: killed")


@pytest.mark.parametrize("text", ["", "[]", "null", '{"model": 3}', '{"model": {}, "forcing": false, "runs": [3]}'])
def test_a_record_that_is_not_balr_s_is_left_alone(
    balr: Command, corpus: Path, tmp_path: Path, one_error_line: Callable[[], str], text: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(text)
    assert balr(f"input={corpus}", "save_dir=out") == 2
    assert "not balr's record" in one_error_line()
    assert (tmp_path / "out" / "run.json").read_text() == text

"""Jobs that share a corpus and a folder: together they are the run of the whole."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, break_off_after, rows, run_command, speechlike, write_wav
from typer.testing import CliRunner

from balr import load_embeddings
from balr.cli import app
from balr.data.corpus import Corpus
from balr.errors import LockedError
from balr.evaluation.source import read_embeddings
from balr.records import Shard
from balr.runs.verify import verify
from balr.stores.folder import locked

STORES = ("files", "parquet", "kaldi")


def content(folder: Path) -> dict[str, bytes]:
    ids, matrix, _ = load_embeddings(folder)
    assert len(ids) == len(set(ids))
    return {id_: row.tobytes() for id_, row in zip(ids, matrix, strict=True)}


@pytest.fixture
def with_a_bad_file(corpus: Path) -> Path:
    (corpus / "spk0" / "bad.wav").write_bytes(b"no audio")
    return corpus


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)])
def test_the_union_of_shards_is_the_run_of_the_whole(
    balr: Command, with_a_bad_file: Path, tmp_path: Path, store: str, count: int
) -> None:
    assert balr(f"input={with_a_bad_file}", "save_dir=whole", f"store={store}") == 1
    codes = [
        balr(f"input={with_a_bad_file}", "save_dir=out", f"store={store}", f"shard.index={n}", f"shard.count={count}")
        for n in range(count)
    ]
    assert sorted(codes) == [0] * (count - 1) + [1]
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert (tmp_path / "out" / "failures.csv").read_bytes() == (tmp_path / "whole" / "failures.csv").read_bytes()
    assert not [
        path for path in (tmp_path / "out").iterdir() if path.name.startswith(("metadata.0", "failures.0", "run.0"))
    ]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [run["shard"] for run in record["runs"]] == [{"index": n, "count": count} for n in range(count)]
    if store == "files":
        assert (tmp_path / "out" / "metadata.csv").read_bytes() == (tmp_path / "whole" / "metadata.csv").read_bytes()


@pytest.mark.parametrize("store", ["files", pytest.param("parquet", marks=pytest.mark.slow)])
def test_merging_by_hand_takes_what_there_is_and_again_changes_nothing(
    balr: Command, corpus: Path, tmp_path: Path, store: str
) -> None:
    assert balr(f"input={corpus}", "save_dir=out", f"store={store}", "shard.index=0", "shard.count=2") == 0
    done = CliRunner().invoke(app, ["merge", "out"])
    embedded = len(content(tmp_path / "out"))
    assert done.exit_code == 1 and done.stdout == f"{embedded} embedded, 0 failed, {6 - embedded} missing\n"
    before = {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()}
    assert CliRunner().invoke(app, ["merge", "out"]).exit_code == 1
    assert before == {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()}
    for index in range(3):  # another count takes what is missing
        assert balr(f"input={corpus}", "save_dir=out", f"store={store}", f"shard.index={index}", "shard.count=3") == 0
    assert len(content(tmp_path / "out")) == 6
    assert not verify(tmp_path / "out", Corpus.from_dir(corpus)).findings


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("count", [1, 2, 3, 18])
def test_the_sample_in_shards_equals_the_whole(
    balr: Command, sample: Path, tmp_path: Path, store: str, count: int
) -> None:
    common = (f"input={sample / 'metadata.csv'}", f"store={store}", f"shard.count={count}")
    assert balr(*common[:2], "save_dir=whole") == 0
    for index in range(count):
        assert balr(*common, "save_dir=out", f"shard.index={index}") == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_an_index_beyond_the_count_is_one_line(balr: Command, corpus: Path, one_error_line: Callable[[], str]) -> None:
    assert balr(f"input={corpus}", "shard.index=64", "shard.count=64") == 2
    assert "shard.index=64 of shard.count=64: the index must be from 0 to 63" in one_error_line()


def test_another_store_than_the_folders_is_one_line(
    balr: Command, corpus: Path, one_error_line: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert balr(f"input={corpus}", "save_dir=out", "store=parquet") == 0
    capsys.readouterr()
    assert balr(f"input={corpus}", "save_dir=out", "store=kaldi") == 2
    assert "its store is a ParquetStore, and this one a KaldiStore" in one_error_line()


def test_an_option_that_a_store_does_not_have_is_one_line(
    balr: Command, corpus: Path, one_error_line: Callable[[], str]
) -> None:
    assert balr(f"input={corpus}", "save_dir=out", "store=parquet", "+store.rows=3") == 2
    assert "ParquetStore got an unexpected keyword argument 'rows'; it has" in one_error_line()


def test_force_over_shards_that_are_not_merged_starts_over_also_after_a_kill(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    povey = "embeddings.model.features.window_type=povey"
    (corpus / "spk0" / "bad.wav").write_bytes(b"no audio")
    for index in (0, 1):
        balr(f"input={corpus}", "save_dir=out", f"shard.index={index}", "shard.count=3")
    with monkeypatch.context() as patch:
        break_off_after(patch, 5)
        assert balr(f"input={corpus}", "save_dir=out", povey, "force=true") == 2
    assert not list((tmp_path / "out").glob("[mf]*.[0-9]-of-3.csv")), "neither lists of embeddings nor of failures"
    assert balr(f"input={corpus}", "save_dir=out", povey, "force=true") == 1
    assert not verify(tmp_path / "out", Corpus.from_dir(corpus)).findings


def test_shards_of_different_models_say_what_helps(
    balr: Command, corpus: Path, tmp_path: Path, one_error_line: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert balr(f"input={corpus}", "save_dir=out", "shard.index=0", "shard.count=3") == 0
    record = json.loads((tmp_path / "out" / "run.0-of-3.json").read_text())
    record["model"]["settings"]["precision"] = "bf16"
    (tmp_path / "out" / "run.1-of-3.json").write_text(json.dumps(record))
    for force in ("force=false", "force=true"):
        capsys.readouterr()
        assert balr(f"input={corpus}", "save_dir=out", force) == 2
        assert "choose another save_dir, or remove this one" in one_error_line()


def test_lengths_of_files_are_known_after_shards_are_merged(balr: Command, corpus: Path, tmp_path: Path) -> None:
    for index in (0, 1):
        assert balr(f"input={corpus}", "save_dir=out", f"shard.index={index}", "shard.count=2") == 0
    found = read_embeddings(tmp_path / "out")
    assert sorted(found.seconds) == pytest.approx([1.0 + 0.2 * number for number in range(6)], abs=0.01)


def test_force_is_refused_for_shards(balr: Command, corpus: Path, one_error_line: Callable[[], str]) -> None:
    assert balr(f"input={corpus}", "save_dir=out", "force=true", "shard.index=0", "shard.count=2") == 2
    assert "force=true with shard.count" in one_error_line()


def test_shards_of_one_count_work_side_by_side_and_nothing_else_beside_them(tmp_path: Path) -> None:
    with locked(tmp_path, Shard(0, 3)), locked(tmp_path, Shard(2, 3)):
        for other, reason in (
            (Shard(2, 3), "another run works there"),
            (Shard(0, 4), "a run of another shard.count works there"),
            (Shard(), "a run of another shard.count works there"),
        ):
            with pytest.raises(LockedError, match=reason), locked(tmp_path, other):
                pass


@pytest.mark.parametrize(
    ("choice", "variables"),
    [
        (
            "slurm_array",
            {
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
        ),
        ("torchrun", {"RANK": "2", "WORLD_SIZE": "4"}),
    ],
)
def test_index_and_count_come_from_the_variables_of_a_scheduler(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert balr(f"input={corpus}", "save_dir=out", f"shard={choice}") == 0
    assert (tmp_path / "out" / "run.2-of-4.json").is_file()


def test_a_missing_variable_of_a_scheduler_is_named(
    balr: Command, corpus: Path, one_error_line: Callable[[], str]
) -> None:
    assert balr(f"input={corpus}", "save_dir=out", "shard=torchrun") == 2
    assert "RANK" in one_error_line()


def test_a_sweep_over_shards_works_in_one_folder_whatever_device_each_has(
    balr: Command, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert balr("-m", f"input={corpus}", "save_dir=out", "shard.count=2", "shard.index=0,1", "device=cpu") == 0
    (record,) = (tmp_path / "out").rglob("run.json")
    assert len(json.loads(record.read_text())["runs"]) == 2
    assert len(rows(record.parent / "metadata.csv")) == 6


@pytest.mark.slow
@pytest.mark.parametrize("store", ["parquet", "kaldi"])
def test_thirty_kills_and_a_resume_leave_each_embedding_once(tiny_campplus: Path, tmp_path: Path, store: str) -> None:
    for number in range(60):
        write_wav(tmp_path / "corpus" / f"{number}.wav", speechlike(1.0 + 0.05 * number, seed=number))
    command = [sys.executable, "-m", "balr.main", "input=corpus", f"store={store}"]
    command += [f"embeddings.model.model_dir={tiny_campplus}", "embeddings.model.model_name=avg_model.pt"]
    assert subprocess.run([*command, "save_dir=whole"], cwd=tmp_path, check=False).returncode == 0
    moments = random.Random(1)
    for _ in range(30):
        run = subprocess.Popen([*command, "save_dir=out"], cwd=tmp_path, start_new_session=True)
        time.sleep(moments.uniform(2.0, 6.0))
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert subprocess.run([*command, "save_dir=out"], cwd=tmp_path, check=False).returncode == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    done = run_command("balr", "verify", "out", "corpus", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    shutil.rmtree(tmp_path / "out")


def test_the_store_of_a_run_is_a_dataset_and_a_matrix(balr: Command, corpus: Path, tmp_path: Path) -> None:
    from balr import AudioDataset

    expected = None
    for store in STORES:
        assert balr(f"input={corpus}", f"save_dir={store}", f"store={store}") == 0
        dataset = AudioDataset.from_path(tmp_path / store)
        found = dict(dataset.embeddings())
        assert {one.audio_path for one in dataset} == set(corpus.rglob("*.wav"))
        expected = expected or found
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[id_], expected[id_]) for id_ in expected)

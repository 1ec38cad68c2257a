"""A sweep over shards gives the run of the whole with every launcher, and ends its jobs when it is stopped."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import alive_in_group, run_command, speechlike, write_wav
from fake_hub import FakeHub

from balr import load_embeddings
from balr.checkpoints import published_checkpoints
from balr.errors import CheckpointError
from balr.jobs import end_as_stopped
from balr.main import main

RAY = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'balr[ray]'")
LAUNCHERS = [
    pytest.param("basic", marks=pytest.mark.slow),
    "joblib_cpu",
    pytest.param("submitit_local", marks=pytest.mark.slow),
    pytest.param("ray_cluster", marks=RAY),
]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_shards_of_a_sweep_give_the_run_of_the_whole(
    launcher: str, corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    common = [f"embeddings.model.model_dir={tiny_checkpoint}", "device=cpu", "data=serial"]
    assert main(["input=corpus", "save_dir=whole", *common]) == 0
    shards = ["-m", f"hydra/launcher={launcher}", "save_dir=out", "shard.count=2", "shard.index=range(2)"]
    done = run_command("balr", "extract", "corpus", *shards, *common, cwd=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    rows = [line for line in done.stderr.splitlines() if " 0/2 " in line or " 1/2 " in line]
    assert len([line for line in rows if line.split()[-2:-1] == ["x"]]) == 2, "the table names both shards"
    (manifest,) = (tmp_path / "out").rglob("metadata*.csv")
    (ids, found, _), (expected_ids, expected, _) = load_embeddings(manifest.parent), load_embeddings(tmp_path / "whole")
    assert ids == expected_ids and np.array_equal(found, expected)


def test_every_model_that_a_sweep_names_is_fetched_once(
    corpus: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []

    def find(model_repo: str, model_name: str, **_: object) -> None:
        asked.append((model_repo.rpartition("/")[2], model_name))
        if model_repo == "them/last":
            raise CheckpointError("them/last: no such repository.")

    monkeypatch.setattr("balr.sweeps.find_checkpoint", find)
    swept = ["embeddings.model.model_repo=me/one,them/last", "shard.count=500", "shard.index=range(500)"]
    for models, expected in (
        (["embeddings/model=campplus_lm,resnet34_lm", *swept], ["one", "last"]),
        (swept, ["one", "last"]),
    ):
        asked.clear()
        assert main(["-m", f"input={corpus}", "hydra/launcher=joblib_cpu", *models]) == 2
        assert [name for name, _ in asked] == expected
        assert capsys.readouterr().err == "ERROR them/last: no such repository.\n"


def test_models_of_an_experiment_that_the_command_replaces_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def begin(*_: object) -> None:
        raise SystemExit(3)

    monkeypatch.setattr("balr.sweeps.find_checkpoint", lambda model_repo, **_: asked.append(model_repo))
    monkeypatch.setattr("balr.sweeps.SweepBars", begin)
    models = ["+experiment=compare_models", "embeddings/model=campplus_lm,resnet293_lm"]
    assert main(["-m", "input=x", "hydra/launcher=joblib_cpu", *models]) == 3
    names = {checkpoint["name"]: repo for repo, checkpoint in published_checkpoints().items()}
    assert asked == [names["campplus_lm"], names["resnet293_lm"]]


@pytest.mark.parametrize(
    ("told", "is_over"),
    [
        (type("UncompletedJobError", (RuntimeError,), {})("Job not requeued because: timed-out too many times."), True),
        (subprocess.CalledProcessError(-15, ["scontrol", "requeue", "1_1"]), False),
        (None, False),
    ],
)
def test_a_stopped_job_leaves_no_result_unless_its_launcher_says_that_it_is_over(
    told: Exception | None, is_over: bool
) -> None:
    def handler(*_: object) -> None:
        if told is not None:
            raise told

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        with nullcontext() if is_over else pytest.raises(SystemExit, match="138"):
            end_as_stopped(signal.SIGUSR2, 138)
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.slow
def test_models_are_fetched_once_before_the_jobs_which_ask_for_nothing(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    command = ["balr", "extract", "corpus", "-m", "hydra/launcher=submitit_local", "shard.count=2", "data=serial"]
    command += ["shard.index=range(2)", "embeddings.model.model_repo=me/mine"]
    with FakeHub({("me/mine", "main"): tiny_checkpoint}).serving() as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        done = run_command(*command, cwd=tmp_path, **variables)
        assert done.returncode == 2 and "avg_model and config.yaml" in done.stderr and "Traceback" not in done.stderr
        assert not list(tmp_path.rglob("*_submitted.pkl")), "no job was started"
        done = run_command(*command, "embeddings.model.model_name=avg_model.pt", cwd=tmp_path, **variables)
        assert done.returncode == 0, done.stderr
        logs = [path.read_text() for path in tmp_path.rglob("*_log.err")]
        assert len(logs) == 2 and not any("looking for me/mine" in log for log in logs) and hub.requests


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS[3:])
def test_jobs_of_a_stopped_sweep_end_and_the_same_command_goes_on(
    launcher: str, tiny_campplus: Path, tmp_path: Path
) -> None:
    for number in range(40):
        first = write_wav(tmp_path / "corpus" / f"{number}-0.wav", speechlike(0.7 + 0.01 * number, seed=number))
        for copy in range(1, 100):
            os.link(first, tmp_path / "corpus" / f"{number}-{copy}.wav")
    program = [str(Path(sys.executable).parent / "balr"), "extract", "corpus", "-m", f"hydra/launcher={launcher}"]
    program += ["save_dir=out", "shard.count=2", "shard.index=range(2)", "data=serial"]
    program += [f"embeddings.model.model_dir={tiny_campplus}"]
    running = subprocess.Popen(program, cwd=tmp_path, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").rglob("*_emb.npy"))) < 50 and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait(timeout=60) == (1 if launcher == "ray_cluster" else 143)  # Ray has a handler of its own
    deadline = time.monotonic() + 30
    while alive_in_group(running.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive_in_group(running.pid)
    saved = len(list((tmp_path / "out").rglob("*_emb.npy")))
    assert 50 <= saved < 4_000
    assert subprocess.run(program, cwd=tmp_path, check=False).returncode == 0
    assert len(list((tmp_path / "out").rglob("*_emb.npy"))) == 4_000

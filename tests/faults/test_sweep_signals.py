"""A parallel sweep that is stopped leaves no process behind, and the same command goes on where its jobs were."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import TINY, alive_in_group, embeddings, rows, speechlike, wait_until, write_wav
from untrained_checkpoint import write_checkpoint

Start = Callable[[], "subprocess.Popen[str]"]
UTTERANCES = 120


@pytest.fixture
def start_sweep(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a sweep of three jobs, two at a time, in processes of their own."""
    for seed, name in enumerate(("one", "two", "three")):
        write_checkpoint(tmp_path / name, "CAMPPlus", TINY, seed=seed)
    for count in range(UTTERANCES):
        write_wav(tmp_path / "corpus" / f"{count:03}.wav", speechlike(1.0 + 0.003 * count, seed=count))
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        options = ["-m", "input=corpus", "embeddings.model.model_dir=one,two,three", "save_dir=out", "device=cpu"]
        options += ["embeddings.model.model_name=avg_model.pt", "hydra/launcher=joblib_cpu"]
        process = subprocess.Popen(
            [sys.executable, "-m", "balr.main", *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "send"),
    [
        (signal.SIGINT, os.killpg),
        (signal.SIGTERM, os.kill),
        (signal.SIGTERM, os.killpg),
        (signal.SIGKILL, os.kill),
    ],
)
def test_no_job_outlives_a_stopped_sweep_and_the_same_command_completes_it(
    start_sweep: Start, tmp_path: Path, number: int, send: Callable[[int, int], None]
) -> None:
    sweep, out = start_sweep(), tmp_path / "out"
    wait_until(lambda: len({path.parent for path in out.rglob("*_emb.npy")}) == 2, seconds=60)
    send(sweep.pid, number)
    _, told = sweep.communicate(timeout=60)
    assert sweep.returncode in (-number, 128 + number), told
    assert "Traceback" not in told
    wait_until(lambda: not alive_in_group(sweep.pid), seconds=20)
    ends = [json.loads(path.read_text())["runs"][-1]["exit"] for path in out.rglob("run.json")]
    assert len(ends) == 2 and all(end.startswith("interrupted by SIG") for end in ends), "no third job was begun"
    again = start_sweep()
    _, told = again.communicate(timeout=200)
    assert again.returncode == 0, told
    for path in out.rglob("run.json"):
        assert len(rows(path.parent / "metadata.csv")) == len(embeddings(path.parent)) == UTTERANCES

"""A job array of shards on a SLURM cluster of this machine: signalled, out of time or killed, it ends complete."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, run_command, speechlike, wait_until, write_wav

from balr import load_embeddings

pytestmark = pytest.mark.slurm
SCRIPT = REPOSITORY / "scripts" / "slurm_one_node.sh"
UTTERANCES = 6_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not shutil.which("slurmctld") or not shutil.which("munged") or os.geteuid() != 0:
        pytest.skip("needs Debian's slurm-wlm and munge, and root: make test-slurm")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield
    slurm("scancel", "--user=root")
    subprocess.run([SCRIPT, "stop", folder], check=True)
    del os.environ["SLURM_CONF"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of short utterances that take two jobs about half a minute each."""
    folder = tmp_path_factory.mktemp("many") / "corpus"
    for number in range(40):
        first = write_wav(folder / f"{number}-0.wav", speechlike(0.7 + 0.01 * number, seed=number))
        for copy in range(1, UTTERANCES // 40):
            os.link(first, folder / f"{number}-{copy}.wav")
    return folder


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def running() -> list[str]:
    return slurm("squeue", "--noheader", "--states=RUNNING", "--format=%F_%K").split()


def sweep(corpus: Path, checkpoint: Path, where: Path, *overrides: str, shards: int = 2) -> "subprocess.Popen[str]":
    program = [str(Path(sys.executable).parent / "balr"), "extract", str(corpus), "-m"]
    program += ["hydra/launcher=slurm_cpu", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2", "data=cpu"]
    program += [f"shard.count={shards}", f"shard.index=range({shards})", "save_dir=out", "store=parquet"]
    program += [f"embeddings.model.model_dir={checkpoint}", *overrides]
    return subprocess.Popen(program, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def starts_of_jobs(where: Path) -> list[int]:
    """Return how often each job has begun to compute."""
    return [path.read_text().count(" from ") for path in where.rglob("*_log.err")]


def wait_for_parts(where: Path, at_least: int) -> None:
    """Wait until jobs have saved something."""
    deadline = time.monotonic() + 120
    while len(list(where.rglob("part-*"))) < at_least:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(2)


def check_is_whole(where: Path, corpus: Path, checkpoint: Path) -> None:
    (folder,) = {path.parent for path in where.rglob("part-*.parquet")}
    assert not list(folder.glob("run.*-of-*.json")), "the lists of shards are put together"
    ids, matrix, _ = load_embeddings(folder)
    done = run_command("balr", "verify", str(folder), str(corpus), cwd=where)
    assert done.returncode == 0, done.stdout
    command = ("balr", "extract", str(corpus), "--save-dir", "whole", "store=parquet", "data=cpu")
    assert run_command(*command, f"embeddings.model.model_dir={checkpoint}", cwd=where).returncode == 0
    other_ids, expected, _ = load_embeddings(where / "whole")
    assert sorted(ids) == sorted(other_ids) and len(set(ids)) == len(ids)
    assert np.array_equal(matrix[np.argsort(ids)], expected[np.argsort(other_ids)])


def test_an_array_of_shards_gives_the_run_of_the_whole(
    cluster: None, corpus: Path, tiny_campplus: Path, tmp_path: Path
) -> None:
    running = sweep(corpus, tiny_campplus, tmp_path, shards=3)
    output, _ = running.communicate(timeout=180)
    assert running.returncode == 0, output
    assert "0/3" in output and "2/3" in output
    check_is_whole(tmp_path, corpus, tiny_campplus)


def signal_all(name: str) -> None:
    slurm("scancel", f"--signal={name}", *running())


def requeue_all() -> None:
    for job in running():
        slurm("scontrol", "requeue", job)


def kill_all() -> None:
    """Kill the processes of all steps, as the system does where memory runs out."""
    for line in slurm("scontrol", "listpids").splitlines()[1:]:
        process, _, step, *_ = line.split()
        if step == "0":
            os.kill(int(process), signal.SIGKILL)


def test_jobs_that_are_signalled_preempted_and_killed_are_started_again_and_go_on(
    cluster: None, many: Path, tiny_campplus: Path, tmp_path: Path
) -> None:
    sweeping = sweep(many, tiny_campplus, tmp_path)
    disturbances = (partial(signal_all, "USR2"), kill_all, partial(signal_all, "TERM"), requeue_all)
    for number, disturb in enumerate(disturbances, 1):
        wait_until(lambda starts=number: starts_of_jobs(tmp_path) == [starts, starts], seconds=90)
        time.sleep(1)
        disturb()
    output, _ = sweeping.communicate(timeout=300)
    assert sweeping.returncode == 0, output
    assert starts_of_jobs(tmp_path) == [5, 5]
    check_is_whole(tmp_path, many, tiny_campplus)


def test_a_cancelled_job_is_not_started_again_and_the_sweep_says_so(
    cluster: None, many: Path, tiny_campplus: Path, tmp_path: Path
) -> None:
    sweeping = sweep(many, tiny_campplus, tmp_path)
    wait_for_parts(tmp_path, 2)
    slurm("scancel", *running())
    output, _ = sweeping.communicate(timeout=120)
    assert sweeping.returncode == 143 and "ERROR 2 of 2 jobs failed" in output and "Traceback" not in output, output


def test_a_job_out_of_time_is_queued_again_as_often_as_allowed(
    cluster: None, many: Path, tiny_campplus: Path, tmp_path: Path
) -> None:
    limits = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=38")  # told to save after 22 s
    running = sweep(many, tiny_campplus, tmp_path, *limits, "hydra.launcher.max_num_timeout=0")
    output, _ = running.communicate(timeout=180)
    assert running.returncode == 138, output
    assert output.strip().splitlines()[-1].startswith("ERROR 2 of 2 jobs failed") and "Traceback" not in output
    running = sweep(many, tiny_campplus, tmp_path, *limits)
    output, _ = running.communicate(timeout=600)
    assert running.returncode == 0, output
    check_is_whole(tmp_path, many, tiny_campplus)

"""Signals: the first one ends a run in order and waits for what must not be torn; a second one ends it at once."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import TINY, Command, alive_in_group, rows, run_command, speechlike, vectors, wait_until, write_wav
from typer.testing import CliRunner
from untrained_checkpoint import write_checkpoint

from balr import files, record
from balr.cli import app
from balr.data.dataset import AudioDataset
from balr.embeddings import outcomes
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import Failure, UtteranceError
from balr.report import Tally
from balr.signals import StoppedError, ending_in_order, ending_with, held_back

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


@pytest.mark.parametrize("number", ALL)
def test_a_signal_is_raised_where_nothing_holds_it_back_and_handlers_are_as_before(number: int) -> None:
    before = [signal.getsignal(one) for one in ALL]
    done = []
    with pytest.raises(StoppedError) as stopped, ending_in_order():
        with held_back():
            os.kill(os.getpid(), number)
            with held_back():
                done.append("inner")
            done.append("outer")
        done.append("never")
    assert done == ["inner", "outer"] and stopped.value.exit_code == 128 + number
    assert [signal.getsignal(one) for one in ALL] == before
    with ending_in_order(), held_back():
        pass  # the next run of this process is another one


def test_a_second_signal_ends_the_process_even_where_the_first_is_held_back(tmp_path: Path) -> None:
    program = (
        "import os, signal\nfrom balr.signals import ending_in_order, held_back\n"
        "with ending_in_order(), held_back():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('held', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('never')\n"
    )
    done = run_command("python", "-c", program, cwd=tmp_path)
    assert done.returncode == 143 and done.stdout == "held\n"


def test_a_job_that_another_launcher_started_ends_in_order_too() -> None:
    with pytest.raises(StoppedError), ending_with("a sweep"):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it is told at once")


def test_other_processes_of_the_program_are_left_alone() -> None:
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    other.start()
    try:
        with pytest.raises(StoppedError), ending_in_order():
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it is told at once")
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


@pytest.mark.parametrize("name", ["metadata.csv", "failures.csv", "run.json"])
def test_a_signal_while_a_list_is_written_costs_no_list(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (corpus / "text.wav").write_text("no audio")
    whole, left = files.whole_file, [name, *(["run.json"] if name == "run.json" else [])]  # which is written twice

    def interrupted(path: Path) -> object:
        if path.name in left:
            left.remove(path.name)
            if not left:
                os.kill(os.getpid(), signal.SIGTERM)
        return whole(path)

    with monkeypatch.context() as patch:
        for module in (files, record):
            patch.setattr(module, "whole_file", interrupted)
        assert balr(f"input={corpus}", "save_dir=out") == 143
    listed = rows(tmp_path / "out" / "metadata.csv")
    assert len(listed) == len(vectors(tmp_path / "out"))
    (run,) = json.loads((tmp_path / "out" / "run.json").read_text())["runs"]
    assert run["exit"] == "interrupted by SIGTERM" and run["counts"]["embedded"] == len(listed)
    told = CliRunner().invoke(app, ["verify", "out"]).output
    assert "missing" not in told and "extra" not in told


def test_a_signal_while_embeddings_are_saved_waits_until_they_are_listed(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, seen = Path.replace, []

    def interrupted(self: Path, target: Path) -> Path:
        if target.suffix == ".npy":
            seen.append(target)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return place(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        assert balr(f"input={corpus}", "save_dir=out") == 143
    listed = rows(tmp_path / "out" / "metadata.csv")
    assert len(listed) == len(vectors(tmp_path / "out")) >= 2


def test_a_signal_after_the_first_failure_costs_nothing_that_is_computed(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, read, failed = WespeakerModel.embed, AudioDataset.__getitem__, Tally.failed
    is_embedded, is_told = threading.Event(), threading.Event()
    waveforms_seen: list[object] = []
    indices: list[int] = []

    def second_interrupted(self: WespeakerModel, waveforms: list[torch.Tensor], **limits: float) -> torch.Tensor:
        waveforms_seen.append(waveforms)
        if len(waveforms_seen) == 2:
            assert is_told.wait(10)
            time.sleep(0.3)  # until this is waited for
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        embedding = embed(self, waveforms, **limits)
        is_embedded.set()
        return embedding

    def second_broken(self: AudioDataset, index: int) -> object:
        indices.append(index)
        if len(indices) == 2:
            assert is_embedded.wait(10)
            time.sleep(0.1)
            raise UtteranceError("broken")
        return read(self, index)

    def told(self: Tally, failure: Failure) -> None:
        failed(self, failure)
        is_told.set()

    for owner, name, other in (
        (WespeakerModel, "embed", second_interrupted),
        (AudioDataset, "__getitem__", second_broken),
        (Tally, "failed", told),
    ):
        monkeypatch.setattr(owner, name, other)
    monkeypatch.setattr(outcomes, "_SECONDS_UNSAVED", 60.0)
    settings = ("data.streams=2", "data.num_workers=0", "data.batch_size=1", "fail_fast=true")
    assert balr(f"input={corpus}", "save_dir=out", *settings) == 130
    assert len(rows(tmp_path / "out" / "failures.csv")) == 1
    assert len(rows(tmp_path / "out" / "metadata.csv")) == len(vectors(tmp_path / "out")) == 2


SWEEP = ("-m", "embeddings.model.model_dir=one,two,three", "embeddings.model.model_name=avg_model.pt", "save_dir=out")


@pytest.fixture
def start_sweep(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Return a function that starts a sweep of three jobs, two at a time, in processes of their own."""
    for seed, name in enumerate(("one", "two", "three")):
        write_checkpoint(tmp_path / name, "CAMPPlus", TINY, seed=seed)
    for count in range(200):
        write_wav(tmp_path / "corpus" / f"{count:03}.wav", speechlike(1.0 + 0.003 * count, seed=count))
    started: list[subprocess.Popen[str]] = []

    def start(*program: str) -> "subprocess.Popen[str]":
        options = ["input=corpus", *SWEEP, "hydra/launcher=joblib_cpu", "device=cpu"]
        process = subprocess.Popen(
            [sys.executable, *program, *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
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


def jobs_begun(out: Path) -> int:
    return len({path.parent for path in out.rglob("*_emb.npy")})


@pytest.mark.parametrize(
    ("number", "send", "code"),
    [
        (signal.SIGTERM, os.kill, 143),
        pytest.param(signal.SIGTERM, os.killpg, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, os.killpg, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, os.kill, 138, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, os.kill, -9, marks=pytest.mark.slow),
    ],
)
def test_the_jobs_of_a_parallel_sweep_end_with_it(
    start_sweep: Callable[..., "subprocess.Popen[str]"],
    tmp_path: Path,
    number: int,
    send: Callable[[int, int], None],
    code: int,
) -> None:
    sweep, out = start_sweep("-m", "balr.main"), tmp_path / "out"
    wait_until(lambda: jobs_begun(out) == 2, seconds=60)
    send(sweep.pid, number)
    _, told = sweep.communicate(timeout=60)
    assert sweep.returncode == code, told
    wait_until(lambda: not alive_in_group(sweep.pid))
    records = list(out.rglob("run.json"))
    assert len(records) == 2, "the third job was not begun"
    if number != signal.SIGKILL:
        assert "Traceback" not in told and told.count("ERROR interrupted by") == 2
        for path in records:
            listed = len(rows(path.parent / "metadata.csv"))
            assert 0 < listed == len(vectors(path.parent)) < 200
            (run,) = json.loads(path.read_text())["runs"]
            assert run["exit"].startswith("interrupted by")


@pytest.mark.slow
def test_a_job_that_is_stopped_alone_stops_no_other(
    start_sweep: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    sweep, out = start_sweep("-m", "balr.main"), tmp_path / "out"
    wait_until(lambda: jobs_begun(out) == 2, seconds=60)
    job = next(int(path.name) for path in Path("/proc").glob("[0-9]*") if is_job_of(sweep.pid, path))
    os.kill(job, signal.SIGTERM)
    _, told = sweep.communicate(timeout=120)
    assert sweep.returncode == 1 and told.count("interrupted by SIGTERM") == 1 and told.count("INFO done") == 2
    assert sorted(len(vectors(path.parent)) == 200 for path in out.rglob("run.json")) == [False, True, True]


def is_job_of(sweep: int, process: Path) -> bool:
    with suppress(OSError):
        parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        return (
            parent == sweep
            and b"loky" in (process / "cmdline").read_bytes()
            and b"tracker" not in (process / "cmdline").read_bytes()
        )
    return False


@pytest.mark.slow
def test_a_sweep_that_was_stopped_is_done_again_in_the_same_program(
    start_sweep: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    program = (
        "import os, pathlib, signal, sys, threading, time\nfrom balr.main import main\n"
        "def stop():\n"
        "    while len(list(pathlib.Path('out').rglob('*_emb.npy'))) < 5: time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=stop, daemon=True).start()\n"
        "first = main(sys.argv[1:])\n"
        "second = main(sys.argv[1:])\n"
        "sys.exit(0 if (first, second) == (130, 0) else 7)\n"
    )
    process = start_sweep("-c", program)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    assert [len(vectors(path.parent)) for path in (tmp_path / "out").rglob("metadata.csv")] == [200] * 3

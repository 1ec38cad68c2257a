"""The real command in a process of its own, stopped in every way: the same command again gives the same content."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import alive_in_group, embeddings, rows, speechlike, wait_until, write_wav

UTTERANCES = 60

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    for number in range(UTTERANCES):
        write_wav(tmp_path / "many" / f"{number:03}.wav", speechlike(1.0 + 0.013 * number, seed=number))
    (tmp_path / "many" / "text.wav").write_text("no audio")
    return tmp_path / "many"


@pytest.fixture
def start(many: Path, tiny_campplus: Path, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the command on the corpus in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def run(save_dir: str, *overrides: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "balr.main", f"input={many}", f"save_dir={save_dir}", *overrides]
        command += [f"embeddings.model.model_dir={tiny_campplus}", "embeddings.model.model_name=avg_model.pt"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def content(folder: Path) -> dict[str, bytes]:
    lists = {name: (folder / name).read_bytes() for name in ("metadata.csv", "failures.csv")}
    return {**embeddings(folder), **lists}


def wait_for_embeddings(folder: Path, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(folder.glob("*_emb.npy"))) >= count:
            return
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to the process", "to all its processes"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_a_run_in_order_and_the_next_one_completes_it(
    start: Start, tmp_path: Path, number: int, send: Callable[[int, int], None]
) -> None:
    process = start("out", "data.num_workers=2")
    wait_for_embeddings(tmp_path / "out", 2, process)
    send(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number, told
    assert f"stopped by {signal.Signals(number).name}" in told and "Traceback" not in told
    there = embeddings(tmp_path / "out")
    assert 2 <= len(there) < UTTERANCES
    assert len(rows(tmp_path / "out" / "metadata.csv")) == len(there)
    assert start("out").wait(60) == 1  # of the one file that is no audio
    assert len(embeddings(tmp_path / "out")) == UTTERANCES
    assert [row["id"] for row in rows(tmp_path / "out" / "failures.csv")] == ["text.wav"]


def killed_at_moments(start: Start, tmp_path: Path, moments: list[int], *overrides: str) -> None:
    assert start("undisturbed", *overrides).wait(60) == 1
    for number in moments:
        process = start("out", *overrides)
        wait_for_embeddings(tmp_path / "out", number, process)
        process.kill()
        process.wait()
        wait_until(lambda leader=process.pid: not alive_in_group(leader))
    assert start("out", *overrides).wait(60) == 1
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("data", ["cpu", "gpu"])
def test_a_killed_run_is_completed_to_the_content_of_an_undisturbed_one(
    start: Start, tmp_path: Path, data: str
) -> None:
    killed_at_moments(start, tmp_path, [0, 20], f"data={data}", "device=cpu")


@pytest.mark.slow
def test_thirty_kills_later_the_content_is_that_of_an_undisturbed_run(start: Start, tmp_path: Path) -> None:
    killed_at_moments(start, tmp_path, sorted(random.Random(0).choices(range(UTTERANCES), k=30)))


@pytest.mark.slow
def test_thirty_kills_between_batches_of_many_do_not_change_a_byte(start: Start, tmp_path: Path) -> None:
    moments = sorted(random.Random(1).choices(range(UTTERANCES), k=30))
    killed_at_moments(start, tmp_path, moments, "data=gpu", "device=cpu", "data.batch_size=8")


@pytest.mark.slow
def test_a_second_run_in_one_folder_is_refused_while_the_first_one_lasts(start: Start, tmp_path: Path) -> None:
    first = start("out")
    wait_for_embeddings(tmp_path / "out", 1, first)
    first.send_signal(signal.SIGSTOP)
    second = start("out")
    _, told = second.communicate(timeout=60)
    assert second.returncode == 2
    assert "another run works there" in told and "Traceback" not in told
    first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 1
    assert len(embeddings(tmp_path / "out")) == UTTERANCES

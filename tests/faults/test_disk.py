"""A disk that fills up, breaks or turns read-only ends a run in one line; all that was saved is whole and kept."""

import errno
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Command, rows, speechlike, vectors, write_wav

from balr.data.vectors import flaw_of_vector
from balr.report import Tally

OneLine = Callable[[], str]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of 160 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "balr-test", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def whole_vectors(folder: Path) -> dict[str, bytes]:
    assert all(flaw_of_vector(path) is None for path in folder.rglob("*_emb.npy"))
    assert not list(folder.rglob(".*.tmp"))
    return vectors(folder)


@pytest.mark.parametrize(
    ("code", "good_writes"),
    [
        (errno.ENOSPC, 0),
        (errno.EIO, 4),
        *(pytest.param(errno.ENOSPC, count, marks=pytest.mark.slow) for count in range(1, 10)),
        *(pytest.param(code, 4, marks=pytest.mark.slow) for code in (errno.EDQUOT, errno.EROFS)),
    ],
)
def test_a_write_that_fails_ends_the_run_in_one_line_and_the_next_run_completes_it(
    balr: Command,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_error_line: OneLine,
    code: int,
    good_writes: int,
) -> None:
    written: list[int] = []

    def fsync(file: int) -> None:
        written.append(file)
        if len(written) > good_writes:
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert balr(f"input={corpus}", "save_dir=out") == 2
    line = one_error_line()
    assert os.strerror(code) in line and str(tmp_path / "out") in line
    saved = len(whole_vectors(tmp_path / "out"))
    assert good_writes < 2 or f"This run saved {saved} of 6 embeddings" in line
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert balr(f"input={corpus}", "save_dir=undisturbed") == 0
    assert whole_vectors(tmp_path / "out") == vectors(tmp_path / "undisturbed")
    assert len(rows(tmp_path / "out" / "metadata.csv")) == 6


def test_a_full_disk_ends_the_run_in_one_line_and_room_lets_it_go_on(
    balr: Command, tmp_path: Path, small_disk: Path, one_error_line: OneLine
) -> None:
    for number in range(45):
        write_wav(tmp_path / "corpus" / f"{number:02}.wav", speechlike(0.5 + 0.01 * number, seed=number))
    assert balr("input=corpus", f"save_dir={small_disk}/out") == 2
    line = one_error_line()
    saved = len(whole_vectors(small_disk / "out"))
    assert 0 < saved < 45
    assert "No space left on device" in line and f"This run saved {saved} of 45 embeddings" in line
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    assert balr("input=corpus", f"save_dir={small_disk}/out") == 0
    assert len(whole_vectors(small_disk / "out")) == len(rows(small_disk / "out" / "metadata.csv")) == 45


def test_a_log_that_finds_no_room_stops_no_run(
    balr: Command,
    corpus: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    counted = Tally.embedded

    def embedded(self: Tally, audio_seconds: float) -> None:
        counted(self, audio_seconds)
        with suppress(OSError):
            (small_disk / "full").write_bytes(bytes(1 << 20))
        logging.getLogger("balr").info("a long line: %s", "x" * 10_000)

    monkeypatch.setattr(Tally, "embedded", embedded)
    assert balr(f"input={corpus}", "save_dir=out", f"hydra.run.dir={small_disk}/run") == 0
    told = capsys.readouterr().err
    assert "embedded       6" in told and "Logging error" not in told and "Traceback" not in told


def test_a_read_only_disk_is_told_before_anything_is_loaded(
    balr: Command, corpus: Path, small_disk: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert balr(f"input={corpus}", f"save_dir={small_disk}/out") == 0
    capsys.readouterr()
    before = vectors(small_disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert balr(f"input={corpus}", f"save_dir={small_disk}/out", "force=true") == 2
    assert vectors(small_disk / "out") == before
    assert "Read-only file system; choose another save_dir" in one_error_line()

"""A disk that fills up, breaks or turns read-only ends a run in one line; all that was saved is whole and kept."""

import errno
import logging
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, embeddings, rows, speechlike, write_wav

from balr import load_embeddings
from balr.main import main
from balr.records import Utterance
from balr.runs.progress import Tally
from balr.stores.commit_log import CommitLog
from balr.stores.embedding_files import read_usable

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


def whole_embeddings(folder: Path) -> dict[str, bytes]:
    for path in folder.rglob("*_emb.npy"):
        read_usable(path)
    assert not list(folder.rglob("*.tmp"))
    return embeddings(folder)


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        (errno.ENOSPC, "run.json"),
        (errno.EIO, "utt3_emb.npy"),
        *(pytest.param(errno.ENOSPC, f"utt{number}_emb", marks=pytest.mark.slow) for number in range(6)),
        *(pytest.param(errno.ENOSPC, name, marks=pytest.mark.slow) for name in ("durations.csv", "metadata.csv")),
        *(pytest.param(code, "utt4_emb", marks=pytest.mark.slow) for code in (errno.EDQUOT, errno.EROFS)),
    ],
)
def test_a_write_that_fails_ends_the_run_in_one_line_and_the_next_run_completes_it(
    balr: Command,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_error_line: OneLine,
    code: int,
    refused: str,
) -> None:
    def fsync(file: int) -> None:
        if refused in Path(f"/proc/self/fd/{file}").readlink().name:
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert balr(f"input={corpus}", "save_dir=out") == 2
    line = one_error_line()
    assert os.strerror(code) in line and str(tmp_path / "out") in line
    if "_emb" in refused:
        saved = len(rows(tmp_path / "out" / "metadata.csv")) if (tmp_path / "out" / "metadata.csv").exists() else 0
        assert f"This run saved {saved} of 6 utterances" in line
        assert saved <= len(whole_embeddings(tmp_path / "out")) < 6
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert balr(f"input={corpus}", "save_dir=undisturbed") == 0
    assert whole_embeddings(tmp_path / "out") == embeddings(tmp_path / "undisturbed")
    assert len(rows(tmp_path / "out" / "metadata.csv")) == 6


@pytest.mark.parametrize("store", ["parquet", pytest.param("kaldi", marks=pytest.mark.slow)])
def test_a_full_disk_costs_nothing_that_a_store_of_large_files_has_saved(
    balr: Command, tmp_path: Path, small_disk: Path, one_error_line: OneLine, store: str
) -> None:
    subprocess.run(["mount", "-o", "remount,size=24k", str(small_disk)], check=True)
    for number in range(45):
        write_wav(tmp_path / "corpus" / f"{number:02}.wav", speechlike(0.5 + 0.01 * number, seed=number))
    assert balr("input=corpus", f"save_dir={small_disk}/out", f"store={store}") == 2
    assert "No space left on device" in one_error_line()
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    assert balr("input=corpus", f"save_dir={small_disk}/out", f"store={store}") == 0
    assert balr("input=corpus", "save_dir=undisturbed", f"store={store}") == 0
    (ids, found, _), (other_ids, expected, _) = (load_embeddings(f) for f in (small_disk / "out", Path("undisturbed")))
    assert len(ids) == 45 and sorted(ids) == sorted(other_ids)
    assert (found[np.argsort(ids)] == expected[np.argsort(other_ids)]).all()


def test_a_full_disk_ends_the_run_in_one_line_and_room_lets_it_go_on(
    balr: Command, tmp_path: Path, small_disk: Path, one_error_line: OneLine
) -> None:
    for number in range(45):
        write_wav(tmp_path / "corpus" / f"{number:02}.wav", speechlike(0.5 + 0.01 * number, seed=number))
    assert balr("input=corpus", f"save_dir={small_disk}/out") == 2
    line = one_error_line()
    whole_embeddings(small_disk / "out")
    saved = len(list(CommitLog(small_disk / "out" / "metadata.csv", ["id"]).read()))
    assert 0 < saved < 45
    assert (
        "No space left on device" in line
        and int(re.findall(r"This run saved (\d+) of 45 utterances", line)[0]) <= saved
    )
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    assert balr("input=corpus", f"save_dir={small_disk}/out") == 0
    assert len(whole_embeddings(small_disk / "out")) == len(rows(small_disk / "out" / "metadata.csv")) == 45


def test_a_log_that_finds_no_room_stops_no_run(
    balr: Command,
    corpus: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    counted = Tally.embedded

    def embedded(self: Tally, utterance: Utterance, audio_seconds: float) -> None:
        counted(self, utterance, audio_seconds)
        with suppress(OSError):
            (small_disk / "full").write_bytes(bytes(1 << 20))
        logging.getLogger("balr").info("a long line: %s", "x" * 10_000)

    monkeypatch.setattr(Tally, "embedded", embedded)
    assert balr(f"input={corpus}", "save_dir=out", f"hydra.run.dir={small_disk}/run") == 0
    told = capsys.readouterr().err
    assert "embedded       6" in told and "Logging error" not in told and "Traceback" not in told


def test_a_name_that_a_disk_refuses_costs_its_utterance_alone(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def refuse(path: str, target: str) -> None:
        if str(target).endswith("utt3_emb.npy"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(target))
        replace(path, target)

    monkeypatch.setattr(os, "replace", refuse)
    for force in ("false", "true"):
        assert balr(f"input={corpus}", "save_dir=out", f"force={force}") == 1
        (failure,) = rows(tmp_path / "out" / "failures.csv")
        assert failure["stage"] == "write" and "Invalid argument" in failure["reason"]
        assert len(embeddings(tmp_path / "out")) == len(rows(tmp_path / "out" / "metadata.csv")) == 5


def test_a_flush_that_is_refused_ends_the_run_all_the_same(
    balr: Command, corpus: Path, monkeypatch: pytest.MonkeyPatch, one_error_line: OneLine
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    assert balr(f"input={corpus}", "save_dir=out") == 2
    assert "run.json: cannot be written: Invalid argument" in one_error_line()


@pytest.mark.parametrize("force", ["false", "true"])
def test_a_file_where_a_folder_should_be_costs_the_utterances_below_it(
    balr: Command, corpus: Path, tmp_path: Path, force: str
) -> None:
    (tmp_path / "out" / "spk1" / "utt1_emb.npy").mkdir(parents=True)
    (tmp_path / "out" / "spk0").write_text("a file")
    assert balr(f"input={corpus}", "save_dir=out", f"force={force}") == 1
    assert len(rows(tmp_path / "out" / "failures.csv")) == 4
    assert len(rows(tmp_path / "out" / "metadata.csv")) == 2


def test_a_working_folder_without_room_is_told_with_the_way_out(
    corpus: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, one_error_line: OneLine
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    monkeypatch.chdir(small_disk)
    assert main([f"input={corpus}", f"save_dir={corpus.parent}/out"]) == 2
    line = one_error_line()
    assert "outputs: Read-only file system; hydra.run.dir=DIR puts config and log" in line
    monkeypatch.chdir(corpus)


def test_a_read_only_disk_is_told_before_anything_is_loaded(
    balr: Command, corpus: Path, small_disk: Path, one_error_line: OneLine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert balr(f"input={corpus}", f"save_dir={small_disk}/out") == 0
    capsys.readouterr()
    before = embeddings(small_disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert balr(f"input={corpus}", f"save_dir={small_disk}/out", "force=true") == 2
    assert embeddings(small_disk / "out") == before
    assert "Read-only file system; choose another save_dir" in one_error_line()

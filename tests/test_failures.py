"""Failures are listed as they happen, tried again at the next run, and decide the exit code as asked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Command, embeddings, rows, speechlike, write_wav

from balr.data.corpus import Corpus
from balr.records import Failure
from balr.runs.failures import FailureLog
from balr.runs.summary import Summary


@pytest.fixture
def two_bad(corpus: Path) -> Path:
    for name in ("bad0.wav", "bad1.wav"):
        (corpus / name).write_text("no audio")
    return corpus


def test_as_many_failures_as_said_are_no_failure_of_the_run(balr: Command, two_bad: Path, tmp_path: Path) -> None:
    assert balr(f"input={two_bad}", "save_dir=out", "max_failures=25%") == 0
    assert [row["id"] for row in rows(tmp_path / "out" / "failures.csv")] == ["bad0.wav", "bad1.wav"]


@pytest.mark.parametrize(
    ("most", "is_tolerated"),
    [("0", False), ("1", False), ("2", True), ("24%", False), ("25%", True), ("100%", True), ("0.5%", False)],
)
def test_a_number_or_a_share_of_all_utterances_may_fail_where_all_were_reached(most: str, is_tolerated: bool) -> None:
    failures = (Failure("x", "x.wav", "decode", "bad"),) * 2
    whole = Summary(8, 5, 1, 0, failures, 0, audio_seconds=9.0, wall_seconds=1.0, embeddings_in="out", lists=None)
    assert whole.is_tolerated(most) is is_tolerated
    assert not replace(whole, embedded=4).is_tolerated(most)


@pytest.mark.parametrize("most", ["-1", "many", "1.5", "%", "1 %"])
def test_what_is_no_number_or_share_is_refused(
    balr: Command, corpus: Path, one_error_line: Callable[[], str], most: str
) -> None:
    assert balr(f"input={corpus}", f"max_failures='{most}'") == 2
    assert "must be a number of utterances, or a share such as 1%" in one_error_line()


def test_the_first_failure_ends_the_run_in_order_where_asked(
    balr: Command, two_bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bad0.wav", "bad1.wav"):  # of unknown length, so that they come first
        assert (two_bad / name).exists()
    assert balr(f"input={two_bad}", "save_dir=out", "fail_fast=true", "max_failures=5") == 1
    told = capsys.readouterr().err
    assert "not reached" in told and "Traceback" not in told
    there = embeddings(tmp_path / "out")
    assert len(there) < 6 and len(rows(tmp_path / "out" / "metadata.csv")) == len(there)
    assert 1 <= len(rows(tmp_path / "out" / "failures.csv")) <= 2
    assert balr(f"input={two_bad}", "save_dir=out") == 1
    assert len(embeddings(tmp_path / "out")) == 6 and len(rows(tmp_path / "out" / "failures.csv")) == 2


def test_a_failure_is_tried_again_and_leaves_the_list_when_it_is_mended(
    balr: Command, two_bad: Path, tmp_path: Path
) -> None:
    assert balr(f"input={two_bad}", "save_dir=out") == 1
    write_wav(two_bad / "bad0.wav", speechlike(1.0))
    assert balr(f"input={two_bad}", "save_dir=out") == 1
    assert [row["id"] for row in rows(tmp_path / "out" / "failures.csv")] == ["bad1.wav"]
    write_wav(two_bad / "bad1.wav", speechlike(1.0))
    assert balr(f"input={two_bad}", "save_dir=out") == 0
    assert not (tmp_path / "out" / "failures.csv").exists()


def test_a_failure_is_in_the_list_at_once_and_the_list_ends_in_the_order_of_the_corpus(
    corpus: Path, tmp_path: Path
) -> None:
    utterances = Corpus.from_dir(corpus).utterances
    log = FailureLog(tmp_path, utterances)
    for count, number in enumerate((3, 0, 2), start=1):
        log.add(Failure(utterances[number].id, str(utterances[number].audio), "decode", "damaged"))
        assert len(rows(tmp_path / "failures.csv")) == count
    again = FailureLog(tmp_path, utterances)
    assert again.ids == {utterances[number].id for number in (0, 2, 3)}
    again.finish(completed={utterances[0].id})
    assert [row["id"] for row in rows(tmp_path / "failures.csv")] == [utterances[number].id for number in (2, 3)]
    again.finish(completed={utterance.id for utterance in utterances})
    assert not (tmp_path / "failures.csv").exists()


@pytest.mark.parametrize("total", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_tenth_of_bad_files_costs_that_tenth(balr: Command, tmp_path: Path, total: int) -> None:
    folder = tmp_path / "many"
    kinds = [b"", b"no audio", write_wav(tmp_path / "a.wav", speechlike(0.4)).read_bytes()[:1000]]
    good = [write_wav(tmp_path / f"{n}.wav", speechlike(0.3 + 0.01 * n, seed=n)).read_bytes() for n in range(9)]
    bad = set()
    for number in range(total):
        path = folder / f"{number % 20:02}" / f"{number:04}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        is_bad = number % 10 == 7
        path.write_bytes(kinds[number // 10 % 3] if is_bad else good[number % 9])
        bad |= {path.relative_to(folder).as_posix()} if is_bad else set()
    assert balr(f"input={folder}", "save_dir=out", "data.num_workers=1", "data.concurrent_batches=2") == 1
    failed = [row["id"] for row in rows(tmp_path / "out" / "failures.csv")]
    assert sorted(failed) == sorted(bad) and len(bad) == total // 10
    listed = [row["id"] for row in rows(tmp_path / "out" / "metadata.csv")]
    assert len(listed) == len(set(listed)) == len(embeddings(tmp_path / "out")) == total * 9 // 10
    assert not set(listed) & bad
    assert balr(f"input={folder}", "save_dir=out", "max_failures=10%") == 0

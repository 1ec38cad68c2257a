"""A run that was cut short is completed in the very batches of an undisturbed one."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import Command, break_off_after, embeddings, interrupt_at, rows, speechlike, write_wav

from balr.config import DataConfig
from balr.data.corpus import Corpus
from balr.data.headers import HeaderCache
from balr.data.planning import plan_corpus
from balr.errors import OutputError
from balr.records import Embedded, Failure
from balr.stores.base import Store
from balr.stores.files import FilesStore
from balr.stores.kaldi import KaldiStore
from balr.stores.parquet import ParquetStore

BATCHES = ("data.batch_size=4", "data.max_batch_seconds=60")


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """Return a corpus of twelve utterances of nearly equal length and one file that is no audio."""
    for number in range(12):
        write_wav(tmp_path / "alike" / f"{number:02}.wav", speechlike(1.0 + 0.003 * number, seed=number))
    (tmp_path / "alike" / "text.wav").write_text("no audio")
    return tmp_path / "alike"


@pytest.mark.parametrize(
    "count", [4, 6, *(pytest.param(count, marks=pytest.mark.slow) for count in (0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12))]
)
def test_a_run_that_was_cut_within_a_batch_ends_with_the_bytes_of_an_undisturbed_one(
    balr: Command,
    alike: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count: int,
) -> None:
    with monkeypatch.context() as patch:
        break_off_after(patch, count)
        assert balr(f"input={alike}", "save_dir=out", *BATCHES) == (2 if count < 12 else 1)
    assert count == 0 or len(rows(tmp_path / "out" / "metadata.csv")) == count
    capsys.readouterr()
    assert balr(f"input={alike}", "save_dir=out", *BATCHES) == 1
    counts = re.findall(r"  (embedded|already there|failed) +(\d+)", capsys.readouterr().err)
    assert counts == [("embedded", str(12 - count)), ("already there", str(count)), ("failed", "1")], "they add up"
    assert balr(f"input={alike}", "save_dir=undisturbed", *BATCHES) == 1
    assert embeddings(tmp_path / "out") == embeddings(tmp_path / "undisturbed")
    for name in ("metadata.csv", "failures.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


@pytest.mark.parametrize("store", [FilesStore, KaldiStore, ParquetStore])
def test_what_is_completed_of_a_batch_that_was_cut_short_is_not_written_again(
    balr: Command, alike: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: type[Store]
) -> None:
    whole, written = store.write, list[str]()

    def noting(self: Store, batch: Sequence[Embedded]) -> list[Failure]:
        written.extend(one.utterance.id for one in batch)
        return whole(self, batch)

    def cutting(self: Store, batch: Sequence[Embedded]) -> list[Failure]:
        noting(self, batch[:2])
        raise OutputError("the disk is gone.")

    kind = f"store={store.__name__.removesuffix('Store').lower()}"
    for write, code in ((cutting, 2), (noting, 1)):
        monkeypatch.setattr(store, "write", write)
        assert balr(f"input={alike}", "save_dir=out", kind, *BATCHES) == code
    assert sorted(written) == [f"{number:02}.wav" for number in range(12)]


def test_a_plan_for_what_is_left_keeps_its_batches(tmp_path: Path) -> None:
    for number in range(8):
        write_wav(tmp_path / f"{number}.wav", speechlike(1.0 + 0.001 * number))
    corpus = Corpus.from_dir(tmp_path)
    plan = plan_corpus(
        corpus,
        DataConfig(),
        sample_rate_hz=16_000,
        batch_size=4,
        max_batch_seconds=60.0,
        isolated=False,
        cache=HeaderCache(),
    )
    first, second = plan.batches
    ids = [corpus.utterances[index].id for index in (*first, *second)]
    assert plan.left(corpus, set(), ()).batches == plan.batches
    assert plan.left(corpus, set(ids[:4]), ()).batches == (second,)
    assert plan.left(corpus, set(ids[:5]), ()).batches == (second,), "cut short, so computed as a whole"
    assert plan.left(corpus, set(ids) - {ids[1]}, {ids[1]}).batches == ((first[1],),), "failed, so tried alone"
    assert plan.left(corpus, set(ids[2:]), {ids[1]}).batches == (first,)
    assert plan.left(corpus, set(ids), ()).batches == ()


def test_a_failure_is_listed_before_its_batch_is(
    balr: Command, alike: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, seen = FilesStore.write, []

    def noting(self: FilesStore, batch: Sequence[Embedded]) -> list[Failure]:
        seen.append((tmp_path / "out" / "failures.csv").exists())
        return whole(self, batch)

    monkeypatch.setattr(FilesStore, "write", noting)
    for path in sorted(alike.glob("*.wav"))[3:]:
        path.unlink()
    (alike / "cut.wav").write_bytes((alike / "00.wav").read_bytes()[:20_000])
    assert balr(f"input={alike}", "save_dir=out", *BATCHES) == 1
    assert seen == [True]


@pytest.mark.parametrize("window", [2, 4])
@pytest.mark.parametrize("loading", ["data=serial", "data=cpu"])
def test_a_corpus_in_windows_gives_the_embeddings_of_one_plan_also_after_a_stop(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, loading: str
) -> None:
    assert balr(f"input={corpus}", "save_dir=whole", loading) == 0
    monkeypatch.setattr("balr.data.planning._UTTERANCES_PER_WINDOW", window)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert balr(f"input={corpus}", "save_dir=out", loading) == 130
    assert balr(f"input={corpus}", "save_dir=out", loading) == 0
    assert embeddings(tmp_path / "out") == embeddings(tmp_path / "whole")
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["runs"][-1]
    assert facts["counts"]["embedded"] + facts["counts"]["already_there"] == 6


def test_a_forced_run_that_was_stopped_goes_on_where_it_stopped(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    povey = "embeddings.model.features.window_type=povey"
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert balr(f"input={corpus}", "save_dir=alone", povey) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert balr(f"input={corpus}", "save_dir=out", povey, "force=true") == 130
    stopped = embeddings(tmp_path / "out")
    assert len(stopped) == 3 and stopped.items() <= embeddings(tmp_path / "alone").items(), "no model's but this one's"
    capsys.readouterr()
    assert balr(f"input={corpus}", "save_dir=out", povey, "force=true") == 0
    assert "6 utterances in" in (told := capsys.readouterr().err) and "3 already there" in told
    assert embeddings(tmp_path / "out") == embeddings(tmp_path / "alone")
    assert balr(f"input={corpus}", "save_dir=out", povey, "force=true") == 0
    assert "0 already there" in capsys.readouterr().err, "the next one starts over"


def test_a_forced_run_that_was_stopped_goes_on_without_force_and_as_no_other_model(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    povey = "embeddings.model.features.window_type=povey"
    assert balr(f"input={corpus}", "save_dir=out") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert balr(f"input={corpus}", "save_dir=out", povey, "force=true") == 130
    assert balr(f"input={corpus}", "save_dir=out") == 2
    assert balr(f"input={corpus}", "save_dir=out", povey) == 0
    assert balr(f"input={corpus}", "save_dir=alone", povey) == 0
    assert embeddings(tmp_path / "out") == embeddings(tmp_path / "alone")

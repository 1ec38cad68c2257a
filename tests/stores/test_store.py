"""What every store promises: an embedding exists when a manifest lists it, whatever happened in between."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import rows
from example_embeddings import DIM, UTTERANCES, embedded

from balr.errors import InputError, OutputError
from balr.records import WHOLE_CORPUS, Embedded, Shard, Utterance
from balr.stores.base import Store, StoredCorpus
from balr.stores.files import FilesStore
from balr.stores.kaldi import KaldiStore
from balr.stores.parquet import ParquetStore
from balr.stores.reading import load_embeddings, stored

Open = Callable[..., Store]
STORES: dict[str, tuple[type[Store], dict[str, Any]]] = {
    "npy": (FilesStore, {"format": "npy"}),
    "txt": (FilesStore, {"format": "txt"}),
    "kaldi": (KaldiStore, {}),
    "parquet": (ParquetStore, {"rows_per_part": 8192}),
    "parquet_of_one_row": (ParquetStore, {"rows_per_part": 1}),
}


def opener(kind: str, folder: Path) -> Open:
    folder.mkdir(exist_ok=True)
    cls, settings = STORES[kind]

    def opened(*, shard: Shard = WHOLE_CORPUS, utterances: list[Utterance] = UTTERANCES) -> Store:
        constructor: Any = cls
        corpus = StoredCorpus(folder, utterances, Path("/corpus"), shard, DIM)
        store: Store = constructor(corpus, **settings)
        return store

    return opened


@pytest.fixture(params=STORES)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return opener(request.param, tmp_path / "out")


@pytest.fixture(params=["npy", "txt"])
def open_files(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return opener(request.param, tmp_path / "out")


@pytest.fixture(params=["npy", "kaldi"])
def open_listed(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return opener(request.param, tmp_path / "out")


def check_holds(open_store: Open, folder: Path, *numbers: int) -> None:
    """Check that a store, and its folder read without one, hold these embeddings once, bit for bit."""
    store = open_store()
    wanted = {one.utterance.id: one.embedding for one in embedded(*numbers)}
    assert store.completed() == wanted.keys()
    pairs = list(store.read())
    ids, matrix, table = load_embeddings(folder)
    assert sorted(id_ for id_, _ in pairs) == sorted(ids) == sorted(wanted)
    for found in (dict(pairs), dict(zip(ids, matrix, strict=True))):
        assert all(np.array_equal(found[id_], embedding) for id_, embedding in wanted.items())
    assert table["speaker"].to_pylist() == [f"s{int(id_[1:]) % 2}" for id_ in ids]
    assert table["audio"].to_pylist() == [f"/corpus/s{int(id_[1:]) % 2}/{id_[1:]}.wav" for id_ in ids]


def test_what_was_written_is_completed_and_read_back_bit_for_bit(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    assert store.completed() == set() and store.write(embedded(4, 1)) == [] and store.write(embedded(0)) == []
    assert sorted(id_ for id_, _ in store.read()) == ["u0", "u1", "u4"]
    store.close()
    check_holds(open_store, tmp_path / "out", 0, 1, 4)
    assert [id_ for id_, _ in open_store().read(["u4"])] == ["u4"]


def test_a_store_that_was_never_closed_keeps_what_was_written(open_store: Open, tmp_path: Path) -> None:
    open_store().write(embedded(3, 2))
    again = open_store()
    assert again.completed() == {"u3", "u2"}
    again.write(embedded(0))
    last = open_store()
    assert last.completed() == {"u3", "u2", "u0"}
    last.close()
    check_holds(open_store, tmp_path / "out", 0, 2, 3)


def test_closing_a_finished_store_again_changes_no_byte(open_store: Open, tmp_path: Path) -> None:
    for _ in range(2):
        store = open_store()
        store.write(embedded(5, 3)) if not store.completed() else None
        store.close()
        content = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    store = open_store()
    store.close()
    assert content == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_shards_write_side_by_side_and_the_store_of_the_whole_takes_all_of_them(
    open_store: Open, tmp_path: Path
) -> None:
    first, second = (open_store(shard=Shard(index, 2)) for index in range(2))
    first.write(embedded(0, 2))
    second.write(embedded(1))
    first.write(embedded(4))
    for store in (first, second):
        store.close()
    assert open_store(shard=Shard(1, 3)).completed() == {"u0", "u1", "u2", "u4"}
    open_store().close()
    check_holds(open_store, tmp_path / "out", 0, 1, 2, 4)
    assert not list((tmp_path / "out").glob("metadata.*-of-*.csv"))
    later = open_store(shard=Shard(0, 3))
    later.write(embedded(6))
    later.close()
    open_store().close()
    check_holds(open_store, tmp_path / "out", 0, 1, 2, 4, 6)


def test_a_shard_that_was_killed_goes_on_under_another_count(open_store: Open, tmp_path: Path) -> None:
    open_store(shard=Shard(0, 2)).write(embedded(0, 2))
    later = open_store(shard=Shard(0, 5))
    later.write(embedded(*(n for n in (0, 2) if f"u{n}" not in later.completed()), 3))
    later.close()
    whole = open_store()
    assert whole.completed() == {"u0", "u2", "u3"}
    whole.close()
    check_holds(open_store, tmp_path / "out", 0, 2, 3)


def test_what_a_killed_shard_and_a_killed_run_of_the_whole_left_is_counted_read_and_kept(
    open_store: Open, tmp_path: Path
) -> None:
    open_store().write(embedded(5))
    open_store(shard=Shard(0, 2)).write(embedded(0))
    assert open_store(shard=Shard(1, 3)).completed() == {"u0", "u5"}
    assert sorted(load_embeddings(tmp_path / "out")[0]) == ["u0", "u5"]
    assert sorted(row["id"] for row, one in stored(tmp_path / "out") if not isinstance(one, Exception)) == ["u0", "u5"]
    open_store().close()
    check_holds(open_store, tmp_path / "out", 0, 5)


def test_what_a_run_of_the_whole_made_again_counts_not_what_a_shard_lists(open_files: Open, tmp_path: Path) -> None:
    open_files(shard=Shard(0, 2)).write(embedded(0))
    next((tmp_path / "out").rglob("0_emb.*")).unlink()
    (again,) = embedded(1)
    open_files().write([replace(again, utterance=UTTERANCES[0])])
    assert np.array_equal(dict(open_files().read())["u0"], again.embedding)


def test_lists_of_different_columns_are_read_together(open_listed: Open, tmp_path: Path) -> None:
    first = open_listed(shard=Shard(0, 2))
    first.write(embedded(0))
    first.close()
    wider = [replace(one, extra={**one.extra, "accent": "no"}) for one in UTTERANCES]
    second = open_listed(shard=Shard(1, 2), utterances=wider)
    second.write([replace(one, utterance=wider[1]) for one in embedded(1)])
    second.close()
    ids, _, table = load_embeddings(tmp_path / "out")
    assert ids == ["u0", "u1"] and table["note"].to_pylist() == ["n", "n"]
    assert [cell or "" for cell in table["accent"].to_pylist()] == ["", "no"]


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_a_disk_that_refuses_a_flush_is_an_error_and_the_next_run_goes_on(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    open_store().write(embedded(0))
    flushes: list[int] = []

    def fsync(file: int) -> None:
        flushes.append(file)
        if len(flushes) == refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        store = open_store()
        with pytest.raises(OutputError, match="No space left on device"):
            for number in range(1, 7):
                store.write(embedded(number))
    store = open_store()
    assert "u0" in store.completed()
    for number in range(7):
        if f"u{number}" not in store.completed():
            store.write(embedded(number))
    store.close()
    check_holds(open_store, tmp_path / "out", *range(7))


def test_a_closed_manifest_is_in_the_order_of_the_corpus(open_listed: Open, tmp_path: Path) -> None:
    store = open_listed()
    store.write(embedded(5, 3))
    store.write(embedded(6, 0))
    store.close()
    listed = rows(tmp_path / "out" / "metadata.csv")
    assert [row["id"] for row in listed] == ["u0", "u3", "u5", "u6"]
    assert all(row["speaker"] == f"s{row['id'][1:]}"[:1] + str(int(row["id"][1:]) % 2) for row in listed)
    assert all(row["note"] == "n" and len(row["crc32"]) == 8 for row in listed)


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_row_does_not_count(open_listed: Open, tmp_path: Path, cut: int) -> None:
    open_listed().write(embedded(0))
    manifest = tmp_path / "out" / "metadata.csv"
    whole = manifest.stat().st_size
    open_listed().write(embedded(1))
    os.truncate(manifest, min(whole + cut, manifest.stat().st_size - 1))
    assert open_listed().completed() == {"u0"}
    store = open_listed()
    store.write(embedded(1))
    store.close()
    assert open_listed().completed() == {"u0", "u1"}


def test_what_is_unlisted_is_overwritten(open_files: Open, tmp_path: Path) -> None:
    open_files().write(embedded(0))
    (tmp_path / "out" / "metadata.csv").unlink()
    store = open_files()
    assert store.completed() == set()
    store.write([Embedded(UTTERANCES[0], np.ones(DIM, np.float32), 1.0)])
    assert np.array_equal(dict(store.read())["u0"], np.ones(DIM))


def test_a_listed_file_that_is_gone_or_truncated_is_not_completed(
    open_files: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_files().write(embedded(0, 1, 2))
    found = sorted((tmp_path / "out").rglob("*_emb.*"))
    found[0].unlink()
    os.truncate(found[1], 0)
    assert len(open_files().completed()) == 1
    assert "2 embeddings are gone or truncated and are made again" in caplog.text


def test_a_cleared_store_is_empty_at_once_and_after_a_kill(open_store: Open, tmp_path: Path) -> None:
    open_store().write(embedded(0, 1))
    store = open_store()
    store.clear()
    assert store.completed() == set() == open_store().completed()
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} <= {"metadata.csv"}
    store.write(embedded(3))
    store.close()
    check_holds(open_store, tmp_path / "out", 3)


def test_ids_that_the_corpus_does_not_list_are_refused(open_store: Open) -> None:
    open_store().write(embedded(0))
    with pytest.raises(OutputError, match="1 embeddings of utterances that this corpus does not list, first 'u0'"):
        open_store(utterances=UTTERANCES[1:]).completed()


def test_an_impossible_place_costs_its_utterance_alone(open_files: Open, tmp_path: Path) -> None:
    (tmp_path / "out" / "s1").write_text("a file in the place of a folder")
    failures = open_files().write(embedded(0, 1, 2))
    assert [failure.id for failure in failures] == ["u1"] and failures[0].stage == "write"
    assert open_files().completed() == {"u0", "u2"}


def test_a_folder_that_vanishes_takes_no_more_embeddings(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    store.write(embedded(0))
    if any((tmp_path / "out").glob("part-*.parquet")):
        return  # nothing waits, and the next part is one of its own: the lock tells at the end
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(OutputError, match="No such file"):
        store.write(embedded(1))


def test_names_that_are_not_utf_8_are_kept_or_refused_at_once(open_store: Open, tmp_path: Path) -> None:
    odd = Utterance("caf\udce9", Path("/corpus/caf\udce9.wav"), "s\udce9")
    batch = [Embedded(odd, np.ones(DIM, np.float32), 1.0), *embedded(0)]
    try:
        store = open_store(utterances=[odd, UTTERANCES[0]])
    except InputError as error:
        assert "1 utterances with names that are not UTF-8" in str(error) and "parquet" in str(error)
        return
    assert store.write(batch) == []
    store.close()
    again = open_store(utterances=[odd, UTTERANCES[0]])
    assert again.completed() == {odd.id, "u0"} and dict(again.read())[odd.id].tolist() == [1.0] * DIM
    ids, matrix, table = load_embeddings(tmp_path / "out")
    assert ids == [odd.id, "u0"] and matrix[0].tolist() == [1.0] * DIM
    assert table["audio"][0].as_py() == "/corpus/caf\\xe9.wav"
    assert not any(isinstance(one, Exception) for _, one in stored(tmp_path / "out"))

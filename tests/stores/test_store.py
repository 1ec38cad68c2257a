"""What every store promises: an embedding exists when the manifest lists it, whatever happened in between."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import rows

from balr.errors import OutputError
from balr.records import Embedded, Utterance
from balr.stores.base import Store
from balr.stores.files import FilesStore
from balr.stores.folder import locked

COUNT, DIM = 7, 5
UTTERANCES = [
    Utterance(f"u{number}", Path(f"/corpus/s{number % 2}/{number}.wav"), f"s{number % 2}", extra={"note": "n"})
    for number in range(COUNT)
]
Open = Callable[[], Store]


@pytest.fixture(params=["npy", "txt"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    (tmp_path / "out").mkdir()

    def opened() -> FilesStore:
        return FilesStore(
            tmp_path / "out", UTTERANCES, root=Path("/corpus"), format=str(request.param), embedding_dim=DIM
        )

    return opened


def embedded(*numbers: int) -> list[Embedded]:
    return [
        Embedded(UTTERANCES[n], np.random.default_rng(n).standard_normal(DIM).astype(np.float32), 1.0) for n in numbers
    ]


def test_what_was_written_is_completed_and_read_back_bit_for_bit(open_store: Open) -> None:
    store = open_store()
    assert store.completed() == set() and store.write(embedded(4, 1)) == [] and store.write(embedded(0)) == []
    store.close()
    again = open_store()
    assert again.completed() == {"u4", "u1", "u0"}
    found = dict(again.read())
    assert list(found) == ["u0", "u1", "u4"]
    assert all(np.array_equal(found[one.utterance.id], one.embedding) for one in embedded(0, 1, 4))
    assert [id_ for id_, _ in again.read(["u4"])] == ["u4"]


def test_a_store_that_was_never_closed_keeps_what_was_written(open_store: Open) -> None:
    open_store().write(embedded(3, 2))
    again = open_store()
    assert again.completed() == {"u3", "u2"}
    again.write(embedded(0))
    assert open_store().completed() == {"u3", "u2", "u0"}


def test_a_closed_manifest_is_in_the_order_of_the_corpus(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    store.write(embedded(5, 3))
    store.write(embedded(6, 0))
    store.close()
    listed = rows(tmp_path / "out" / "metadata.csv")
    assert [row["id"] for row in listed] == ["u0", "u3", "u5", "u6"]
    assert all(row["speaker"] == f"s{row['id'][1:]}"[:1] + str(int(row["id"][1:]) % 2) for row in listed)
    assert all(row["note"] == "n" and len(row["crc32"]) == 8 for row in listed)


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_row_does_not_count(open_store: Open, tmp_path: Path, cut: int) -> None:
    open_store().write(embedded(0))
    manifest = tmp_path / "out" / "metadata.csv"
    whole = manifest.stat().st_size
    open_store().write(embedded(1))
    os.truncate(manifest, min(whole + cut, manifest.stat().st_size - 1))
    assert open_store().completed() == {"u0"}
    store = open_store()
    store.write(embedded(1))
    store.close()
    assert open_store().completed() == {"u0", "u1"}


def test_what_is_unlisted_is_overwritten(open_store: Open, tmp_path: Path) -> None:
    open_store().write(embedded(0))
    (tmp_path / "out" / "metadata.csv").unlink()
    store = open_store()
    assert store.completed() == set()
    store.write([Embedded(UTTERANCES[0], np.ones(DIM, np.float32), 1.0)])
    assert np.array_equal(dict(store.read())["u0"], np.ones(DIM))


def test_a_listed_file_that_is_gone_or_truncated_is_not_completed(
    open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_store().write(embedded(0, 1, 2))
    found = sorted((tmp_path / "out").rglob("*_emb.*"))
    found[0].unlink()
    os.truncate(found[1], 0)
    assert len(open_store().completed()) == 1
    assert "2 embeddings are gone or truncated and are made again" in caplog.text


def test_a_cleared_store_is_empty_at_once_and_after_a_kill(open_store: Open, tmp_path: Path) -> None:
    open_store().write(embedded(0, 1))
    store = open_store()
    store.clear()
    assert store.completed() == set() == open_store().completed()
    assert not list((tmp_path / "out").rglob("*_emb.*"))


def test_ids_that_the_corpus_does_not_list_are_refused(open_store: Open, tmp_path: Path) -> None:
    open_store().write(embedded(0))
    with pytest.raises(OutputError, match="1 embeddings of utterances that this corpus does not list, first 'u0'"):
        FilesStore(tmp_path / "out", UTTERANCES[1:], root=Path("/corpus")).completed()


def test_an_impossible_place_costs_its_utterance_alone(open_store: Open, tmp_path: Path) -> None:
    (tmp_path / "out" / "s1").write_text("a file in the place of a folder")
    failures = open_store().write(embedded(0, 1, 2))
    assert [failure.id for failure in failures] == ["u1"] and failures[0].stage == "write"
    assert open_store().completed() == {"u0", "u2"}


def test_embeddings_that_vanish_while_a_run_works_are_reported(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    store.write(embedded(0, 1))
    next((tmp_path / "out").rglob("0_emb.*")).unlink()
    with pytest.raises(OutputError, match="1 of 2 embeddings vanished while the run worked, first 'u0'"):
        store.close()
    assert open_store().completed() == {"u1"}


def test_a_folder_is_locked_for_one_run_and_leaves_nothing_where_nothing_was_written(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "out"):
        with pytest.raises(OutputError, match="another run works there"), locked(tmp_path / "new" / "out"):
            pass
        assert (tmp_path / "new" / "out").is_dir()
    assert not (tmp_path / "new").exists()

"""The files of an evaluation: names as they are, nothing of another evaluation, and one line where there is no room."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq
import pytest
from evaluation.scored import judged, speaker_embeddings, write_store

from balr.atomic import whole_file
from balr.errors import OutputError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", *speaker_embeddings())


def test_an_id_that_is_not_utf8_is_escaped_in_parquet_and_as_it_is_in_csv(tmp_path: Path) -> None:
    ids, matrix = speaker_embeddings(speakers=3, each=2)
    store = write_store(tmp_path / "store", [id_.replace("s0", "s\udce9") for id_ in ids], matrix)
    judged(store, scores="parquet", bootstrap=0)
    folder = store / "evaluation" / "all-pairs"
    assert pq.read_table(folder / "scores.parquet")["enrollment"][0].as_py() == "s\\xe9/0"
    judged(store, scores="csv", bootstrap=0)
    assert b"\ns\xe9/0," in (folder / "scores.csv").read_bytes()


@pytest.mark.parametrize("name", ["curves.json", "scores.csv", "evaluation.json"])
def test_an_evaluation_that_was_killed_leaves_no_numbers_of_another(
    name: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, *_: object) -> AbstractContextManager[BinaryIO]:
        if path.name == name:
            raise KeyboardInterrupt
        return whole_file(path)

    judged(store, bootstrap=0)
    monkeypatch.setattr("balr.evaluation.results.whole_file", write)
    monkeypatch.setattr("balr.evaluation.results.write_csv", write)
    with pytest.raises(KeyboardInterrupt):
        judged(store, bootstrap=0, mean="none")
    assert not (store / "evaluation/all-pairs/evaluation.json").exists()


def test_results_that_cannot_be_written_are_one_line(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/x"):
        judged(store, out=str(tmp_path / "file" / "x"))

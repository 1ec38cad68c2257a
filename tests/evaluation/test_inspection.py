"""What is planted in a corpus is found: wrong labels, duplicates, odd recordings."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import rows
from evaluation.scored import speaker_embeddings, write_store
from typer.testing import CliRunner

from balr.cli import app
from balr.data.corpus import Corpus
from balr.evaluation.inspection import Inspection, inspect
from balr.evaluation.source import Embeddings, read_embeddings
from balr.export import export

NO_SECONDS = np.full(48, np.nan)


def looked_at(
    ids: list[str], matrix: np.ndarray, seconds: np.ndarray = NO_SECONDS, speakers: list[str] | None = None
) -> Inspection:
    names = [id_.split("/")[0] for id_ in ids] if speakers is None else speakers
    table = pa.table({"audio": ids, "duration": pa.array(seconds)})
    return inspect(Embeddings(Path(), ids, matrix, names, table), mean=matrix.mean(axis=0))


def found(inspection: Inspection, kind: str) -> list[str]:
    return [one.id or one.speaker for one in inspection.suspects if one.kind == kind]


def test_a_clean_corpus_has_no_suspects_but_its_worst_speakers() -> None:
    inspection = looked_at(*speaker_embeddings(spread=0.2))
    assert {one.kind for one in inspection.suspects} <= {"speaker least like itself", "odd norm"}
    assert inspection.neighbour_accuracy == 1.0


def test_swapped_labels_are_the_first_suspects() -> None:
    ids, matrix = speaker_embeddings(spread=0.2)
    matrix[[0, 6]] = matrix[[6, 0]]  # one of s0 and one of s1
    inspection = looked_at(ids, matrix)
    assert sorted(found(inspection, "label error")) == ["s0/0", "s1/0"]
    others = {one.id: one.other_speaker for one in inspection.suspects if one.kind == "label error"}
    assert others == {"s0/0": "s1", "s1/0": "s0"}
    assert inspection.neighbour_accuracy == pytest.approx(46 / 48)


def test_a_label_that_is_wrong_for_a_whole_session_is_found_by_the_other_sessions() -> None:
    ids, matrix = speaker_embeddings(spread=0.2)
    ids = [f"{id_.split('/')[0]}/v{int(id_.split('/')[1]) // 2}/{id_.split('/')[1]}" for id_ in ids]
    matrix[[0, 1]] = matrix[[6, 7]]
    matrix[[0, 1]] += 0.01
    assert sorted(found(looked_at(ids, matrix), "label error")) == ["s0/v0/0", "s0/v0/1"]


def test_duplicates_are_pairs_listed_once() -> None:
    ids, matrix = speaker_embeddings()
    matrix[20] = 1.001 * (matrix[3] - matrix.mean(axis=0)) + matrix.mean(axis=0)
    duplicates = [one for one in looked_at(ids, matrix).suspects if one.kind == "duplicate"]
    assert [(one.id, one.other) for one in duplicates] == [("s0/3", "s3/2")]


def test_one_speaker_under_two_names_is_found() -> None:
    ids, matrix = speaker_embeddings(spread=0.2)
    random = np.random.default_rng(1)
    matrix[6:12] = matrix[0:6][random.permutation(6)] + 0.05 * random.normal(size=(6, matrix.shape[1]))
    alike = [one for one in looked_at(ids, matrix).suspects if one.kind == "speakers alike"]
    assert [(one.speaker, one.other_speaker) for one in alike] == [("s0", "s1")]


def test_a_speaker_whose_embeddings_cancel_out_is_like_no_other() -> None:
    random = np.random.default_rng(0)
    matrix = random.normal(size=(12, 16)).astype(np.float32)
    matrix[::2] = -matrix[1::2]
    matrix[2:] += 5  # of one direction, that of ones
    ids = [f"s{number // 2}/v{number % 2}/x" for number in range(12)]
    names = [id_.split("/")[0] for id_ in ids]
    found = inspect(Embeddings(Path(), ids, matrix, names, pa.table({"audio": ids})), mean=np.zeros(16, np.float32))
    assert "s0" not in {one.other_speaker for one in found.suspects}


def test_short_and_odd_recordings_are_listed() -> None:
    ids, matrix = speaker_embeddings(spread=0.2)
    seconds = np.random.default_rng(0).uniform(6, 9, len(ids))
    seconds[[1, 2]] = 1.0, 3_000.0
    matrix[4] = matrix.mean(axis=0) + 1e-3 * (matrix[4] - matrix.mean(axis=0))
    inspection = looked_at(ids, matrix, seconds)
    assert found(inspection, "short") == ["s0/1"] and set(found(inspection, "odd duration")) == {"s0/1", "s0/2"}
    assert "s0/4" in found(inspection, "odd norm")


def test_a_duration_that_is_no_number_is_unknown(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", *speaker_embeddings(), extra={"duration_seconds": "n/a"})
    assert np.isnan(read_embeddings(store).seconds).all()
    assert {one.duration_seconds for one in Corpus.from_path(store).utterances} == {None}
    assert export(store, tmp_path / "out", to="parquet") == 48


def test_a_sample_of_many_utterances_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balr.evaluation.inspection._MOST_QUERIES", 40)
    monkeypatch.setattr("balr.evaluation.inspection._SAMPLED_QUERIES", 30)
    assert looked_at(*speaker_embeddings(spread=0.2)).neighbour_accuracy == 1.0
    assert "a random 30 of 48" in caplog.text


def test_a_corpus_without_speakers_is_searched_for_duplicates_alone() -> None:
    ids, matrix = speaker_embeddings()
    inspection = looked_at(ids, matrix, speakers=[""] * len(ids))
    assert inspection.neighbour_accuracy is None
    assert not {"label error", "speakers alike"} & {one.kind for one in inspection.suspects}


def test_the_command_lists_suspects(tmp_path: Path) -> None:
    ids, matrix = speaker_embeddings(spread=0.2)
    matrix[[0, 6]] = matrix[[6, 0]]
    write_store(tmp_path / "store", ids, matrix)
    done = CliRunner().invoke(app, ["evaluate", "store", "--inspect"])
    assert done.exit_code == 0 and "label error" in done.stdout and "95.8%" in done.stdout
    listed = rows(tmp_path / "store" / "evaluation" / "suspects.csv")
    assert {row["id"] for row in listed if row["kind"] == "label error"} == {"s0/0", "s1/0"}

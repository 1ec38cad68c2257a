"""What balr stores opens as it is where embeddings are used."""

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import kaldiio
import numpy as np
import numpy.typing as npt
import pytest
from conftest import rows
from evaluation.scored import wespeaker_metrics
from example_embeddings import DIM, UTTERANCES, embedded
from sklearn.metrics.pairwise import cosine_similarity

from balr.config import EvaluationConfig
from balr.errors import InputError
from balr.evaluate import evaluate
from balr.records import Utterance
from balr.stores.base import StoredCorpus
from balr.stores.kaldi import KaldiStore
from balr.stores.parquet import ParquetStore

WANTED = {one.utterance.id: one.embedding for one in embedded(*range(7))}


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet" / "run.json").write_text('{"model": {}}')
    store = ParquetStore(StoredCorpus(tmp_path / "parquet", UTTERANCES, Path("/corpus")), rows_per_part=3)
    for number in range(7):
        store.write(embedded(number))
    store.close()
    assert len(list((tmp_path / "parquet").glob("part-*.parquet"))) == 3
    return tmp_path / "parquet"


@pytest.fixture
def kaldi(tmp_path: Path) -> Path:
    (tmp_path / "kaldi").mkdir()
    store = KaldiStore(StoredCorpus(tmp_path / "kaldi", UTTERANCES, Path("/corpus")))
    store.write(embedded(5, 1, 3))
    store.write(embedded(0, 2, 4, 6))
    store.close()
    return tmp_path / "kaldi"


def check(ids: list[str], matrix: npt.NDArray[Any]) -> None:
    assert sorted(ids) == sorted(WANTED) and matrix.dtype == np.float32
    assert all(np.array_equal(row, WANTED[id_]) for id_, row in zip(ids, matrix, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_datasets_loads_the_folder_as_it_is(parquet: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    rows = load_dataset(str(parquet), cache_dir=str(tmp_path / "cache"))["train"]
    check(rows["id"], np.array(rows.with_format("numpy")["embedding"]))
    assert set(rows["audio_path"]) == {str(utterance.audio) for utterance in UTTERANCES}


def test_polars_reads_a_matrix(parquet: Path) -> None:
    import polars

    table = polars.read_parquet(parquet / "part-*.parquet")
    check(table["id"].to_list(), table["embedding"].to_numpy())


def test_duckdb_computes_cosines(parquet: Path) -> None:
    import duckdb

    found = duckdb.sql(
        f"select a.id, array_cosine_distance(a.embedding::FLOAT[{DIM}], b.embedding::FLOAT[{DIM}]) "
        f"from '{parquet}/part-*.parquet' a, '{parquet}/part-*.parquet' b where b.id = 'u0'"
    ).fetchall()
    one = WANTED["u0"]
    cosines = {id_: 1 - float(e @ one / np.linalg.norm(e) / np.linalg.norm(one)) for id_, e in WANTED.items()}
    assert {id_: pytest.approx(distance, abs=1e-5) for id_, distance in found} == cosines


def test_pandas_reads_the_parts(parquet: Path) -> None:
    import pandas

    table = pandas.concat([pandas.read_parquet(part) for part in sorted(parquet.glob("part-*.parquet"))])
    check(list(table["id"]), np.stack(table["embedding"].to_list()))
    assert list(table["speaker"]) == [f"s{int(id_[1:]) % 2}" for id_ in table["id"]] and set(table["note"]) == {"n"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kaldiio leaves files open
def test_kaldiio_reads_the_embeddings_and_the_means_of_speakers(kaldi: Path) -> None:
    found = dict(kaldiio.load_scp_sequential(str(kaldi / "xvector.scp")))
    assert list(found) == sorted(WANTED)
    check(list(found), np.stack(list(found.values())))
    means = dict(kaldiio.load_scp(str(kaldi / "spk_xvector.scp")).items())
    counts = {name: int(count[0]) for name, count in kaldiio.load_ark(str(kaldi / "num_utts.ark"))}
    assert counts == {"s0": 4, "s1": 3} and set(means) == {"s0", "s1"}
    expected = np.mean([WANTED[f"u{n}"] for n in (1, 3, 5)], axis=0)
    assert np.allclose(means["s1"], expected, rtol=0, atol=1e-6)
    assert (kaldi / "utt2spk").read_text() == "".join(f"u{n} s{n % 2}\n" for n in range(7))
    assert (kaldi / "spk2utt").read_text() == "s0 u0 u2 u4 u6\ns1 u1 u3 u5\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kaldiio leaves files open
def test_every_archive_of_the_folder_is_read_as_3d_speaker_does(kaldi: Path) -> None:
    found = {id_: value for ark in kaldi.glob("*.ark") for id_, value in kaldiio.load_ark(str(ark))}
    assert WANTED.keys() < found.keys()


@pytest.fixture
def mean_subtraction(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return WeSpeaker's own class, imported apart from the rest of its package."""
    package = Path(next(iter(PathFinder.find_spec("wespeaker").submodule_search_locations)))
    absent = ModuleType("plda_utils")  # the wheel of WeSpeaker leaves it out
    absent.get_data_for_plda = None
    for name, folder in (("wespeaker", package), ("wespeaker.utils", package / "utils"), ("wespeaker.utils.plda", "")):
        module = ModuleType(name)
        module.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "wespeaker.utils.plda.plda_utils", absent)
    processing = import_module("wespeaker.utils.embedding_processing")
    monkeypatch.delitem(sys.modules, "wespeaker.utils.embedding_processing")
    return processing.MeanSubtraction


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kaldiio leaves files open
def test_wespeakers_own_mean_subtraction_takes_the_lists(kaldi: Path, mean_subtraction: Any) -> None:
    subtract = mean_subtraction({"scp": str(kaldi / "xvector.scp")}, lambda found: found)
    mean = np.mean(list(WANTED.values()), axis=0)
    assert np.allclose(subtract(WANTED["u3"]), WANTED["u3"] - mean, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kaldiio leaves files open
def test_wespeakers_own_functions_score_kaldi_lists_as_balr_does(kaldi: Path, mean_subtraction: Any) -> None:
    """Score as wespeaker/bin/score.py does, from xvector.scp, and count errors with its score_metrics.py."""
    subtract = mean_subtraction({"scp": str(kaldi / "xvector.scp")}, lambda found: found)
    centred = {id_: subtract(embedding) for id_, embedding in kaldiio.load_scp(str(kaldi / "xvector.scp")).items()}
    judgement, folder = evaluate(kaldi, EvaluationConfig(bootstrap=0))
    listed = rows(folder / "scores.csv")
    scores = [cosine_similarity(centred[row["enrollment"]][None], centred[row["test"]][None])[0, 0] for row in listed]
    assert [float(row["score"]) for row in listed] == pytest.approx(scores, abs=2e-6) and len(scores) == 21
    theirs = wespeaker_metrics()
    rates = theirs.compute_pmiss_pfa_rbst(np.array(scores), np.array([int(row["label"]) for row in listed]))
    assert judgement.metrics["eer"] == pytest.approx(theirs.compute_eer(*rates), abs=1e-9)
    assert judgement.metrics["min_dcf_0.01"] == pytest.approx(theirs.compute_c_norm(*rates, 0.01), abs=1e-9)


@pytest.mark.parametrize(
    "utterance",
    [
        Utterance("a b", Path("/corpus/a.wav")),
        Utterance("a", Path("/corpus/a.wav"), "x y"),
        Utterance(" a", Path("/c")),
    ],
)
def test_ids_and_speakers_with_spaces_are_refused_by_kaldi_stores(tmp_path: Path, utterance: Utterance) -> None:
    with pytest.raises(InputError, match="1 ids or speakers with spaces"):
        KaldiStore(StoredCorpus(tmp_path, [utterance], Path("/corpus")))

"""`balr evaluate`: from a store and a list to numbers, from both entry points; and one line for what does not fit."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Command, rows
from evaluation.scored import judged, speaker_embeddings, write_store
from typer.testing import CliRunner

from balr import cli
from balr.config import EvaluationConfig
from balr.errors import BalrError
from balr.evaluate import evaluate

Folder = Path


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    return write_store(tmp_path / "store", *speaker_embeddings())


def pairs_of(ids: list[str]) -> list[tuple[str, str, int]]:
    return [
        (one, other, int(one.split("/")[0] == other.split("/")[0]))
        for number, one in enumerate(ids)
        for other in ids[number + 1 :]
    ]


def test_all_pairs_are_the_list_of_all_pairs(store: Folder, tmp_path: Path) -> None:
    ids, _ = speaker_embeddings()
    lines = [f"{label} {one}.wav {other}.wav" for one, other, label in pairs_of(ids)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    assert judged(store).metrics == judged(store, trials=str(tmp_path / "list.txt")).metrics


def test_results_say_what_they_are_of_and_scores_are_listed(store: Folder, tmp_path: Path) -> None:
    ids, matrix = speaker_embeddings()
    lines = [f"{one},{other},{label}" for one, other, label in pairs_of(ids)]
    trials = tmp_path / "my.csv"
    trials.write_text("\n".join(["enrollment,test,label", *lines]))
    judgement, folder = evaluate(store, EvaluationConfig(trials=str(trials), bootstrap=50))
    assert folder == store / "evaluation" / "my"
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["trials"] == str(trials) and len(found["sha256"]) == 64 and found["mean"] == "self"
    assert found["trial_counts"] == {"targets": 120, "nontargets": 1008}
    eer = found["metrics"]["eer"]
    assert eer["value"] == judgement.metrics["eer"] and eer["interval"][0] <= eer["value"] <= eer["interval"][1]
    centred = matrix - matrix.mean(axis=0)
    for row, (one, other, label) in zip(rows(folder / "scores.csv"), pairs_of(ids), strict=True):
        assert (row["enrollment"], row["test"], row["label"]) == (one, other, str(label))
        sides = centred[ids.index(one)], centred[ids.index(other)]
        expected = sides[0] @ sides[1] / np.prod([np.linalg.norm(side) for side in sides])
        assert float(row["score"]) == pytest.approx(expected, abs=2e-6)
    scores = [float(row["score"]) for row in rows(folder / "scores.csv")]
    evaluate(store, EvaluationConfig(trials=str(trials), bootstrap=0, scores="parquet"))
    assert pq.read_table(folder / "scores.parquet")["score"].to_pylist() == pytest.approx(scores, abs=1e-6)
    assert not (folder / "scores.csv").exists()


def test_speakers_are_taken_from_target_trials_or_from_folders_where_no_list_names_them(tmp_path: Path) -> None:
    ids, matrix = speaker_embeddings()
    named = judged(write_store(tmp_path / "named", ids, matrix))
    by_folder = write_store(tmp_path / "by_folder", ids, matrix, with_speakers=False)
    assert judged(by_folder).metrics == named.metrics
    flat = [id_.replace("/", "-") for id_ in ids]
    unnamed = write_store(tmp_path / "unnamed", flat, matrix, with_speakers=False)
    with pytest.raises(BalrError, match="s0-0 has no speaker"):
        judged(unnamed)
    lines = [f"{one.replace('/', '-')} {other.replace('/', '-')} {label}" for one, other, label in pairs_of(ids)]
    (tmp_path / "list").write_text("\n".join(lines))
    from_list = judged(unnamed, trials=str(tmp_path / "list"))
    assert from_list.metrics["eer"] == named.metrics["eer"] and from_list.llrs is not None


def test_many_utterances_are_counted_in_a_histogram_with_the_same_eer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, matrix = speaker_embeddings(speakers=20, each=8, spread=1.2)
    store = write_store(tmp_path / "store", [id_.replace("/", "/v/") for id_ in ids], matrix)
    exact = judged(store, bootstrap=0)
    monkeypatch.setattr("balr.evaluation.pairs.MOST_TRIALS", 1_000)
    monkeypatch.setattr("balr.evaluation.pairs._SAMPLED", 5_000)  # for LRs, which take seconds of half a million
    counted = judged(store, bootstrap=0)
    assert counted.as_json()["trial_counts"] == exact.as_json()["trial_counts"]
    assert counted.metrics["eer"] == pytest.approx(exact.metrics["eer"], abs=1e-3)
    assert counted.metrics["min_cllr"] == pytest.approx(exact.metrics["min_cllr"], abs=1e-2)
    with pytest.raises(BalrError, match="all pairs of 160 utterances with a cohort"):
        judged(store, cohort=str(store))


def test_targets_across_sessions_are_judged_apart(tmp_path: Path) -> None:
    ids, matrix = speaker_embeddings(each=6, spread=1.0)
    with_sessions = [f"{id_.split('/')[0]}/v{int(id_.split('/')[1]) // 2}/{id_.split('/')[1]}" for id_ in ids]
    matrix[1::2] = matrix[::2] + 0.01  # two of a session are alike
    found = judged(write_store(tmp_path / "store", with_sessions, matrix)).metrics
    assert found["eer_across_sessions"] > found["eer"]


def test_the_cohort_and_the_mean_of_another_folder_are_used(store: Folder, tmp_path: Path) -> None:
    ids, matrix = speaker_embeddings(speakers=40, each=3, seed=9)
    cohort = write_store(tmp_path / "cohort", ids, matrix)
    np.save(tmp_path / "mean.npy", matrix.mean(axis=0))
    by_folder = judged(store, mean=str(cohort), cohort=str(cohort), top_n=10)
    by_file = judged(store, mean=str(tmp_path / "mean.npy"), cohort=str(cohort), top_n=10)
    assert by_folder.metrics["eer"] == by_file.metrics["eer"]
    assert by_folder.facts["score"] == "AS-norm of cosine" and by_folder.facts["cohort"] == str(cohort)
    assert judged(store, mean="none").counts.scores.max() <= 1.0 + 1e-6 < by_folder.counts.scores.max()


def test_models_are_enrolled_by_embeddings_less_the_mean(tmp_path: Path) -> None:
    ids, matrix = speaker_embeddings()
    matrix += 50  # next to which each embedding is short, as with some networks
    matrix *= np.random.default_rng(0).uniform(0.5, 2, size=(len(ids), 1)).astype(np.float32)
    store, models = write_store(tmp_path / "store", ids, matrix), range(0, len(ids), 6)
    (tmp_path / "map").write_text("\n".join(f"m{row // 6} {ids[row]} {ids[row + 1]}" for row in models))
    pairs = [(model, test) for model in range(8) for test in range(len(ids)) if test % 6 > 1]
    (tmp_path / "list").write_text("\n".join(f"m{one} {ids[other]} {int(other // 6 == one)}" for one, other in pairs))
    centred = matrix - matrix.mean(axis=0, dtype=np.float64)
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    for enrollment, members in (("mean", centred), ("mean_of_unit", units)):
        enrolled = members.reshape(8, 6, -1)[:, :2].mean(axis=1)
        enrolled /= np.linalg.norm(enrolled, axis=1, keepdims=True)
        judged(store, trials="list", enrollment_map="map", enrollment=enrollment, bootstrap=0)
        for row, (one, other) in zip(rows(store / "evaluation/list/scores.csv"), pairs, strict=True):
            assert float(row["score"]) == pytest.approx(enrolled[one] @ units[other], abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": "one_class.txt"}, "there is no nontarget trial"),
        ({"trials": "unknown.txt"}, "1 ids have no embedding: s9/9"),
        ({"trials": "missing.txt"}, "no such list"),
        ({"mean": "other_size"}, "other_size: 4 numbers each, and 16 in store"),
        ({"mean": "nowhere.npy"}, "mean=nowhere.npy: no such file or folder"),
        ({"cohort": "other_model"}, "its embeddings are of b, and store of a"),
        ({"cohort": "nowhere"}, "nowhere: holds no embeddings"),
        ({"cohort": "four_numbers"}, "4 numbers each, and 16 in store"),
        ({"cohort": "tiny"}, "a cohort needs some speakers, and this one has 2"),
        ({"cohort": "unnamed"}, "a cohort needs a speaker for each utterance"),
    ],
)
def test_what_does_not_fit_is_one_line(
    store: Folder, settings: dict[str, str], message: str, tmp_path: Path, one_error_line: Callable[[], str]
) -> None:
    (tmp_path / "one_class.txt").write_text("1 s0/0 s0/1\n")
    (tmp_path / "unknown.txt").write_text("1 s0/0 s0/1\n0 s0/0 s9/9\n")
    write_store(tmp_path / "other_size", ["a/1", "a/2"], np.ones((2, 4), np.float32))
    write_store(tmp_path / "four_numbers", ["a/1", "b/1", "c/1"], np.eye(3, 4, dtype=np.float32))
    write_store(tmp_path / "tiny", ["a/1", "b/1"], np.eye(2, 16, dtype=np.float32))
    write_store(tmp_path / "unnamed", ["x", "y"], np.ones((2, 16), np.float32), with_speakers=False)
    record = {"forcing": False, "model": {"files": {}, "settings": {}}}
    for name, model in (("store", "a"), ("other_model", "b")):
        (tmp_path / name).mkdir(exist_ok=True)
        if name == "other_model":
            write_store(tmp_path / "x", *speaker_embeddings()).rename(tmp_path / "copy")
            (tmp_path / name).rmdir()
            (tmp_path / "copy").rename(tmp_path / name)
        files = {"name": model, "files": {"repo": model}, "settings": {}}
        (tmp_path / name / "run.json").write_text(json.dumps({**record, "model": files}))
    with pytest.raises(BalrError) as error:
        judged(Path("store"), **settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_intervals_that_no_draw_can_give_are_left_out(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", *speaker_embeddings(speakers=2, each=2))
    for bootstrap in (1, 2, 3):  # a draw of one speaker alone has no nontarget trial
        assert judged(store, bootstrap=bootstrap).metrics["eer"] >= 0


def test_nan_in_an_embedding_is_named(tmp_path: Path) -> None:
    ids, matrix = speaker_embeddings()
    matrix[5, 3] = np.nan
    store = write_store(tmp_path / "store", ids, matrix)
    with pytest.raises(BalrError, match=r"1 embeddings have NaN.* s0/5"):
        judged(store, mean="none")


@pytest.mark.usefixtures("store")
def test_the_command_prints_tables_and_a_wrong_option_is_one_line(
    monkeypatch: pytest.MonkeyPatch, one_error_line: Callable[[], str]
) -> None:
    done = CliRunner().invoke(cli.app, ["evaluate", "store", "--bootstrap", "10"])
    assert done.exit_code == 0 and done.stderr == ""
    for part in ("120 target and 1,008 nontarget trials", "EER", "Cllr", "minDCF p=0.01", "store/evaluation/all-pairs"):
        assert part in done.stdout
    monkeypatch.setattr(sys, "argv", ["balr", "evaluate", "store", "--enrollment", "sum"])
    assert cli.run_command() == 2 and "mean_of_unit" in one_error_line()


@pytest.mark.usefixtures("corpus")
def test_a_run_evaluates_itself_and_a_sweep_shows_eers_and_writes_a_page(
    balr: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pages: list[tuple[list[Path], Path]] = []
    monkeypatch.setattr("balr.report.report", lambda folders, page: pages.append((folders, page)))
    assert balr("input=corpus", "save_dir=out", "+evaluation=trials", "evaluation.bootstrap=0") == 0
    assert "EER" in capfd.readouterr().err
    assert json.loads(Path("out/evaluation/all-pairs/evaluation.json").read_text())["trial_counts"]["targets"] == 6
    sweep = ["-m", "input=corpus", "save_dir=sweep", "+evaluation=trials", "evaluation.mean=self,none"]
    assert balr(*sweep, "evaluation.bootstrap=0") == 0
    table = capfd.readouterr().err
    assert "EER" in table and table.count("evaluation.mean-") >= 2
    [(folders, page)] = pages
    assert sorted(folders) == sorted(one.parent for one in Path("sweep").rglob("metadata.csv"))
    assert len(folders) == 2
    assert page.name == "report.html" and f"page     {page}\n" in table


@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+evaluation=trials", "evaluation.trials=nope.txt"], "evaluation.trials=nope.txt: no such file or folder"),
        (["+evaluation=trials", "evaluation.mea=none"], "did you mean evaluation.mean"),
        (["+evaluation=trials", "save_output=false"], "needs a save_dir, save_output=true and no shards"),
        (["evaluation.mean=none"], "add +evaluation=trials"),
        (["+evaluation=trials", "evaluation.scores=xls"], "must be one of csv, parquet, none"),
        (["+evaluation=trials", "input=corpus/spk0"], "utt0.wav has no speaker; give a trial list"),
    ],
)
def test_a_wrong_evaluation_is_refused_before_the_run(
    overrides: list[str], message: str, balr: Command, one_error_line: Callable[[], str]
) -> None:
    assert balr("input=corpus", "save_dir=out", *overrides) == 2
    assert message in one_error_line()
    assert not Path("out").exists()

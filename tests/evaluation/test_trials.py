"""Trial lists of all formats mean the same, and what is wrong with one is said at once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balr.errors import InputError
from balr.evaluation.pairs import all_pairs, pairs_by_histogram, sampled_pairs, session_of
from balr.evaluation.trials import read_trials

IDS = ["s0/a", "s0/b", "s1/a", "s1/b.x"]
FORMATS = {
    "ours": "enrollment,test,label\ns0/a,s0/b,1\ns0/a,s1/a,0\n",
    "ours, columns moved": "label,x,test,enrollment\n1,,s0/b,s0/a\n0,,s1/a,s0/a\n",
    "VoxCeleb": "1 s0/a.wav s0/b.wav\n0 s0/a.wav s1/a.wav\n",
    "Kaldi": "s0/a s0/b target\ns0/a s1/a nontarget\n",
    "3D-Speaker": "s0/a s0/b 1\ns0/a s1/a 0\n",
    "tabs": "s0/a\ts0/b\ttgt\ns0/a\ts1/a\timp\n",
    "ours, as a spreadsheet saves it": "\ufeffenrollment,test,label\r\ns0/a,s0/b,1\r\ns0/a,s1/a,0\r\n",
    "VoxCeleb, with the mark of a spreadsheet": "\ufeff1 s0/a s0/b\n0 s0/a s1/a\n",
    "ours, below an empty line": "\nenrollment,test,label\ns0/a,s0/b,1\ns0/a,s1/a,0\n",
    "quoted": '"enrollment","test","label"\n"s0/a","s0/b",1\n"s0/a","s1/a",0\n',
}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trials.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", FORMATS.values(), ids=FORMATS)
def test_every_format_gives_the_same_trials(tmp_path: Path, text: str) -> None:
    trials = read_trials(written(tmp_path, text), IDS)
    assert trials.enrollment.tolist() == [0, 0] and trials.test.tolist() == [1, 2]
    assert trials.is_target.tolist() == [True, False]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 29), st.integers(0, 29), st.booleans()),
        min_size=1,
        max_size=60,
        unique_by=lambda t: t[:2],
    )
)
def test_a_list_that_is_written_is_read_again(tmp_path: Path, trials: list[tuple[int, int, bool]]) -> None:
    ids = [f"id{number:05}/v/{number}" for number in range(30)]
    lines = [f"{int(label)} {ids[one]}.wav {ids[other]}.wav" for one, other, label in trials]
    found = read_trials(written(tmp_path, "\n".join(lines)), ids)
    assert list(zip(found.enrollment, found.test, found.is_target, strict=True)) == trials


def test_ids_that_look_like_labels_are_told_from_labels_by_the_whole_list(tmp_path: Path) -> None:
    for text in ("1 0 1\n0 0 2\n", "0 1 1\n0 2 0\n"):
        trials = read_trials(written(tmp_path, text), ["0", "1", "2"])
        assert (trials.enrollment.tolist(), trials.test.tolist()) == ([0, 0], [1, 2])
        assert trials.is_target.tolist() == [True, False]


def test_all_unknown_ids_are_listed_before_anything_is_scored(tmp_path: Path) -> None:
    path = written(tmp_path, "1 s0/a s0/b\n0 s0/a nope1\n0 nope2 s1/a\n")
    with pytest.raises(InputError, match="2 ids have no embedding: nope1, nope2; --allow-missing"):
        read_trials(path, IDS)
    trials = read_trials(path, IDS, allow_missing=True)
    assert len(trials) == 1 and trials.source["left_out"] == 2
    with pytest.raises(InputError, match="1 ids have no embedding: nope;"):
        read_trials(written(tmp_path, "0 s0/a nope\n0 nope s1/a\n"), IDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1 s0/a s0/b\n1 s0/a s1/a\n0 s0/a s0/b.wav\n",
            "1 trials come with both labels, first s0/a s0/b, trials 1 and 3",
        ),
        ("1 s0/a s0/b\n0 s0/a\n", "Row #2: Expected 3 columns, got 2"),
        ("enrollment,test,label\ns0/a,s0/b,1\ns0/a,1\n", "Row #3: Expected 3 columns, got 2"),
        ("s0/a s0/b\n", "2 fields a line"),
        ("s0/a s0/b maybe\n", "label 's0/a': 1, 0, target or nontarget is expected in the first or the last field"),
        ("enrollment,test,label\ns0/a,s0/b,maybe\n", "label 'maybe'"),
        ("enrollment,test\ns0/a,s0/b\n", "enrollment, test and label are needed"),
        ("", "not a trial list"),
        ("1 s0/a s0/b\n0 s0/a.wav s1\n", "have no embedding: s1"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_trials(written(tmp_path, text), IDS)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_trials_that_come_twice_are_told_and_count_as_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trials = read_trials(written(tmp_path, "0 s0/a s1/a\n1 s0/a s0/b\n1 s0/a s0/b.wav\n"), IDS)
    assert len(trials) == 3
    assert "1 trials come twice, first s0/a s0/b, trials 2 and 3; each line counts" in caplog.text


def test_an_id_that_fits_two_embeddings_is_refused(tmp_path: Path) -> None:
    for allow_missing in (False, True):
        with pytest.raises(InputError, match=r"1 ids fit several embeddings: s0/a\.wav"):
            ids = ["s0/a.flac", "s0/a.mp3", "s0/b"]
            read_trials(written(tmp_path, "1 s0/a.wav s0/b\n"), ids, allow_missing=allow_missing)


def test_enrollment_models_of_several_utterances_get_rows_of_their_own(tmp_path: Path) -> None:
    models = tmp_path / "enroll.map"
    models.write_text("m0 s0/a.wav s0/b.wav\nm1 s1/a.wav\nm1 s1/b\n")
    trials = read_trials(written(tmp_path, "m0 s0/a 1\nm1 s0/a 0\n"), IDS, enrollment_map=models)
    assert trials.enrollment.tolist() == [4, 5] and trials.test.tolist() == [0, 0]
    assert [(name, rows.tolist()) for name, rows in trials.models] == [("m0", [0, 1]), ("m1", [2, 3])]
    models.write_text("m0 nope s0/a\nm1 nope\n")
    trials = read_trials(written(tmp_path, "m0 s0/b 1\nm1 s0/a 0\n"), IDS, enrollment_map=models, allow_missing=True)
    assert (trials.enrollment.tolist(), trials.source["left_out"]) == ([4], 1)
    models.write_text("m0\n")
    with pytest.raises(InputError, match="line 1"):
        read_trials(written(tmp_path, "m0 s0/a 1\n"), IDS, enrollment_map=models)
    with pytest.raises(InputError, match="nowhere: no such list"):
        read_trials(written(tmp_path, "m0 s0/a 1\n"), IDS, enrollment_map=tmp_path / "nowhere")


def test_the_histogram_of_all_pairs_counts_what_the_list_has() -> None:
    random = np.random.default_rng(0)
    speakers, sessions = np.repeat(np.arange(30), 100), np.repeat(np.arange(300), 10)
    units = random.normal(size=(3_000, 8)).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    trials = all_pairs(speakers)
    scores = np.einsum("ij,ij->i", units[trials.enrollment], units[trials.test])
    found = pairs_by_histogram(units, speakers, sessions)
    for name, kept in (
        ("all", np.ones(len(trials), bool)),
        ("across sessions", sessions[trials.enrollment] != sessions[trials.test]),
    ):
        counts = found[name]
        assert counts.targets.sum() == (trials.is_target & kept).sum()
        assert counts.nontargets.sum() == (~trials.is_target).sum()
        for threshold in (-0.5, 0.0, 0.4):
            there = (scores[trials.is_target & kept] < threshold).sum()
            assert abs(counts.targets[counts.scores < threshold].sum() - there) <= 20


def test_the_histogram_counts_each_pair_once_however_products_are_rounded() -> None:
    random = np.random.default_rng(0)
    speakers = np.arange(160) % 32
    units = random.normal(size=(32, 256))[speakers] + random.normal(size=(160, 256))
    units = (units / np.linalg.norm(units, axis=1, keepdims=True)).astype(np.float32)
    counts = pairs_by_histogram(units, speakers, None)["all"]
    assert (counts.targets.sum(), counts.nontargets.sum()) == (32 * 10, 160 * 159 // 2 - 32 * 10)


def test_sampled_pairs_are_pairs_of_the_corpus_each_once() -> None:
    speakers = np.repeat(np.arange(50), 40)
    trials = sampled_pairs(speakers)
    assert (trials.enrollment < trials.test).all()
    assert len(np.unique(trials.enrollment * len(speakers) + trials.test)) == len(trials)
    assert (trials.is_target == (speakers[trials.enrollment] == speakers[trials.test])).all()
    assert trials.is_target.sum() > 30_000 and (~trials.is_target).sum() > 300_000


def test_a_session_is_what_stands_between_speaker_and_file() -> None:
    assert session_of("id00012/21Uxsk56VDQ/00001") == "id00012/21Uxsk56VDQ"
    assert session_of("id00012/00001") is None

"""Scores are those of WeSpeaker's recipe, trial by trial, written here once more without matrices."""

import numpy as np
import numpy.typing as npt
import pytest
from evaluation.scored import speaker_embeddings

from balr.errors import InputError
from balr.evaluation.scoring import cosines, enrolled, refuse_unusable, score, unit
from balr.evaluation.trials import Trials

Vector = npt.NDArray[np.float64]


def cosine(one: Vector, other: Vector) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def as_norm(one: Vector, other: Vector, cohort: list[Vector], top_n: int) -> float:
    """Score as wespeaker/bin/score_norm.py does (asnorm)."""
    sides = [sorted((cosine(side, speaker) for speaker in cohort), reverse=True)[:top_n] for side in (one, other)]
    normed = [(cosine(one, other) - np.mean(side)) / np.std(side) for side in sides]
    return float(0.5 * (normed[0] + normed[1]))


def some_trials(count: int, utterances: int, seed: int = 0) -> Trials:
    random = np.random.default_rng(seed)
    sides = random.integers(utterances, size=(2, count))
    return Trials(sides[0], sides[1], np.zeros(count, bool))


@pytest.mark.parametrize("top_n", [3, 20])
def test_cosine_and_as_norm_are_those_of_the_recipe(top_n: int) -> None:
    _, matrix = speaker_embeddings()
    _, others = speaker_embeddings(speakers=20, each=1, seed=5)
    mean, trials = others.mean(axis=0), some_trials(200, len(matrix))
    centred, cohort = matrix.astype(float) - mean, list(others.astype(float) - mean)
    plain = score(matrix - mean, trials)
    normed = score(matrix - mean, trials, cohort=others - mean, top_n=top_n)
    for number, (one, other) in enumerate(zip(trials.enrollment, trials.test, strict=True)):
        assert plain[number] == pytest.approx(cosine(centred[one], centred[other]), abs=1e-5)
        assert normed[number] == pytest.approx(as_norm(centred[one], centred[other], cohort, top_n), abs=1e-3)


def test_few_and_many_trials_of_the_same_pairs_score_alike() -> None:
    _, matrix = speaker_embeddings(speakers=300, each=5)
    units = unit(matrix)
    many = some_trials(400_000, len(units))
    found = cosines(units, many.enrollment, many.test)  # as a product of all with all
    few = slice(0, 3_000)
    assert cosines(units, many.enrollment[few], many.test[few]) == pytest.approx(found[few], abs=1e-6)


def test_a_model_is_the_mean_of_its_utterances_as_they_are_or_of_unit_length() -> None:
    _, matrix = speaker_embeddings()
    trials = Trials(np.array([len(matrix)]), np.array([0]), np.ones(1, bool), (("m", np.array([1, 2, 3])),))
    plain = enrolled(matrix, trials, of_unit=False)
    assert plain[-1] == pytest.approx(matrix[1:4].mean(axis=0))
    lengths = np.linalg.norm(matrix[1:4], axis=1, keepdims=True)
    assert enrolled(matrix, trials, of_unit=True)[-1] == pytest.approx((matrix[1:4] / lengths).mean(axis=0))
    assert score(plain, trials)[0] == pytest.approx(cosine(plain[-1], plain[0]))


def test_zeros_have_no_direction_and_what_is_no_number_stays_so() -> None:
    units = unit(np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0]], np.float32))
    assert units[:2].tolist() == [pytest.approx([0.6, 0.8]), [0.0, 0.0]] and np.isnan(units[2]).any()


def test_embeddings_without_a_direction_are_named() -> None:
    matrix = np.array([[1.0, 0.0], [0.0, 0.0], [np.nan, 1.0]], np.float32)
    with pytest.raises(InputError, match=r"2 embeddings .*: b, c"):
        refuse_unusable(matrix, ["a", "b", "c"])

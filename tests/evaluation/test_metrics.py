"""Metrics equal those of other implementations, and ties do not depend on the order of a list."""

import numpy as np
import pytest
from evaluation.scored import gaussian_scores, wespeaker_metrics
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from balr.errors import InputError
from balr.evaluation.calibration import calibrated, cross_validated
from balr.evaluation.metrics import (
    ScoreCounts,
    cllr,
    convex_hull,
    count_scores,
    detection_cost,
    equal_error_rate,
    error_rates,
    min_dcf,
    operating_points,
    sample_of,
)

SEEDS = range(10)


def eer_of(scores: np.ndarray, is_target: np.ndarray) -> float:
    return equal_error_rate(error_rates(count_scores(scores, is_target)))


def min_cllr(counts: ScoreCounts) -> float:
    llrs, pools = convex_hull(counts)
    return cllr(llrs, pools.targets, pools.nontargets)


@pytest.mark.parametrize("seed", SEEDS)
def test_eer_and_mindcf_without_ties_are_those_of_wespeaker_and_scikit_learn(seed: int) -> None:
    scores, is_target = gaussian_scores(seed)
    theirs = wespeaker_metrics()
    miss, false_alarm = theirs.compute_pmiss_pfa_rbst(scores, is_target.astype(int))
    assert eer_of(scores, is_target) == pytest.approx(theirs.compute_eer(miss, false_alarm), abs=1e-9)
    rates = error_rates(count_scores(scores, is_target))
    for prior in (0.01, 0.05):
        assert min_dcf(rates, prior) == pytest.approx(theirs.compute_c_norm(miss, false_alarm, prior), abs=1e-9)
    accepted, hit, _ = roc_curve(is_target, scores, drop_intermediate=False)
    assert eer_of(scores, is_target) == pytest.approx(
        brentq(lambda x: 1.0 - x - np.interp(x, accepted, hit), 0.0, 1.0), abs=1e-6
    )


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40), st.randoms())
def test_ties_count_as_one_point_in_any_order(trials: list[tuple[int, bool]], random: np.random.Generator) -> None:
    if len({label for _, label in trials}) < 2:
        return
    shuffled = list(trials)
    random.shuffle(shuffled)
    found = []
    for one in (trials, shuffled):
        scores, labels = np.array([score for score, _ in one], float), np.array([label for _, label in one])
        rates = error_rates(count_scores(scores, labels))
        found.append((eer_of(scores, labels), min_dcf(rates, 0.01), min_cllr(count_scores(scores, labels))))
        for threshold, miss, false_alarm in zip(rates.thresholds, rates.miss, rates.false_alarm, strict=True):
            assert miss == pytest.approx((scores[labels] < threshold).mean())
            assert false_alarm == pytest.approx((scores[~labels] >= threshold).mean())
    assert found[0] == pytest.approx(found[1])


def test_half_of_all_tied_gives_a_quarter_of_errors_where_others_give_none_to_half() -> None:
    scores = np.array([0.5] * 5 + [0.9] * 5 + [0.5] * 50 + [0.1] * 50)
    is_target = np.arange(110) < 10
    theirs, found = wespeaker_metrics(), []
    for order in (np.arange(110), np.arange(110)[::-1]):
        assert eer_of(scores[order], is_target[order]) == pytest.approx(0.25)
        stable = order[np.argsort(scores[order], kind="stable")]
        miss = np.cumsum(is_target[stable]) / 10
        false_alarm = 1 - np.cumsum(~is_target[stable]) / 100
        found.append(theirs.compute_eer(miss, false_alarm))
    assert sorted(found) == pytest.approx([0.0, 0.5])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_convex_hull_is_below_the_curve_and_its_eer_is_the_worst_bayes_error(seed: int) -> None:
    counts = count_scores(*gaussian_scores(seed, targets=40, nontargets=300, decimals=1))
    rates = error_rates(counts)
    hull_eer = equal_error_rate(error_rates(convex_hull(counts)[1]))
    # Brümmer: the EER on the hull is the largest Bayes error over all priors.
    priors = np.linspace(0, 1, 4_001)
    errors = [(prior * rates.miss + (1 - prior) * rates.false_alarm).min() for prior in priors]
    assert hull_eer == pytest.approx(max(errors), abs=2e-3)
    assert hull_eer <= equal_error_rate(rates) + 1e-12


def test_min_cllr_is_the_cllr_after_isotonic_regression_and_below_that_of_any_line() -> None:
    scores, is_target = gaussian_scores(0)
    counts = count_scores(scores, is_target)
    least = min_cllr(counts)
    for slope in (0.5, 1.0, 2.0):
        for offset in (-4.0, -2.0, 0.0):
            llrs = slope * counts.scores + offset
            assert least <= cllr(llrs, counts.targets, counts.nontargets)
    true_llrs = 2 * counts.scores - 2  # of two Gaussians with means 0 and 2
    assert least == pytest.approx(cllr(true_llrs, counts.targets, counts.nontargets), rel=0.1)


def test_cllr_is_one_without_information_and_survives_large_llrs() -> None:
    ones = np.ones(1)
    assert cllr(np.zeros(1), ones, ones) == pytest.approx(1.0)
    assert np.isfinite(cllr(np.array([-2_000.0, 2_000.0]), np.array([1.0, 1.0]), np.array([1.0, 1.0])))


def test_operating_points_keep_their_promise() -> None:
    scores, is_target = gaussian_scores(3, targets=500, nontargets=20_000)
    rates = error_rates(count_scores(scores, is_target))
    points = {point.name: point for point in operating_points(rates)}
    for point in points.values():
        assert (scores[is_target] < point.threshold).mean() == pytest.approx(point.miss)
        assert (scores[~is_target] >= point.threshold).mean() == pytest.approx(point.false_alarm)
    assert points["false alarms 1%"].false_alarm <= 0.01 and points["false alarms 0.1%"].false_alarm <= 0.001
    assert detection_cost(rates, 0.01).min() == pytest.approx(
        (0.01 * points["minDCF p=0.01"].miss + 0.99 * points["minDCF p=0.01"].false_alarm) / 0.01
    )


def test_one_percent_of_a_thousand_is_ten() -> None:
    scores = np.concatenate([[2.0], np.linspace(0, 1, 1_000)])
    points = operating_points(error_rates(count_scores(scores, np.arange(1_001) < 1)))
    shown = {point.name: point.false_alarm for point in points}
    assert (shown["false alarms 1%"], shown["false alarms 0.1%"]) == (0.01, 0.001)


def test_scores_that_are_no_numbers_or_of_one_class_are_refused() -> None:
    with pytest.raises(InputError, match=r"1 of 3 scores are not finite"):
        count_scores(np.array([1.0, np.nan, 0.0]), np.array([True, False, False]))
    with pytest.raises(InputError, match="no nontarget trial"):
        count_scores(np.array([1.0, 0.5]), np.array([True, True]))


def test_calibration_of_gaussian_scores_finds_their_llrs() -> None:
    scores, is_target = gaussian_scores(1, targets=20_000, nontargets=20_000)
    at_none, at_one, far = calibrated(scores, is_target, np.array([0.0, 1.0, 1e9]))
    assert at_one - at_none == pytest.approx(2.0, rel=0.05) and at_none == pytest.approx(-2.0, rel=0.05)
    assert far == pytest.approx(np.log(20_001))


def test_a_sample_has_all_of_the_rarer_class_up_to_half() -> None:
    for targets, nontargets, expected in ((30, 500, 30), (80, 500, 50), (80, 20, 80), (500, 30, 70), (3, 4, 3)):
        is_target = np.arange(targets + nontargets) < targets
        sample = sample_of(is_target, 100)
        assert len(np.unique(sample)) == len(sample) == min(100, targets + nontargets)
        assert is_target[sample].sum() == expected


def test_cross_validation_judges_no_speaker_by_itself() -> None:
    random = np.random.default_rng(0)
    speakers = random.integers(20, size=(4_000, 2))
    speakers[:2_000, 1] = speakers[:2_000, 0]
    is_target = speakers[:, 0] == speakers[:, 1]
    scores = random.normal(size=4_000) + 2 * is_target
    odd = (speakers == 7).any(axis=1)
    found = cross_validated(scores, is_target, speakers.astype(np.int32))
    changed = cross_validated(np.where(odd, scores + 50, scores), is_target, speakers.astype(np.int32))
    assert found is not None and changed is not None and np.isfinite(found).all()
    slope = (changed[odd] - found[odd]) / 50  # those of speaker 7: the same line, so only moved along it
    assert (slope > 0).all()
    few = np.array([[0, 0], [1, 1], [0, 1]], np.int32)
    assert cross_validated(np.array([1.0, 1.0, 0.0]), np.array([True, True, False]), few) is None

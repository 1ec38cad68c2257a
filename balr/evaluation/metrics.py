"""Error rates of scores, and the metrics of the field that follow from them.

Equal scores are one point: the order of a trial list changes nothing. A trial is accepted at a threshold if its score
is that or more. A score counts with any weight, so that histograms and bootstrap draws are scored by the same code.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from balr.errors import InputError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoreCounts:
    """Count the target and the nontarget trials `(scores,)` at ascending, distinct scores."""

    scores: Array
    targets: Array
    nontargets: Array


@dataclass(frozen=True)
class ErrorRates:
    """Hold the miss and false-alarm rates `(points,)` at ascending thresholds, from accept-all to reject-all."""

    thresholds: Array
    miss: Array
    false_alarm: Array


@dataclass(frozen=True)
class OperatingPoint:
    """Say what a threshold does."""

    name: str
    threshold: float
    miss: float
    false_alarm: float


def sample_of(is_target: npt.NDArray[np.bool_], most: int) -> npt.NDArray[np.int64]:
    """Choose at most so many trials, of the rarer class all up to half of them."""
    random = np.random.default_rng(0)
    targets, nontargets = (random.permutation(np.flatnonzero(kind)) for kind in (is_target, ~is_target))
    targets = targets[: max(most // 2, most - len(nontargets))]
    return np.concatenate([targets, nontargets[: most - len(targets)]])


def count_scores(scores: npt.NDArray[np.floating], is_target: npt.NDArray[np.bool_]) -> ScoreCounts:
    """Group the scores `(trials,)` of trials. Raises InputError where one is no number, or a class has none."""
    if not np.isfinite(scores).all():
        raise InputError(f"{int((~np.isfinite(scores)).sum()):,} of {len(scores):,} scores are not finite numbers.")
    order = np.argsort(scores)
    ordered, labels = scores[order], is_target[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else order
    targets = np.diff(np.cumsum(labels)[ends], prepend=0).astype(float)
    nontargets = np.diff(ends, prepend=-1) - targets
    return checked(ScoreCounts(ordered[ends].astype(float), targets, nontargets))


def checked(counts: ScoreCounts) -> ScoreCounts:
    """Return the counts without scores that no trial has. Raises InputError where a class has no trial."""
    for name, count in (("target", counts.targets.sum()), ("nontarget", counts.nontargets.sum())):
        if not count:
            raise InputError(f"there is no {name} trial; error rates need trials of both kinds.")
    used = counts.targets + counts.nontargets > 0
    return ScoreCounts(counts.scores[used], counts.targets[used], counts.nontargets[used])


def error_rates(counts: ScoreCounts) -> ErrorRates:
    """Return the error rates below each score, and above all."""
    rejected_targets, rejected_nontargets = np.cumsum(counts.targets), np.cumsum(counts.nontargets)
    return ErrorRates(
        np.append(counts.scores, np.inf),
        np.concatenate([[0.0], rejected_targets / rejected_targets[-1]]),
        np.concatenate([[1.0], (rejected_nontargets[-1] - rejected_nontargets) / rejected_nontargets[-1]]),
    )


def equal_error_rate(rates: ErrorRates) -> float:
    """Return where miss and false-alarm rates cross, interpolated linearly between points.

    Without ties this is what WeSpeaker's `compute_eer` gives.
    """
    miss, false_alarm = rates.miss, rates.false_alarm
    above = int(np.argmax(miss >= false_alarm))
    gap_above, gap_below = miss[above] - false_alarm[above], miss[above - 1] - false_alarm[above - 1]
    share = gap_above / (gap_above - gap_below)
    return float(miss[above] + share * (miss[above - 1] - miss[above]))


def convex_hull(counts: ScoreCounts) -> tuple[Array, ScoreCounts]:
    """Pool adjacent violators: return the natural-log LR of each pool `(pools,)`, and the counts of the pools.

    The score of a pool is its highest. The EER of the pools is that on the convex hull of the ROC (ROCCH-EER; Brümmer,
    PhD thesis, 2010), never above the EER.
    """
    from scipy.optimize import isotonic_regression

    totals = counts.targets.sum(), counts.nontargets.sum()
    weights = counts.targets / totals[0] + counts.nontargets / totals[1]
    starts = isotonic_regression(counts.targets / totals[0] / weights, weights=weights).blocks
    targets, nontargets = (np.add.reduceat(one, starts[:-1]) for one in (counts.targets, counts.nontargets))
    with np.errstate(divide="ignore"):  # pools of one class
        llrs = np.log(targets / totals[0]) - np.log(nontargets / totals[1])
    return llrs, ScoreCounts(counts.scores[starts[1:] - 1], targets, nontargets)


def detection_cost(rates: ErrorRates, prior: float) -> Array:
    """Return the detection cost `(points,)` at a prior of targets; 1 is that of deciding without scores.

    A miss and a false alarm cost the same, 1.
    """
    return (prior * rates.miss + (1 - prior) * rates.false_alarm) / min(prior, 1 - prior)


def min_dcf(rates: ErrorRates, prior: float) -> float:
    """Return the least detection cost of any threshold."""
    return float(detection_cost(rates, prior).min())


def cllr(llrs: Array, targets: npt.NDArray[Any], nontargets: npt.NDArray[Any], *, odds: float = 0.0) -> float:
    """Return the cost in bits of natural-log LRs `(scores,)`, each counted as given; 1 is no information.

    Brümmer and du Preez, Computer Speech & Language 20, 2006. At other prior `odds`, as a logarithm, this is the
    empirical cross-entropy (Ramos et al., Forensic Sci. Int. 2013).
    """
    prior = 1 / (1 + np.exp(-odds))
    sides = ((prior, -llrs - odds, targets), (1 - prior, llrs + odds, nontargets))
    return float(sum(share * np.logaddexp(0.0, x[n > 0]) @ n[n > 0] / n.sum() for share, x, n in sides) / np.log(2))


def operating_points(rates: ErrorRates) -> list[OperatingPoint]:
    """Return the thresholds that people ask for: at the EER, at false-alarm rates, and of least cost at priors."""
    at_most = [int(np.argmax(rates.false_alarm <= rate)) for rate in (0.01, 0.001)]
    cheapest = [int(np.argmin(detection_cost(rates, prior))) for prior in (0.01, 0.05)]
    nearest = int(np.argmin(np.abs(rates.miss - rates.false_alarm)))
    names = ("EER", "false alarms 1%", "false alarms 0.1%", "minDCF p=0.01", "minDCF p=0.05")
    return [
        OperatingPoint(name, float(rates.thresholds[at]), float(rates.miss[at]), float(rates.false_alarm[at]))
        for name, at in zip(names, (nearest, *at_most, *cheapest), strict=True)
    ]

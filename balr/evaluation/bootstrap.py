"""Intervals of metrics: draw speakers with replacement, and count each trial as often as its speakers were drawn.

A target trial counts as often as its speaker, a nontarget trial as often as both of its speakers.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from balr.evaluation.metrics import ScoreCounts, sample_of

_MOST_TRIALS = 1_000_000
_MOST_SCORES = 20_000
Interval = tuple[float, float]


def intervals(
    scores: npt.NDArray[np.floating],
    is_target: npt.NDArray[np.bool_],
    speakers: npt.NDArray[np.int32],
    metrics: Callable[[ScoreCounts], dict[str, float]],
    *,
    draws: int,
) -> dict[str, Interval]:
    """Return the 95% interval of each metric of trials with speakers `(trials, 2)`.

    Of over a million trials, a random million; nearby scores of many are taken as one.
    """
    if len(scores) > _MOST_TRIALS:
        sample = sample_of(is_target, _MOST_TRIALS)
        scores, is_target, speakers = scores[sample], is_target[sample], speakers[sample]
    distinct, place = _few(scores)
    numbers, sides = np.unique(speakers, return_inverse=True)
    sides = sides.reshape(speakers.shape)
    classes = [(place[kind], sides[kind, 0], sides[kind, 1]) for kind in (is_target, ~is_target)]
    found: dict[str, list[float]] = {}
    random = np.random.default_rng(0)
    for _ in range(draws):
        drawn = np.bincount(random.integers(len(numbers), size=len(numbers)), minlength=len(numbers)).astype(float)
        targets, nontargets = (
            np.bincount(where, drawn[one] * np.where(one == other, 1.0, drawn[other]), len(distinct)).astype(float)
            for where, one, other in classes
        )
        used = targets + nontargets > 0
        if targets.any() and nontargets.any():
            for name, value in metrics(ScoreCounts(distinct[used], targets[used], nontargets[used])).items():
                found.setdefault(name, []).append(value)
    central = {name: np.quantile(values, (0.025, 0.975)) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in central.items()}


def _few(scores: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return distinct scores and the place of each trial's among them; many are put into bins of equal counts."""
    distinct, place = np.unique(scores, return_inverse=True)
    if len(distinct) > _MOST_SCORES:
        edges = np.quantile(scores, np.linspace(0, 1, _MOST_SCORES + 1)[1:], method="higher")
        distinct = np.unique(edges)
        place = np.searchsorted(distinct, scores)
    return distinct.astype(float), place

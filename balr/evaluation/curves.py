"""The curves of a page as plain numbers: DET, histograms, Tippett, ECE and PAV, thinned to what a screen shows.

LRs are log10 here, as forensic reports have them. Curves end where the data end (Morrison et al., Science & Justice 61,
2021).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from balr.evaluation.bootstrap import Interval
from balr.evaluation.judgement import FALSE_ALARMS, Judgement
from balr.evaluation.metrics import Array, ScoreCounts, cllr, convex_hull, count_scores, error_rates

_POINTS = 300
_BINS = 80
_DECIMALS = 3  # of log10 LRs in plots
_PRIORS = np.linspace(-3, 3, 61)
_LOG10 = np.log(10)

Curves = dict[str, Any]


def curves(judgement: Judgement, is_target: npt.NDArray[np.bool_]) -> Curves:
    """Return all curves of a judgement; those of LRs only where it has them."""
    found = {"det": _det(judgement.counts), "det_interval": _det_interval(judgement.intervals)}
    found["histogram"] = _histogram(judgement.counts)
    if judgement.llrs is not None:
        lrs = judgement.llrs / _LOG10
        counts = count_scores(np.round(lrs, _DECIMALS), is_target)
        found |= {"tippett": _tippett(lrs, is_target), "ece": _ece(counts), "pav": _pav(counts)}
    return found


def _det(counts: ScoreCounts) -> Curves:
    rates = error_rates(counts)
    inside = np.flatnonzero((rates.miss > 0) & (rates.miss < 1) & (rates.false_alarm > 0) & (rates.false_alarm < 1))
    kept = inside[_thinned(len(inside), rates.miss[inside] - rates.false_alarm[inside])]
    return {"miss": _listed(rates.miss[kept]), "false_alarm": _listed(rates.false_alarm[kept])}


def _det_interval(intervals: Mapping[str, Interval]) -> Curves:
    """Return the 95% interval of the miss rate at false-alarm rates that the trials can show."""
    found = {rate: intervals[f"det {rate}"] for rate in FALSE_ALARMS if f"det {rate}" in intervals}
    low, high = np.array([*found.values()]).reshape(-1, 2).T
    return {"false_alarm": _listed(np.array([*found])), "low": _listed(low), "high": _listed(high)}


def _histogram(counts: ScoreCounts) -> Curves:
    edges = np.linspace(counts.scores[0], counts.scores[-1] + 1e-9, _BINS + 1)
    shares = [
        np.histogram(counts.scores, edges, weights=one)[0] / one.sum() for one in (counts.targets, counts.nontargets)
    ]
    return {"edges": _listed(edges), "target": _listed(shares[0]), "nontarget": _listed(shares[1])}


def _tippett(lrs: Array, is_target: npt.NDArray[np.bool_]) -> Curves:
    """Return the share of targets with an LR of at most x, and of nontargets with one of at least x."""
    found: Curves = {}
    for name, one in (("target", np.sort(lrs[is_target])), ("nontarget", np.sort(lrs[~is_target])[::-1])):
        kept = _thinned(len(one), np.arange(len(one)))
        found[name] = {"lr": _listed(one[kept]), "share": _listed((kept + 1) / len(one))}
    return found


def _ece(counts: ScoreCounts) -> Curves:
    """Return the empirical cross-entropy in bits over log10 prior odds."""
    llrs, pools = convex_hull(counts)
    lines = {
        "lr": (counts.scores * _LOG10, counts.targets, counts.nontargets),
        "pav": (llrs, pools.targets, pools.nontargets),
        "none": (np.zeros(1), np.ones(1), np.ones(1)),
    }
    found = {name: [cllr(*line, odds=odds) for odds in _PRIORS * _LOG10] for name, line in lines.items()}
    return {"prior": _listed(_PRIORS), **{name: _listed(line) for name, line in found.items()}}


def _pav(counts: ScoreCounts) -> Curves:
    """Return the LR after pooling adjacent violators over the LR before, where both classes are in a pool."""
    llrs, pools = convex_hull(counts)
    both = np.isfinite(llrs)
    ends = np.searchsorted(counts.scores, pools.scores)
    starts = np.concatenate([[0], ends[:-1] + 1])
    first, last = counts.scores[starts[both]], pools.scores[both]
    return {"before": _listed(np.ravel([first, last], "F")), "after": _listed(np.repeat(llrs[both] / _LOG10, 2))}


def _thinned(count: int, position: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Choose at most so many of a curve's points, evenly along ascending positions and along their logarithms."""
    if count <= _POINTS:
        return np.arange(count)
    evenly = np.searchsorted(position, np.linspace(position[0], position[-1], _POINTS // 2))
    ends = np.geomspace(1, count, _POINTS // 4).astype(int)
    return np.unique(np.clip(np.concatenate([evenly, ends - 1, count - ends]), 0, count - 1))


def _listed(numbers: npt.NDArray[Any] | Sequence[float]) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers]

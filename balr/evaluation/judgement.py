"""All metrics of a set of scored trials, with intervals, as a record that a file keeps and a person reads."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from balr.evaluation.bootstrap import Interval, intervals
from balr.evaluation.calibration import cross_validated
from balr.evaluation.metrics import (
    Array,
    OperatingPoint,
    ScoreCounts,
    cllr,
    convex_hull,
    count_scores,
    equal_error_rate,
    error_rates,
    min_dcf,
    operating_points,
)

TITLES = {
    "eer": "EER",
    "eer_across_sessions": "EER, targets across sessions",
    "eer_convex_hull": "EER on the convex hull",
    "min_dcf_0.01": "minDCF, p=0.01",
    "min_dcf_0.05": "minDCF, p=0.05",
    "min_cllr": "min Cllr",
    "cllr": "Cllr, calibrated on other speakers",
}
METRICS = ("metric", "value", "95% interval")
DECISIONS = ("threshold for", "threshold", "miss", "95% interval", "false alarm", "95% interval")
FALSE_ALARMS = np.geomspace(1e-4, 0.5, 25)  # of the band of the DET curve
CAUTION = "Thresholds hold for this corpus, model, mean and normalisation, and for recordings as long as these."


@dataclass(frozen=True)
class Judgement:
    """Hold metrics of trials, thresholds, and 95% intervals of both by speaker bootstrap.

    `llrs` `(trials,)` are natural-log LRs, cross-validated over speakers; None where speakers are too few.
    """

    metrics: Mapping[str, float]
    points: list[OperatingPoint]
    intervals: Mapping[str, Interval]
    counts: ScoreCounts
    llrs: Array | None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return what evaluation.json holds; rates are fractions, intervals `[low, high]`."""
        counts = {"targets": int(self.counts.targets.sum()), "nontargets": int(self.counts.nontargets.sum())}
        metrics = {name: {"value": value, "interval": self.intervals.get(name)} for name, value in self.metrics.items()}
        points = [
            asdict(point)
            | {"threshold": point.threshold if math.isfinite(point.threshold) else None}
            | {f"{kind}_interval": self.intervals.get(f"{point.name}: {kind}") for kind in ("miss", "false_alarm")}
            for point in self.points
        ]
        return {**self.facts, "trial_counts": counts, "metrics": metrics, "decisions": points}


def tables(evaluation: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Return the columns and rows of two tables: the metrics in evaluation.json, and the thresholds."""
    metrics = []
    for name, metric in evaluation["metrics"].items():
        written = percent if name.startswith("eer") else "{:.3f}".format
        metrics.append((TITLES[name], written(metric["value"]), _interval(metric["interval"], written)))
    decisions = []
    for point in evaluation["decisions"]:
        threshold = "reject all" if point["threshold"] is None else f"{point['threshold']:.4f}"
        rates = [
            cell
            for kind in ("miss", "false_alarm")
            for cell in (percent(point[kind]), _interval(point[f"{kind}_interval"], percent))
        ]
        decisions.append((point["name"], threshold, *rates))
    return [(METRICS, metrics), (DECISIONS, decisions)]


def judge(
    scores: npt.NDArray[np.float32],
    is_target: npt.NDArray[np.bool_],
    speakers: npt.NDArray[np.int32],
    *,
    counts: Mapping[str, ScoreCounts],
    draws: int,
    facts: Mapping[str, Any],
) -> Judgement:
    """Compute the metrics of scored trials `(trials,)` with numbers of the speakers of both sides `(trials, 2)`.

    `counts` are those of `all` trials and perhaps of those `across sessions`, where they are more than the trials that
    are given one by one; else both are counted from these. Raises InputError where a class has no trial, or a score is
    no number.
    """
    whole = counts["all"] if "all" in counts else count_scores(scores, is_target)
    metrics, points = _of_counts(whole), operating_points(error_rates(whole))
    if "across sessions" in counts:
        metrics["eer_across_sessions"] = equal_error_rate(error_rates(counts["across sessions"]))
    llrs = cross_validated(scores, is_target, speakers)
    shown = FALSE_ALARMS[FALSE_ALARMS * (~is_target).sum() >= 1]

    def drawn(some: ScoreCounts) -> dict[str, float]:
        at, found = error_rates(some), _of_counts(some)
        for point in points:
            place = int(np.searchsorted(some.scores, point.threshold))
            found |= {f"{point.name}: miss": at.miss[place], f"{point.name}: false_alarm": at.false_alarm[place]}
        misses = np.interp(shown, at.false_alarm[::-1], at.miss[::-1])
        return found | {f"det {rate}": miss for rate, miss in zip(shown, misses, strict=True)}

    def cost(some: ScoreCounts) -> dict[str, float]:
        return {"cllr": cllr(some.scores, some.targets, some.nontargets)}

    spread = intervals(scores, is_target, speakers, drawn, draws=draws)
    if llrs is not None:
        metrics["cllr"] = cllr(llrs, is_target, ~is_target)
        spread |= intervals(llrs, is_target, speakers, cost, draws=draws)
    metrics = {name: metrics[name] for name in TITLES if name in metrics}
    return Judgement(metrics, points, spread, whole, llrs, facts)


def _of_counts(counts: ScoreCounts) -> dict[str, float]:
    rates, (llrs, pools) = error_rates(counts), convex_hull(counts)
    return {
        "eer": equal_error_rate(rates),
        "eer_convex_hull": equal_error_rate(error_rates(pools)),
        "min_dcf_0.01": min_dcf(rates, 0.01),
        "min_dcf_0.05": min_dcf(rates, 0.05),
        "min_cllr": cllr(llrs, pools.targets, pools.nontargets),
    }


def percent(rate: float) -> str:
    """Return a rate for a table."""
    return f"{100 * rate:.2f}%"


def _interval(interval: Interval | None, written: Callable[[float], str]) -> str:
    return "-" if interval is None else " to ".join(map(written, interval))

"""All metrics of a set of scored trials, with intervals, as a record that a file keeps and a person reads."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from balr.evaluation.bootstrap import Interval, intervals
from balr.evaluation.calibration import cross_validated
from balr.evaluation.metrics import (
    Array,
    OperatingPoint,
    ScoreCounts,
    cllr,
    convex_hull,
    convex_hull_eer,
    count_scores,
    equal_error_rate,
    error_rates,
    min_cllr,
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
METRIC_COLUMNS = ("metric", "value", "95% interval")
DECISION_COLUMNS = ("threshold for", "threshold", "miss", "95% interval", "false alarm", "95% interval")
CAUTION = "Thresholds hold for this corpus, model, mean and normalisation, and for recordings as long as these."


@dataclass(frozen=True)
class Scored:
    """Hold scored trials `(trials,)`, with numbers of the speakers of both sides `(trials, 2)`."""

    scores: npt.NDArray[np.float32]
    is_target: npt.NDArray[np.bool_]
    speakers: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Judgement:
    """Hold metrics of trials, thresholds, and 95% intervals of both by speaker bootstrap.

    `llrs` `(trials,)` are natural-log LRs, cross-validated over speakers; None where speakers are too few.
    """

    targets: int
    nontargets: int
    metrics: Mapping[str, float]
    points: list[OperatingPoint]
    intervals: Mapping[str, Interval]
    counts: ScoreCounts
    llrs: Array | None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return what evaluation.json holds; rates are fractions, intervals `[low, high]`."""
        metrics = {name: {"value": value, "interval": self.intervals.get(name)} for name, value in self.metrics.items()}
        points = [
            {name: _finite(one) for name, one in asdict(point).items()}
            | {f"{kind}_interval": self.intervals.get(f"{point.name}: {kind}") for kind in ("miss", "false_alarm")}
            for point in self.points
        ]
        counts = {"targets": self.targets, "nontargets": self.nontargets}
        return {**self.facts, "trial_counts": counts, "metrics": metrics, "decisions": points}

    def tables(self) -> list[Table]:
        """Return the tables of metrics and of thresholds."""
        shown = self.as_json()
        return [_table(METRIC_COLUMNS, metric_rows(shown)), _table(DECISION_COLUMNS, decision_rows(shown))]


def metric_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the metrics in evaluation.json as cells of a table."""
    rows: list[tuple[str, ...]] = []
    for name, metric in evaluation["metrics"].items():
        written = percent if name.startswith("eer") else "{:.3f}".format
        rows.append((TITLES[name], written(metric["value"]), _interval(metric["interval"], written)))
    return rows


def decision_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the thresholds in evaluation.json, and what they do, as cells of a table."""
    rows = []
    for point in evaluation["decisions"]:
        threshold = "reject all" if point["threshold"] is None else f"{point['threshold']:.4f}"
        rates = [
            cell
            for kind in ("miss", "false_alarm")
            for cell in (percent(point[kind]), _interval(point[f"{kind}_interval"], percent))
        ]
        rows.append((point["name"], threshold, *rates))
    return rows


def judge(scored: Scored, *, counts: Mapping[str, ScoreCounts], draws: int, facts: Mapping[str, Any]) -> Judgement:
    """Compute the metrics of scored trials.

    `counts` are those of `all` trials and perhaps of those `across sessions`, where they are more than the trials that
    are given one by one; else both are counted from these. Raises InputError where a class has no trial, or a score is
    no number.
    """
    whole = counts["all"] if "all" in counts else count_scores(scored.scores, scored.is_target)
    rates = error_rates(whole)
    metrics = {"eer": equal_error_rate(rates.miss, rates.false_alarm)}
    if "across sessions" in counts:
        across = error_rates(counts["across sessions"])
        metrics["eer_across_sessions"] = equal_error_rate(across.miss, across.false_alarm)
    metrics |= _of_counts(whole)
    points = operating_points(rates)
    llrs = cross_validated(scored.scores, scored.is_target, scored.speakers)

    def drawn(some: ScoreCounts) -> dict[str, float]:
        at = error_rates(some)
        found = {"eer": equal_error_rate(at.miss, at.false_alarm), **_of_counts(some)}
        for point in points:
            place = int(np.searchsorted(some.scores, point.threshold))
            found[f"{point.name}: miss"] = float(at.miss[place])
            found[f"{point.name}: false_alarm"] = float(at.false_alarm[place])
        return found

    spread = intervals(scored.scores, scored.is_target, scored.speakers, drawn, draws=draws) if draws else {}
    if llrs is not None:
        metrics["cllr"] = cllr(llrs, scored.is_target.astype(float), (~scored.is_target).astype(float))
    if llrs is not None and draws:

        def cost(some: ScoreCounts) -> dict[str, float]:
            return {"cllr": cllr(some.scores, some.targets, some.nontargets)}

        spread |= intervals(llrs, scored.is_target, scored.speakers, cost, draws=draws)
    targets, nontargets = int(whole.targets.sum()), int(whole.nontargets.sum())
    return Judgement(targets, nontargets, metrics, points, spread, whole, llrs, facts)


def _of_counts(counts: ScoreCounts) -> dict[str, float]:
    rates = error_rates(counts)
    shares, pools = convex_hull(counts)
    return {
        "eer_convex_hull": convex_hull_eer(pools),
        "min_dcf_0.01": min_dcf(rates, 0.01),
        "min_dcf_0.05": min_dcf(rates, 0.05),
        "min_cllr": min_cllr(shares, pools),
    }


def percent(rate: float) -> str:
    """Return a rate for a table."""
    return f"{100 * rate:.2f}%"


def _interval(interval: Interval | None, written: Callable[[float], str]) -> str:
    return "-" if interval is None else " to ".join(map(written, interval))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table

"""The figures of an evaluation, for a page and a paper: one Vega-Lite specification each, drawn from plain numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from balr.errors import ConfigError
from balr.evaluation.curves import Curves

try:
    import altair as alt
    import vl_convert  # noqa: F401  (pages and files are made with it)
except ImportError:
    raise ConfigError("the page needs altair and vl-convert: pip install 'balr[report]'.") from None

_RATES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
_PERCENT = "format(100 * cumulativeNormal(datum.value), '~g') + ' %'"
BLUE = "#2a78b5"
_KINDS = alt.Color("trials:N", scale=alt.Scale(domain=["target", "nontarget"], range=[BLUE, "#e07b39"]))
_SHARE = alt.Y("share:Q", stack=None, title="share of trials", axis=alt.Axis(format="%"))
_LEAST = 1e-4


@dataclass(frozen=True)
class Figure:
    """Hold a figure with its name, which is that of its file, and the sentence below it."""

    name: str
    title: str
    caption: str
    chart: alt.Chart | alt.LayerChart
    width: int = 380
    height: int = 300

    def spec(self) -> dict[str, Any]:
        """Return the Vega-Lite specification."""
        size = {"width": self.width, "height": self.height}
        found: dict[str, Any] = self.chart.properties(background="transparent", **size).to_dict()
        return found


def evaluation_figures(curves: Curves) -> list[Figure]:
    """Return the figures of an evaluation: DET curve, scores, and with LRs Tippett, ECE and PAV plots."""
    figures = [_det(curves["det"], curves["det_interval"]), _histogram(curves["histogram"])]
    if "tippett" in curves:
        figures += [_tippett(curves["tippett"]), _ece(curves["ece"]), _pav(curves["pav"])]
    return figures


def _rows(**columns: Any) -> list[dict[str, Any]]:
    """Return the rows of columns of equal length."""
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def chart(rows: list[dict[str, Any]], mark: Any, **settings: Any) -> Any:
    """Return marks of rows, to be encoded."""
    return alt.Chart({"values": rows}, mark=alt.MarkDef(mark, **settings))


def _probit(axis: str, values: list[float]) -> Any:
    low, high = max(_LEAST, min(values, default=0.01) * 0.7), min(0.95, max(values, default=0.5) * 1.2)
    ticks = [float(ndtri(rate)) for rate in _RATES if low <= rate <= high]
    scale = alt.Scale(domain=[float(ndtri(low)), float(ndtri(high))], clamp=True, nice=False)
    return {"scale": scale, "axis": alt.Axis(values=ticks, labelExpr=_PERCENT), "title": axis}


def _det(det: Curves, interval: Curves) -> Figure:
    x = alt.X("fa:Q", **_probit("false alarms", det["false_alarm"]))
    y = _probit("misses", det["miss"])
    fa, miss = (ndtri(det[name]).tolist() for name in ("false_alarm", "miss"))
    at, low, high = (
        ndtri(np.clip(interval[name], _LEAST, 1 - _LEAST)).tolist() for name in ("false_alarm", "low", "high")
    )
    line = chart(_rows(fa=fa, miss=miss, order=range(len(fa))), "line", interpolate="step-after", color=BLUE, clip=True)
    area = chart(_rows(fa=at, low=low, high=high), "area", opacity=0.2, color=BLUE, clip=True)
    drawn = area.encode(x=x, y=alt.Y("low:Q", **y), y2="high:Q")
    drawn += line.encode(x=x, y=alt.Y("miss:Q", **y), order="order:Q")
    caption = (
        "Misses over false alarms as the threshold moves, on probit axes; the band is the 95% interval by speaker "
        "bootstrap."
    )
    return Figure("det", "DET curve", caption, drawn)


def _histogram(histogram: Curves) -> Figure:
    edges = histogram["edges"]
    rows = [
        row | {"trials": kind}
        for kind in ("nontarget", "target")
        for row in _rows(**{"from": edges[:-1], "to": edges[1:], "share": histogram[kind]})
        if row["share"]
    ]
    bars = chart(rows, "bar", opacity=0.6, binSpacing=0)
    drawn = bars.encode(x=alt.X("from:Q", bin="binned", title="score"), x2="to:Q", y=_SHARE, color=_KINDS)
    return Figure("scores", "Scores", "Scores of target and nontarget trials, each adding up to 100%.", drawn)


def _tippett(tippett: Curves) -> Figure:
    rows = [
        row | {"trials": kind, "order": order}
        for kind in ("target", "nontarget")
        for order, row in enumerate(_rows(**tippett[kind]))
    ]
    line = chart(rows, "line", interpolate="step-after")
    drawn = line.encode(x=alt.X("lr:Q", title="log10 LR"), y=_SHARE, color=_KINDS, order="order:Q")
    zero = chart([{"lr": 0}], "rule", strokeDash=[4, 4], opacity=0.5).encode(x="lr:Q")
    caption = (
        "Share of target trials with an LR of at most x, and of nontarget trials with one of at least x; lines end "
        "where the data end."
    )
    return Figure("tippett", "Tippett plot", caption, drawn + zero)


def _ece(ece: Curves) -> Figure:
    titles = {"lr": "LRs", "pav": "best calibration (PAV)", "none": "no LRs (LR = 1)"}
    rows = [
        row | {"line": title} for name, title in titles.items() for row in _rows(prior=ece["prior"], bits=ece[name])
    ]
    kinds: Any = {"scale": alt.Scale(domain=list(titles.values())), "title": None}
    highest = alt.Scale(domain=[0, 1.3 * max(ece["none"])])
    drawn = chart(rows, "line", clip=True).encode(
        x=alt.X("prior:Q", title="log10 prior odds"),
        y=alt.Y("bits:Q", title="empirical cross-entropy, bits", scale=highest),
        color=alt.Color("line:N", **kinds),
        strokeDash=alt.StrokeDash("line:N", **kinds),
    )
    caption = (
        "Cost of the LRs at every prior. The gap to the best calibration is the loss by calibration; above LR = 1 the "
        "LRs mislead."
    )
    return Figure("ece", "ECE plot", caption, drawn)


def _pav(pav: Curves) -> Figure:
    x, y = alt.X("before:Q", title="log10 LR"), alt.Y("after:Q", title="log10 LR after PAV")
    line = chart(_rows(**pav), "line", point=True, color=BLUE).encode(x=x, y=y)
    ends = [min(pav["before"], default=-1), max(pav["before"], default=1)]
    rule = chart(_rows(before=ends, after=ends), "line", strokeDash=[4, 4], color="gray").encode(x=x, y=y)
    caption = (
        "LRs before and after the best monotonic calibration: on the diagonal they are well calibrated. Pools of one "
        "class have no finite LR."
    )
    return Figure("pav", "PAV plot", caption, rule + line)

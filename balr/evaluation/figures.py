"""The figures of a page and of a paper: one Vega-Lite specification each, drawn from plain numbers."""

from dataclasses import dataclass
from typing import Any

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
_BLUE = "#2a78b5"
_KINDS = alt.Scale(domain=["target", "nontarget"], range=[_BLUE, "#e07b39"])
_LEAST = 1e-4
_SIZE = {"width": 380, "height": 300}


@dataclass(frozen=True)
class Figure:
    """Hold a figure with its name, which is that of its file, and the sentence below it."""

    name: str
    title: str
    caption: str
    chart: alt.Chart | alt.LayerChart

    def spec(self) -> dict[str, Any]:
        """Return the Vega-Lite specification."""
        found: dict[str, Any] = self.chart.properties(background="transparent").to_dict()
        return found


def evaluation_figures(curves: Curves) -> list[Figure]:
    """Return the figures of an evaluation: DET curve, scores, and with LRs Tippett, ECE and PAV plots."""
    figures = [_det(curves["det"], curves["det_interval"]), _histogram(curves["histogram"])]
    if "tippett" in curves:
        figures += [_tippett(curves["tippett"]), _ece(curves["ece"]), _pav(curves["pav"])]
    return figures


def _probit(axis: str, values: list[float]) -> Any:
    low, high = max(_LEAST, min(values, default=0.01) * 0.7), min(0.95, max(values, default=0.5) * 1.2)
    ticks = [float(ndtri(rate)) for rate in _RATES if low <= rate <= high]
    scale = alt.Scale(domain=[float(ndtri(low)), float(ndtri(high))], clamp=True, nice=False)
    return {"scale": scale, "axis": alt.Axis(values=ticks, labelExpr=_PERCENT), "title": axis}


def _det(det: Curves, interval: Curves) -> Figure:
    inside = [
        (fa, miss) for fa, miss in zip(det["false_alarm"], det["miss"], strict=True) if 0 < fa < 1 and 0 < miss < 1
    ]
    rows = [
        {"fa": float(ndtri(fa)), "miss": float(ndtri(miss)), "order": order} for order, (fa, miss) in enumerate(inside)
    ]
    band = [
        {"fa": float(ndtri(fa)), "low": float(ndtri(max(low, _LEAST))), "high": float(ndtri(min(high, 1 - _LEAST)))}
        for fa, low, high in zip(interval["false_alarm"], interval["low"], interval["high"], strict=True)
    ]
    x = alt.X("fa:Q", **_probit("false alarms", [fa for fa, _ in inside]))
    y = _probit("misses", [miss for _, miss in inside])
    line = _data(rows).mark_line(interpolate="step-after", color=_BLUE, clip=True)
    area = _data(band).mark_area(opacity=0.2, color=_BLUE, clip=True)
    chart = area.encode(x=x, y=alt.Y("low:Q", **y), y2="high:Q") + line.encode(
        x=x, y=alt.Y("miss:Q", **y), order="order:Q"
    )
    caption = (
        "Misses over false alarms as the threshold moves, on probit axes; the band is the 95% interval by speaker "
        "bootstrap."
    )
    return Figure("det", "DET curve", caption, chart.properties(**_SIZE))


def _data(rows: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart({"values": rows})


def _histogram(histogram: Curves) -> Figure:
    edges = histogram["edges"]
    rows = [
        {"from": edges[number], "to": edges[number + 1], "share": share, "trials": kind}
        for kind in ("nontarget", "target")
        for number, share in enumerate(histogram[kind])
        if share
    ]
    chart = (
        _data(rows)
        .mark_bar(opacity=0.6, binSpacing=0)
        .encode(
            x=alt.X("from:Q", bin="binned", title="score"),
            x2="to:Q",
            y=alt.Y("share:Q", stack=None, title="share of trials", axis=alt.Axis(format="%")),
            color=alt.Color("trials:N", scale=_KINDS),
        )
    )
    return Figure(
        "scores", "Scores", "Scores of target and nontarget trials, each adding up to 100%.", chart.properties(**_SIZE)
    )


def _tippett(tippett: Curves) -> Figure:
    rows = [
        {"lr": lr, "share": share, "trials": kind, "order": order}
        for kind in ("target", "nontarget")
        for order, (lr, share) in enumerate(zip(tippett[kind]["lr"], tippett[kind]["share"], strict=True))
    ]
    chart = (
        _data(rows)
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X("lr:Q", title="log10 LR"),
            y=alt.Y("share:Q", title="share of trials", axis=alt.Axis(format="%")),
            color=alt.Color("trials:N", scale=_KINDS),
            order="order:Q",
        )
    )
    zero = _data([{"lr": 0}]).mark_rule(strokeDash=[4, 4], opacity=0.5).encode(x="lr:Q")
    caption = (
        "Share of target trials with an LR of at most x, and of nontarget trials with one of at least x; lines end "
        "where the data end."
    )
    return Figure("tippett", "Tippett plot", caption, (chart + zero).properties(**_SIZE))


def _ece(ece: Curves) -> Figure:
    titles = {"lr": "LRs", "pav": "best calibration (PAV)", "none": "no LRs (LR = 1)"}
    rows = [
        {"prior": prior, "bits": bits, "line": title}
        for name, title in titles.items()
        for prior, bits in zip(ece["prior"], ece[name], strict=True)
    ]
    highest = 1.3 * max(ece["none"])
    chart = (
        _data(rows)
        .mark_line(clip=True)
        .encode(
            x=alt.X("prior:Q", title="log10 prior odds"),
            y=alt.Y("bits:Q", title="empirical cross-entropy, bits", scale=alt.Scale(domain=[0, highest])),
            color=alt.Color("line:N", scale=alt.Scale(domain=list(titles.values())), title=None),
            strokeDash=alt.StrokeDash("line:N", scale=alt.Scale(domain=list(titles.values())), title=None),
        )
    )
    caption = (
        "Cost of the LRs at every prior. The gap to the best calibration is the loss by calibration; above LR = 1 the "
        "LRs mislead."
    )
    return Figure("ece", "ECE plot", caption, chart.properties(**_SIZE))


def _pav(pav: Curves) -> Figure:
    rows = [{"before": one, "after": other} for one, other in zip(pav["before"], pav["after"], strict=True)]
    line = (
        _data(rows)
        .mark_line(point=True, color=_BLUE)
        .encode(x=alt.X("before:Q", title="log10 LR"), y=alt.Y("after:Q", title="log10 LR after PAV"))
    )
    ends = [min(pav["before"], default=-1), max(pav["before"], default=1)]
    same = _data([{"before": end, "after": end} for end in ends])
    rule = same.mark_line(strokeDash=[4, 4], color="gray").encode(x="before:Q", y="after:Q")
    caption = (
        "LRs before and after the best monotonic calibration: on the diagonal they are well calibrated. Pools of one "
        "class have no finite LR."
    )
    return Figure("pav", "PAV plot", caption, (rule + line).properties(**_SIZE))


def similarity(names: list[str], cosines: list[list[float]], *, left_out: int) -> Figure:
    """Return the matrix of mean cosines between speakers `(speakers, speakers)`."""
    rows = [
        {"one": names[row], "other": names[column], "cosine": round(value, 4)}
        for row, values in enumerate(cosines)
        for column, value in enumerate(values)
    ]
    size = max(120, min(560, 22 * len(names)))
    chart = (
        _data(rows)
        .mark_rect()
        .encode(
            x=alt.X("one:N", sort=names, title=None),
            y=alt.Y("other:N", sort=names, title=None),
            color=alt.Color("cosine:Q", scale=alt.Scale(scheme="viridis")),
            tooltip=["one:N", "other:N", "cosine:Q"],
        )
    )
    more = f" The {left_out:,} speakers with fewer utterances are left out." if left_out else ""
    caption = f"Mean cosine between the utterances of two speakers, and on the diagonal of one.{more}"
    return Figure("similarity", "Speakers", caption, chart.properties(width=size, height=size))


def map_of(points: list[dict[str, Any]], method: str, *, left_out: int) -> Figure:
    """Return a map of utterances: `x`, `y`, `id`, `speaker`, `seconds` and perhaps the path of the `audio` of each."""
    few = len({point["speaker"] for point in points}) <= 20
    chart = (
        _data(points)
        .mark_circle(size=60, opacity=0.8, cursor="pointer")
        .encode(
            x=alt.X("x:Q", axis=None),
            y=alt.Y("y:Q", axis=None),
            color=alt.Color("speaker:N", legend=alt.Legend() if few else None, scale=alt.Scale(scheme="tableau20")),
            tooltip=["id:N", "speaker:N", alt.Tooltip("seconds:Q", format=".1f")],
        )
    )
    more = f" {left_out:,} utterances are left out." if left_out else ""
    caption = (
        f"{method} of the embeddings. Distances between groups mean little; hover for names, click to listen.{more}"
    )
    return Figure("map", "Map", caption, chart.properties(width=620, height=460))


def norms(points: list[dict[str, Any]]) -> Figure:
    """Return the norm of embeddings over the duration of utterances."""
    chart = (
        _data(points)
        .mark_circle(size=40, opacity=0.6, color=_BLUE)
        .encode(
            x=alt.X("seconds:Q", scale=alt.Scale(type="log", nice=False), title="duration, s"),
            y=alt.Y("norm:Q", scale=alt.Scale(zero=False), title="norm after mean subtraction"),
            tooltip=["id:N", "speaker:N", alt.Tooltip("seconds:Q", format=".1f"), alt.Tooltip("norm:Q", format=".3f")],
        )
    )
    return Figure(
        "norms", "Norm and duration", "Short or noisy utterances often have odd norms.", chart.properties(**_SIZE)
    )

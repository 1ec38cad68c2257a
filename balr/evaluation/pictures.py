"""Figures of a corpus from its embeddings: speakers, a map, norms; and snippets of its audio."""

import base64
import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import altair as alt
import numpy as np
import numpy.typing as npt

from balr.errors import BalrError
from balr.evaluation.figures import BLUE, Figure, chart
from balr.evaluation.scoring import Matrix, unit
from balr.evaluation.source import Embeddings

_MOST_SPEAKERS = 40
_MOST_POINTS = 2_000
_SECONDS = alt.Tooltip("seconds:Q", format=".1f")
_SNIPPET_SECONDS = 3.0
_SNIPPET_HZ = 16_000


def corpus_figures(own: Embeddings, mean: Matrix, folder: Path) -> list[Figure]:
    """Return the figures of a corpus; paths of audio are relative to the `folder` of the page."""
    centred = own.matrix - mean
    lengths = np.linalg.norm(centred, axis=1)
    sound = np.flatnonzero(np.isfinite(lengths) & (lengths > 0))
    if len(sound) < 3:
        return []
    chosen = sound
    if len(sound) > _MOST_POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(sound, _MOST_POINTS, replace=False))
    found = [_map(own, unit(centred[chosen]), chosen, folder, left_out=len(sound) - len(chosen))]
    if len({own.names[row] for row in sound} - {""}) > 1:
        found.append(_similarity(own, unit(centred[sound]), sound))
    timed = [int(row) for row in chosen if np.isfinite(own.seconds[row])]
    points = [{**_names(own, row), "norm": round(float(lengths[row]), 5)} for row in timed]
    return [*found, _norms(points)] if points else found


def snippet(own: Embeddings, row: int) -> str:
    """Return the sound of the first seconds of an utterance as an address; "" where the audio is not there."""
    import soundfile

    from balr.data.audio import load_waveform
    from balr.stores.reading import utterance_of

    [found] = own.table.slice(row, 1).to_pylist()
    cells = {name: "" if cell is None else str(cell) for name, cell in found.items()}
    cells |= {"id": own.ids[row], "audio": own.audio[row], "speaker": own.names[row], "embedding": ""}
    utterance = utterance_of(own.folder, cells)
    if utterance.audio is None or not utterance.audio.is_file():
        return ""
    part = utterance.part
    if own.seconds[row] > _SNIPPET_SECONDS:
        part = replace(part, end_seconds=part.start_seconds + _SNIPPET_SECONDS)
    try:
        waveform = load_waveform(utterance.audio, _SNIPPET_HZ, part=part).numpy()
    except (BalrError, OSError):
        return ""
    sound = io.BytesIO()
    soundfile.write(sound, waveform[: int(_SNIPPET_SECONDS * _SNIPPET_HZ)], _SNIPPET_HZ, format="OGG", subtype="OPUS")
    data = base64.b64encode(sound.getvalue()).decode()
    return f"data:audio/ogg;base64,{data}"


def _names(own: Embeddings, row: int) -> dict[str, Any]:
    names: dict[str, Any] = {"id": own.ids[row], "speaker": own.names[row]}
    seconds = float(own.seconds[row])
    return names | ({"seconds": round(seconds, 2)} if np.isfinite(seconds) else {})


def _map(own: Embeddings, units: Matrix, rows: npt.NDArray[np.int64], folder: Path, *, left_out: int) -> Figure:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(units) - 1) / 4)
    places = TSNE(2, perplexity=perplexity, metric="cosine", init="random", random_state=0).fit_transform(units)
    points = []
    for row, (x, y) in zip(rows.tolist(), places, strict=True):
        point = {**_names(own, row), "x": round(float(x), 3), "y": round(float(y), 3)}
        if own.audio[row] and os.path.isfile(own.audio[row]):
            point["audio"] = quote(os.path.relpath(os.path.realpath(own.audio[row]), os.path.realpath(folder)))
        for name in ("start", "end"):
            if name in own.table.column_names and (cell := own.table[name][row].as_py()) not in (None, ""):
                point[name] = float(cell)
        points.append(point)
    few = len({point["speaker"] for point in points}) <= 20
    drawn = chart(points, "circle", size=60, opacity=0.8, cursor="pointer").encode(
        x=alt.X("x:Q", axis=None),
        y=alt.Y("y:Q", axis=None),
        color=alt.Color("speaker:N", legend=alt.Legend() if few else None, scale=alt.Scale(scheme="tableau20")),
        tooltip=["id:N", "speaker:N", _SECONDS],
    )
    more = f" {left_out:,} utterances are left out." if left_out else ""
    caption = f"t-SNE of the embeddings. Distances between groups mean little; hover for names, click to listen.{more}"
    return Figure("map", "Map", caption, drawn, 620, 460)


def _similarity(own: Embeddings, units: Matrix, rows: npt.NDArray[np.int64]) -> Figure:
    """Draw mean cosines between speakers, those with the most utterances, without an utterance with itself."""
    names = np.array([own.names[row] for row in rows])
    speakers, counts = np.unique(names[names != ""], return_counts=True)
    chosen = np.sort(speakers[np.argsort(-counts, kind="stable")[:_MOST_SPEAKERS]]).tolist()
    sums = np.stack([units[names == speaker].sum(axis=0) for speaker in chosen])
    sizes = np.array([(names == speaker).sum() for speaker in chosen], float)
    cosines = (sums @ sums.T) / np.outer(sizes, sizes)
    own_pairs = np.maximum(sizes * (sizes - 1), 1)
    np.fill_diagonal(cosines, np.where(sizes > 1, ((sums**2).sum(axis=1) - sizes) / own_pairs, 1.0))
    cells = [
        {"one": one, "other": other, "cosine": round(float(cosines[row, column]), 4)}
        for row, one in enumerate(chosen)
        for column, other in enumerate(chosen)
    ]
    drawn = chart(cells, "rect").encode(
        x=alt.X("one:N", sort=chosen, title=None),
        y=alt.Y("other:N", sort=chosen, title=None),
        color=alt.Color("cosine:Q", scale=alt.Scale(scheme="viridis")),
        tooltip=["one:N", "other:N", "cosine:Q"],
    )
    left_out, size = len(speakers) - len(chosen), max(120, min(560, 22 * len(chosen)))
    more = f" The {left_out:,} speakers with fewer utterances are left out." if left_out else ""
    caption = f"Mean cosine between the utterances of two speakers, and on the diagonal of one.{more}"
    return Figure("similarity", "Speakers", caption, drawn, size, size)


def _norms(points: list[dict[str, Any]]) -> Figure:
    drawn = chart(points, "circle", size=40, opacity=0.6, color=BLUE).encode(
        x=alt.X("seconds:Q", scale=alt.Scale(type="log", nice=False), title="duration, s"),
        y=alt.Y("norm:Q", scale=alt.Scale(zero=False), title="norm after mean subtraction"),
        tooltip=["id:N", "speaker:N", _SECONDS, alt.Tooltip("norm:Q", format=".3f")],
    )
    return Figure("norms", "Norm and duration", "Short or noisy utterances often have odd norms.", drawn)

"""Figures of a corpus from its embeddings: speakers, a map, norms; and snippets of its audio."""

import base64
import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from balr.errors import BalrError
from balr.evaluation.figures import Figure, map_of, norms, similarity
from balr.evaluation.scoring import Matrix, unit
from balr.evaluation.source import Embeddings

_MOST_SPEAKERS = 40
_MOST_POINTS = 2_000
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
    points = [
        {**_names(own, int(row)), "norm": round(float(lengths[row]), 5)}
        for row in chosen
        if np.isfinite(own.seconds[row])
    ]
    return [*found, norms(points)] if points else found


def snippet(own: Embeddings, row: int) -> str:
    """Return a player for the first seconds of an utterance, the sound inside; "" where the audio is not there."""
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
    return f'<audio controls preload="none" src="data:audio/ogg;base64,{data}"></audio>'


def _names(own: Embeddings, row: int) -> dict[str, Any]:
    seconds = own.seconds[row]
    return {"id": own.ids[row], "speaker": own.names[row]} | (
        {"seconds": round(float(seconds), 2)} if np.isfinite(seconds) else {}
    )


def _map(own: Embeddings, units: Matrix, rows: npt.NDArray[np.int64], folder: Path, *, left_out: int) -> Figure:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(units) - 1) / 4)
    places = TSNE(2, perplexity=perplexity, metric="cosine", init="random", random_state=0).fit_transform(units)
    points = []
    for row, (x, y) in zip(rows, places, strict=True):
        point = {**_names(own, int(row)), "x": round(float(x), 3), "y": round(float(y), 3)}
        if own.audio[row] and os.path.isfile(own.audio[row]):
            point["audio"] = quote(os.path.relpath(os.path.realpath(own.audio[row]), os.path.realpath(folder)))
        for name in ("start", "end"):
            if name in own.table.column_names and (cell := own.table[name][int(row)].as_py()) not in (None, ""):
                point[name] = float(cell)
        points.append(point)
    return map_of(points, left_out=left_out)


def _similarity(own: Embeddings, units: Matrix, rows: npt.NDArray[np.int64]) -> Figure:
    """Return mean cosines between speakers, those with the most utterances, without an utterance with itself."""
    names = np.array([own.names[row] for row in rows])
    speakers, counts = np.unique(names[names != ""], return_counts=True)
    chosen = np.sort(speakers[np.argsort(-counts, kind="stable")[:_MOST_SPEAKERS]])
    sums = np.stack([units[names == speaker].sum(axis=0) for speaker in chosen])
    sizes = np.array([(names == speaker).sum() for speaker in chosen], float)
    cosines = (sums @ sums.T) / np.outer(sizes, sizes)
    own_pairs = np.maximum(sizes * (sizes - 1), 1)
    np.fill_diagonal(cosines, np.where(sizes > 1, ((sums**2).sum(axis=1) - sizes) / own_pairs, 1.0))
    return similarity(chosen.tolist(), cosines.tolist(), left_out=len(speakers) - len(chosen))

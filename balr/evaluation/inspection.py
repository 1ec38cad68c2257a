"""What embeddings show of a corpus without trials: likely label errors, duplicates and odd recordings.

An utterance is compared with those of other sessions, as a label is often wrong for a whole session (VoxCeleb's faces).
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from balr.evaluation.pairs import numbered, session_of
from balr.evaluation.scoring import Matrix, unit
from balr.evaluation.source import Embeddings
from balr.evaluation.trials import Indices

log = logging.getLogger(__name__)

_DUPLICATE = 0.9999
_SHORT_SECONDS = 2.0
_ODD = 6.0  # times the usual spread
_MOST_QUERIES = 50_000
_SAMPLED_QUERIES = 20_000
_ROWS = 512
_WORST_SPEAKERS = 10


@dataclass(frozen=True)
class Suspect:
    """Name something that a person should look at: `value` is what its kind measures, `other` what it is like."""

    kind: str
    id: str
    speaker: str
    value: float
    other: str = ""
    other_speaker: str = ""


@dataclass(frozen=True)
class Inspection:
    """Hold what was found, worst first within a kind.

    `neighbour_accuracy`: the share whose nearest utterance of another session is of the same speaker, among those whose
    speaker has another session; None where there are none.
    """

    suspects: list[Suspect]
    neighbour_accuracy: float | None


def inspect(own: Embeddings, *, mean: Matrix) -> Inspection:
    """Look for what is suspicious in a corpus; `mean` `(dim,)` is subtracted first."""
    centred = own.matrix - mean
    norms = np.linalg.norm(centred, axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    units = np.where(usable[:, None], unit(centred), np.float32(0))
    speakers, sessions = own.speakers, numbered([session_of(id_) or id_ for id_ in own.ids])
    rows = queries = np.arange(len(units))
    if len(rows) > _MOST_QUERIES:
        log.warning("duplicates and neighbours are looked for in a random %s of %s", _SAMPLED_QUERIES, len(rows))
        queries = np.sort(np.random.default_rng(0).choice(rows, _SAMPLED_QUERIES, replace=False))
    groups = (queries, rows), (sessions[queries], sessions)
    (nearest, elsewhere), (cosine, _) = _nearest(units[queries], units, *groups)
    suspects = [*_duplicates(own, nearest, cosine, queries)]
    has_rival = (speakers[queries] >= 0) & _has_other_session(speakers, sessions)[queries]
    accuracy = None
    if has_rival.any():
        accuracy = float((speakers[elsewhere[has_rival]] == speakers[queries[has_rival]]).mean())
    if (speakers >= 0).any():
        suspects += _labels(own, units, speakers, sessions)
    suspects += [
        Suspect("embedding without a direction", own.ids[row], own.names[row], float(norms[row]))
        for row in np.flatnonzero(~usable)
    ]
    return Inspection([*suspects, *_odd(own, norms)], accuracy)


def _nearest(units: Matrix, others: Matrix, *groups: tuple[Indices, Indices]) -> tuple[Indices, Matrix]:
    """Return the nearest of others that is not of the same group, with its cosine `(groups, units)`.

    `groups`: numbers of the groups of units and of others; each pair leaves out what those before it do, too.
    """
    nearest = np.zeros((len(groups), len(units)), np.int64)
    cosine = np.zeros(nearest.shape, np.float32)
    for start in range(0, len(units), _ROWS):
        part = slice(start, start + _ROWS)
        cosines = units[part] @ others.T
        for number, (own, other) in enumerate(groups):
            cosines[own[part, None] == other] = -2
            nearest[number, part], cosine[number, part] = cosines.argmax(axis=1), cosines.max(axis=1)
    return nearest, cosine


def _over(values: npt.NDArray[np.floating], limit: float) -> list[int]:
    """Return the places of values above a limit, highest first."""
    order = np.argsort(-values, kind="stable")
    places: list[int] = order[values[order] > limit].tolist()
    return places


def _has_other_session(speakers: Indices, sessions: Indices) -> npt.NDArray[np.bool_]:
    pairs = np.unique(np.stack([speakers, sessions], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0] + 1)
    several: npt.NDArray[np.bool_] = counts[speakers + 1] > 1
    return several


def _duplicates(own: Embeddings, nearest: Indices, cosine: Matrix, queries: Indices) -> Iterator[Suspect]:
    seen = set()
    for place in _over(cosine, _DUPLICATE):
        one, other = sorted((int(queries[place]), int(nearest[place])))
        if (one, other) not in seen:
            seen.add((one, other))
            names = own.ids[one], own.names[one]
            yield Suspect("duplicate", *names, float(cosine[place]), own.ids[other], own.names[other])


def _labels(own: Embeddings, units: Matrix, speakers: Indices, sessions: Indices) -> Iterator[Suspect]:
    """Yield utterances nearer to another speaker's mean than to their own's, speakers alike, and the worst speakers."""
    known = np.flatnonzero(speakers >= 0)
    numbers, first, speaker = np.unique(speakers[known], return_index=True, return_inverse=True)
    names = [own.names[row] for row in known[first]]
    groups, session = np.unique(np.stack([speaker, sessions[known]], axis=1), axis=0, return_inverse=True)
    sums = np.zeros((len(numbers), units.shape[1]), np.float32)
    np.add.at(sums, speaker, units[known])
    of_session = np.zeros((len(groups), units.shape[1]), np.float32)
    np.add.at(of_session, session.ravel(), units[known])
    rest = sums[speaker] - of_session[session.ravel()]
    likeness = np.einsum("ij,ij->i", units[known], unit(rest))
    is_judged = np.bincount(groups[:, 0], minlength=len(numbers))[speaker] > 1
    means = unit(sums)
    [rivals], [rival] = _nearest(units[known], means, (speaker, np.arange(len(numbers))))
    suspicion = np.where(is_judged, rival - likeness, -np.inf)
    for row in _over(suspicion, 0):
        which, like = int(known[row]), names[rivals[row]]
        yield Suspect("label error", own.ids[which], own.names[which], float(suspicion[row]), other_speaker=like)
    if not is_judged.any():
        return
    yield from _speakers(names, means, np.median(likeness[is_judged]))
    totals = np.bincount(speaker[is_judged], likeness[is_judged], len(numbers))
    counts = np.bincount(speaker[is_judged], minlength=len(numbers))
    unlike = np.where(counts > 0, -totals / np.maximum(counts, 1), -np.inf)
    for number in _over(unlike, -np.inf)[: min(_WORST_SPEAKERS, len(numbers) // 2)]:
        yield Suspect("speaker least like itself", "", names[number], -float(unlike[number]))


def _speakers(names: list[str], means: Matrix, usual: float) -> Iterator[Suspect]:
    """Yield pairs of speakers whose means are nearer to each other than utterances usually are to their speaker's."""
    for start in range(0, len(means), _ROWS):
        cosines = np.triu(means[start : start + _ROWS] @ means.T, start + 1)
        for row, column in zip(*np.nonzero(cosines > usual), strict=True):
            value = float(cosines[row, column])
            yield Suspect("speakers alike", "", names[start + int(row)], value, other_speaker=names[int(column)])


def _odd(own: Embeddings, norms: Matrix) -> Iterator[Suspect]:
    for kind, values in (("odd norm", norms), ("odd duration", own.seconds)):
        rows = np.flatnonzero(np.isfinite(values) & (values > 0))
        logs = np.log(values[rows].astype(float))
        distance = np.abs(logs - np.median(logs)) if len(rows) else logs
        usual = 1.4826 * np.median(distance) if len(rows) else 0.0  # the standard deviation of a Gaussian
        for row in rows[_over(distance, _ODD * usual)].tolist() if usual else ():
            yield Suspect(kind, own.ids[row], own.names[row], float(values[row]))
    for row in np.flatnonzero(own.seconds < _SHORT_SECONDS).tolist():
        yield Suspect("short", own.ids[row], own.names[row], float(own.seconds[row]))

"""Cosine scores of trials after mean subtraction, and AS-norm, as WeSpeaker's recipes compute them.

wespeaker: examples/voxceleb/v2/local/{score.sh,score_norm.sh}, wespeaker/bin/{score.py,score_norm.py}.
"""

import numpy as np
import numpy.typing as npt

from balr.errors import InputError
from balr.evaluation.trials import Indices, Trials

_ROWS = 1_024
_TRIALS = 32_768
_DENSE = 40  # a product of all with all is as fast as gathering, for so many pairs to a trial
Matrix = npt.NDArray[np.float32]


def enrolled(embeddings: Matrix, trials: Trials, *, of_unit: bool) -> Matrix:
    """Return embeddings `(utterances, dim)`, less the mean, and those of models, the means of their utterances.

    `of_unit`: of embeddings divided by their length, where WeSpeaker averages them as they are.
    """
    if not trials.models:
        return embeddings
    averaged = unit(embeddings) if of_unit else embeddings
    return np.concatenate([embeddings, *(averaged[rows].mean(axis=0, keepdims=True) for _, rows in trials.models)])


def refuse_unusable(embeddings: Matrix, names: list[str]) -> None:
    """Raise InputError where embeddings `(utterances, dim)` have NaN or no length."""
    lengths = np.linalg.norm(embeddings, axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        shown = ", ".join(names[row] for row in bad[:5])
        raise InputError(
            f"{len(bad):,} embeddings have NaN, or are the mean itself, so they have no direction: {shown}."
        )


def unit(embeddings: Matrix) -> Matrix:
    """Divide embeddings `(utterances, dim)` by their Euclidean norms; zeros stay zeros."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    scaled: Matrix = embeddings / (norms + (norms == 0))
    return scaled


def cosines(units: Matrix, enrollment: Indices, test: Indices) -> Matrix:
    """Return the inner product of each trial `(trials,)` of embeddings of unit length `(utterances, dim)`."""
    scores = np.empty(len(enrollment), np.float32)
    order = np.argsort(enrollment, kind="stable")
    for start in range(0, len(order), _TRIALS):
        part = order[start : start + _TRIALS]
        rows, row = np.unique(enrollment[part], return_inverse=True)
        columns, column = np.unique(test[part], return_inverse=True)
        if len(rows) * len(columns) > _DENSE * len(part):
            scores[part] = np.einsum("ij,ij->i", units[enrollment[part]], units[test[part]])
        else:
            scores[part] = (units[rows] @ units[columns].T)[row, column]
    return scores


def score(centred: Matrix, trials: Trials, *, cohort: Matrix | None = None, top_n: int = 0) -> Matrix:
    """Return the score of each trial `(trials,)`: the cosine, with a cohort after AS-norm.

    `centred` `(utterances + models, dim)`, `cohort` `(speakers, dim)`: embeddings after mean subtraction. AS-norm: each
    side's score is normalised by mean and standard deviation of its own `top_n` highest cosines with the cohort, and
    the two are averaged (adaptive S-norm 1; Matějka et al., Interspeech 2017).
    """
    units = unit(centred)
    scores = cosines(units, trials.enrollment, trials.test)
    if cohort is None:
        return scores
    used = np.unique(np.concatenate([trials.enrollment, trials.test]))
    means, deviations = np.zeros(len(units), np.float32), np.ones(len(units), np.float32)
    means[used], deviations[used] = _highest(units[used], unit(cohort), min(top_n, len(cohort)))
    sides = [(scores - means[side]) / deviations[side] for side in (trials.enrollment, trials.test)]
    return np.asarray((sides[0] + sides[1]) / 2, np.float32)


def _highest(units: Matrix, others: Matrix, top_n: int) -> tuple[Matrix, Matrix]:
    """Return mean and standard deviation of the `top_n` highest cosines of each with the cohort."""
    means, deviations = np.empty(len(units), np.float32), np.empty(len(units), np.float32)
    for start in range(0, len(units), _ROWS):
        highest = np.partition(units[start : start + _ROWS] @ others.T, -top_n, axis=1)[:, -top_n:]
        means[start : start + _ROWS] = highest.mean(axis=1)
        deviations[start : start + _ROWS] = highest.std(axis=1)
    return means, deviations

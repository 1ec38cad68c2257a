"""From scores to likelihood ratios (LRs): logistic regression, fitted on trials of other speakers than those judged."""

import numpy as np
import numpy.typing as npt

from balr.evaluation.metrics import Array, sample_of

_FOLDS = 5
_MOST_TRIALS = 400_000  # two numbers are fitted
_C = 1e4  # hardly any regularisation, but where all targets are above all nontargets the slope stays finite


def calibrated(
    scores: npt.NDArray[np.floating], is_target: npt.NDArray[np.bool_], judged: npt.NDArray[np.floating]
) -> Array:
    """Return natural-log LRs of the `judged` scores, by a line fitted to `scores`, both classes weighing the same.

    N trials of a class support LRs of N + 1 at most (after Vergeer et al., Science & Justice 56, 2016).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    line = make_pipeline(StandardScaler(), LogisticRegression(C=_C, class_weight="balanced"))
    found: Array = line.fit(scores.astype(float)[:, None], is_target).decision_function(judged.astype(float)[:, None])
    return np.clip(found, -np.log(is_target.sum() + 1), np.log((~is_target).sum() + 1))


def cross_validated(
    scores: npt.NDArray[np.floating], is_target: npt.NDArray[np.bool_], speakers: npt.NDArray[np.int32]
) -> Array | None:
    """Return natural-log LRs `(trials,)`, each by a calibration fitted without either speaker of the trial.

    `speakers` `(trials, 2)` numbers those of both sides. None where there are too few speakers to leave some out.
    """
    random = np.random.default_rng(0)
    numbers = np.unique(speakers)
    folds = np.zeros(int(numbers.max()) + 1, np.int8)
    folds[random.permutation(numbers)] = np.arange(len(numbers)) % _FOLDS
    lower, upper = np.sort(folds[speakers], axis=1).T
    llrs = np.full(len(scores), np.nan)
    sample = sample_of(is_target, _MOST_TRIALS)
    for one in range(_FOLDS):
        for other in range(one, _FOLDS):
            judged = np.flatnonzero((lower == one) & (upper == other))
            fitted = sample[~np.isin(lower[sample], (one, other)) & ~np.isin(upper[sample], (one, other))]
            if not len(judged):
                continue
            if is_target[fitted].all() or not is_target[fitted].any():
                return None
            llrs[judged] = calibrated(scores[fitted], is_target[fitted], scores[judged])
    return llrs

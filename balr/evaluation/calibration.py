"""From scores to likelihood ratios (LRs): logistic regression, fitted on trials of other speakers than those judged."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from balr.evaluation.metrics import Array

_FOLDS = 5
_MOST_TRIALS = 200_000  # of each class: two numbers are fitted
_C = 1e4  # hardly any regularisation, but where all targets are above all nontargets the slope stays finite


@dataclass(frozen=True)
class Calibration:
    """Map a score to a natural-log LR: `slope * score + offset`, no further than the trials support."""

    slope: float
    offset: float
    lowest: float
    highest: float

    def __call__(self, scores: npt.NDArray[np.floating]) -> Array:
        """Return the natural-log LRs of scores."""
        return np.clip(self.slope * scores.astype(float) + self.offset, self.lowest, self.highest)


def fit(scores: Array, is_target: npt.NDArray[np.bool_]) -> Calibration:
    """Fit a calibration to scores `(trials,)`, both classes weighing the same.

    N trials of a class support LRs of N + 1 at most (after Vergeer et al., Science & Justice 56, 2016).
    """
    from sklearn.linear_model import LogisticRegression

    counts = int(is_target.sum()), int((~is_target).sum())
    centre, spread = float(scores.mean()), float(scores.std()) or 1.0
    weights = np.where(is_target, 0.5 / counts[0], 0.5 / counts[1]) * len(scores)
    regression = LogisticRegression(C=_C).fit(((scores - centre) / spread)[:, None], is_target, weights)
    slope = float(regression.coef_[0, 0]) / spread
    offset = float(regression.intercept_[0]) - slope * centre
    return Calibration(slope, offset, -float(np.log(counts[0] + 1)), float(np.log(counts[1] + 1)))


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
    sample = np.concatenate(
        [random.permutation(np.flatnonzero(kind))[:_MOST_TRIALS] for kind in (is_target, ~is_target)]
    )
    for one in range(_FOLDS):
        for other in range(one, _FOLDS):
            judged = np.flatnonzero((lower == one) & (upper == other))
            fitted = sample[~np.isin(lower[sample], (one, other)) & ~np.isin(upper[sample], (one, other))]
            if not len(judged):
                continue
            if is_target[fitted].all() or not is_target[fitted].any():
                return None
            llrs[judged] = fit(scores[fitted].astype(float), is_target[fitted])(scores[judged])
    return llrs

"""All pairs of a corpus with speakers: as a trial list, or counted in a histogram where they are many."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from balr.evaluation.metrics import ScoreCounts, checked
from balr.evaluation.trials import Indices, Trials

MOST_TRIALS = 10_000_000
_BINS = 1 << 16
_ROWS, _COLUMNS = 2_048, 16_384
_SAMPLED = 500_000


def all_pairs(speakers: Indices) -> Trials:
    """Return each pair of utterances once, with the number of the speaker of each utterance `(utterances,)` given."""
    first, second = np.triu_indices(len(speakers), 1)
    return Trials(first, second, speakers[first] == speakers[second], source={"trials": "all pairs"})


def sampled_pairs(speakers: Indices) -> Trials:
    """Return a random half million of pairs of each class at most, drawn with replacement, each once."""
    random = np.random.default_rng(0)
    order = np.argsort(speakers, kind="stable")
    _, starts, counts = np.unique(speakers[order], return_index=True, return_counts=True)
    share = counts * (counts - 1) / max(1, (counts * (counts - 1)).sum())
    chosen = random.choice(len(counts), _SAMPLED, p=share) if share.any() else np.zeros(0, int)
    one = (random.random(len(chosen)) * counts[chosen]).astype(int)
    other = (one + 1 + (random.random(len(chosen)) * (counts[chosen] - 1)).astype(int)) % counts[chosen]
    targets = np.stack([order[starts[chosen] + one], order[starts[chosen] + other]], axis=1)
    others = random.integers(len(speakers), size=(_SAMPLED, 2))
    others = others[speakers[others[:, 0]] != speakers[others[:, 1]]]
    pairs = np.sort(np.concatenate([targets, others]), axis=1)
    first, second = np.divmod(np.unique(pairs[:, 0] * len(speakers) + pairs[:, 1]), len(speakers))
    source = {"trials": "all pairs", "listed": "a sample"}
    return Trials(first, second, speakers[first] == speakers[second], source=source)


def pairs_by_histogram(
    embeddings: npt.NDArray[np.float32], speakers: Indices, sessions: Indices | None
) -> dict[str, ScoreCounts]:
    """Return the counts of the cosines of all pairs, exact to a bin of 2 / 65,536; and of those across sessions.

    `embeddings` `(utterances, dim)` are of unit length; sessions are parts of speakers. Time grows with the square of
    the number of utterances.
    """
    import torch  # its histogram is twice as fast as numpy's

    units = torch.from_numpy(embeddings)
    groups = [None, *(torch.from_numpy(one) for one in (speakers, sessions) if one is not None)]
    totals = np.zeros((len(groups), _BINS))
    for row in range(0, len(units), _ROWS):
        for column in range(row, len(units), _COLUMNS):
            rows, columns = slice(row, row + _ROWS), slice(column, column + _COLUMNS)
            cosines = (units[rows] @ units[columns].T).clamp(-1.0, 1.0)
            if column == row:
                cosines[:, : len(cosines)] += 3 * torch.ones(len(cosines), len(cosines)).tril()  # out of range
            for number, group in enumerate(groups):
                some = cosines if group is None else cosines[group[rows, None] == group[columns]]
                totals[number] += some.histc(_BINS, -1.0, 1.0).numpy()
    everything, targets = totals[:2]
    centres = (np.arange(_BINS) + 0.5) * 2 / _BINS - 1
    found = {"all": checked(ScoreCounts(centres, targets, everything - targets))}
    if sessions is not None and (across := targets - totals[2]).any():
        found["across sessions"] = checked(ScoreCounts(centres, across, everything - targets))
    return found


def numbered(names: Sequence[str]) -> Indices:
    """Return a number for each name, the same for equal ones."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def session_of(id_: str) -> str | None:
    """Return the part of an id that names its session, as `id00012/21Uxsk56VDQ` of `id00012/21Uxsk56VDQ/00001`."""
    return id_.rpartition("/")[0] if id_.count("/") >= 2 else None

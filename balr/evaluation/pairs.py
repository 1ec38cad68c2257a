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


def sampled_pairs(speakers: Indices, *, seed: int = 0) -> Trials:
    """Return a random half million of pairs of each class at most, drawn with replacement, each once."""
    random = np.random.default_rng(seed)
    order = np.argsort(speakers, kind="stable")
    _, starts, counts = np.unique(speakers[order], return_index=True, return_counts=True)
    share = counts * (counts - 1) / max(1, (counts * (counts - 1)).sum())
    chosen = random.choice(len(counts), _SAMPLED, p=share) if share.any() else np.zeros(0, int)
    one = (random.random(len(chosen)) * counts[chosen]).astype(int)
    other = (one + 1 + (random.random(len(chosen)) * (counts[chosen] - 1)).astype(int)) % counts[chosen]
    targets = np.stack([order[starts[chosen] + one], order[starts[chosen] + other]], axis=1)
    others = random.integers(len(speakers), size=(_SAMPLED, 2))
    others = others[speakers[others[:, 0]] != speakers[others[:, 1]]]
    pairs = np.unique(np.sort(np.concatenate([targets, others]), axis=1), axis=0)
    return Trials(pairs[:, 0], pairs[:, 1], speakers[pairs[:, 0]] == speakers[pairs[:, 1]])


def pair_counts(embeddings: npt.NDArray[np.float32], groups: Indices) -> npt.NDArray[np.int64]:
    """Count the cosines of all pairs within each group, in bins `(bins,)` over [-1, 1].

    `embeddings` `(utterances, dim)` are of unit length; one group for all gives all pairs.
    """
    import torch  # its histogram is twice as fast as numpy's

    total = np.zeros(_BINS)

    def count(cosines: torch.Tensor) -> None:
        if cosines.numel():
            total[:] += cosines.clamp(-1.0, 1.0).histc(_BINS, -1.0, 1.0).numpy()

    order = np.argsort(groups, kind="stable")
    _, starts = np.unique(groups[order], return_index=True)
    for start, end in zip(starts, (*starts[1:], len(order)), strict=True):
        members = torch.from_numpy(embeddings[order[start:end]])
        for row in range(0, len(members), _ROWS):
            block = members[row : row + _ROWS]
            is_above = torch.ones(len(block), len(block), dtype=torch.bool).triu(1)
            count((block @ block.T)[is_above])
            for column in range(row + _ROWS, len(members), _COLUMNS):
                count(block @ members[column : column + _COLUMNS].T)
    return total.astype(np.int64)


def pairs_by_histogram(
    embeddings: npt.NDArray[np.float32], speakers: Indices, sessions: Indices | None
) -> dict[str, ScoreCounts]:
    """Return the counts of the cosines of all pairs, exact to a bin of 2 / 65,536; and of those across sessions.

    Time grows with the square of the number of utterances.
    """
    everything = pair_counts(embeddings, np.zeros(len(speakers), np.int64))
    targets = pair_counts(embeddings, speakers)
    centres = (np.arange(_BINS) + 0.5) * 2 / _BINS - 1
    found = {"all": _counts(centres, targets, everything - targets)}
    if sessions is not None:
        across = targets - pair_counts(embeddings, sessions)
        if across.any():
            found["across sessions"] = _counts(centres, across, everything - targets)
    return found


def _counts(scores: npt.NDArray[np.float64], targets: Indices, nontargets: Indices) -> ScoreCounts:
    return checked(ScoreCounts(scores, targets.astype(float), nontargets.astype(float)))


def numbered(names: Sequence[str]) -> Indices:
    """Return a number for each name, the same for equal ones."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def session_of(id_: str) -> str | None:
    """Return the part of an id that names its session, as `id00012/21Uxsk56VDQ` of `id00012/21Uxsk56VDQ/00001`."""
    return id_.rpartition("/")[0] if id_.count("/") >= 2 else None

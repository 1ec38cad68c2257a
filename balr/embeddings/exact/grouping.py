"""Rows of a batch that go through a network together, put back into their order."""

from collections.abc import Callable, Sequence

import torch

Rows = Sequence[int]


def by_group(
    features: Sequence[torch.Tensor], groups: Sequence[Rows], run: Callable[[Sequence[torch.Tensor]], torch.Tensor]
) -> torch.Tensor:
    """Return the rows that a function makes of each group of features, in the order of the features."""
    made = torch.cat([run([features[row] for row in group]) for group in groups])
    order = torch.tensor([row for group in groups for row in group])
    return made[order.argsort().to(made.device, non_blocking=True)] if len(groups) > 1 else made


def of_equal_length(frames: Sequence[int]) -> list[Rows]:
    """Group rows by their number of frames."""
    rows_of: dict[int, list[int]] = {}
    for row, count in enumerate(frames):
        rows_of.setdefault(count, []).append(row)
    return list(rows_of.values())

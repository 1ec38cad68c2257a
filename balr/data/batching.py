"""Which utterances go together: batches of nearly equal length, the longest first, the same at every run."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

# A shape costs a GPU the planning of every layer, so there are few: each length is a twentieth of a doubling, 3.5 %,
# over the one before.
_LENGTHS_PER_DOUBLING = 20
_FRAMES_PER_SECOND = 100
_LARGEST_PADDING = 0.05

Batch = tuple[int, ...]


def padded_frames(frames: int) -> int:
    """Return the length that a batch is padded to whose longest utterance has so many frames."""
    step = math.ceil(math.log2(frames) * _LENGTHS_PER_DOUBLING - 1e-9)
    return max(frames, math.floor(2 ** (step / _LENGTHS_PER_DOUBLING)))


def group_by_length(frames: Sequence[int]) -> list[Batch]:
    """Group utterances by their frames so that padding stays small, all in one group where it does already.

    A plan rests on headers, and a header can be wrong.
    """
    if sum(frames) >= (1 - 2 * _LARGEST_PADDING) * len(frames) * padded_frames(max(frames)):
        return [tuple(range(len(frames)))]
    seconds = [count / _FRAMES_PER_SECOND for count in frames]
    return plan_batches(seconds, batch_size=len(frames), max_batch_seconds=math.inf)


def plan_passes(
    segments: Iterable[tuple[str, float, float, int]], *, batch_size: int, max_batch_seconds: float
) -> list[Batch]:
    """Put segments, each a file, a start, a length in seconds and an index, into batches of one file by their starts.

    So a file that cannot be sought is decoded once and not once for each segment.
    """
    batches: list[Batch] = []
    members: list[int] = []
    previous, longest = "", 0.0
    for file, _, seconds, index in sorted(segments):
        is_full = len(members) == batch_size or (len(members) + 1) * max(longest, seconds) > max_batch_seconds
        if members and (file != previous or is_full):
            batches.append(tuple(members))
            members, longest = [], 0.0
        members.append(index)
        previous, longest = file, max(longest, seconds)
    return [*batches, tuple(members)] if members else batches


def plan_batches(
    seconds: Sequence[float | None], *, batch_size: int, max_batch_seconds: float, shuffle: bool = False
) -> list[Batch]:
    """Put the indices of utterances into batches by their lengths in seconds (None: unknown).

    A batch holds at most `batch_size` utterances and, padding included, `max_batch_seconds`, a twentieth of it padding
    at most; a longer utterance is a batch of its own. Longest first, so that no batch needs more memory than the first
    ones; what is unknown comes before all and alone. `shuffle` draws the order of the batches, the same at every run.
    """
    unknown = [(index,) for index, length in enumerate(seconds) if length is None]
    known = sorted((-length, index) for index, length in enumerate(seconds) if length is not None)
    batches: list[Batch] = []
    members: list[int] = []
    width = held = 0.0
    for negative, index in known:
        length = -negative
        after = (len(members) + 1) * width
        too_wide = after > max_batch_seconds or after - held - length > _LARGEST_PADDING * after
        if members and (len(members) == batch_size or too_wide):
            batches.append(tuple(members))
            members = []
        if not members:
            held = 0.0
            width = padded_frames(max(1, math.ceil(length * _FRAMES_PER_SECOND))) / _FRAMES_PER_SECOND
        members.append(index)
        held += length
    planned = [*unknown, *batches, *([tuple(members)] if members else [])]
    return [planned[number] for number in np.random.default_rng(0).permutation(len(planned))] if shuffle else planned

"""Group utterances into batches of nearly equal length, the longest first, in the same way at every run."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

# A GPU plans every layer anew for each shape, so there are few padded lengths: each is 3.5 % longer than the last.
_LENGTHS_PER_DOUBLING = 20
_FRAMES_PER_SECOND = 100
_LARGEST_PADDING = 0.05

Batch = tuple[int, ...]


def padded_frames(frames: int) -> int:
    """Return the frames that a batch is padded to if its longest utterance has `frames`."""
    step = math.ceil(math.log2(frames) * _LENGTHS_PER_DOUBLING - 1e-9)
    return max(frames, math.floor(2 ** (step / _LENGTHS_PER_DOUBLING)))


def group_by_length(frames: Sequence[int]) -> list[Batch]:
    """Group the rows of a batch by their number of frames so that padding stays small, in one group if it is small.

    Batches are planned by headers, which can be wrong.
    """
    if sum(frames) >= (1 - 2 * _LARGEST_PADDING) * len(frames) * padded_frames(max(frames)):
        return [tuple(range(len(frames)))]
    seconds = [count / _FRAMES_PER_SECOND for count in frames]
    return plan_batches(seconds, batch_size=len(frames), max_batch_seconds=math.inf)


def plan_passes(
    segments: Iterable[tuple[str, float, float, int]], *, batch_size: int, max_batch_seconds: float
) -> list[Batch]:
    """Put segments (file, start, length in seconds, index) into batches of one file each, in the order of their starts.

    A file that cannot be sought is then decoded once and not once per segment.
    """
    batches: list[list[int]] = []
    previous, longest = None, 0.0
    for file, _, seconds, index in sorted(segments):
        longest = max(longest, seconds)
        is_full = file != previous or len(batches[-1]) == batch_size
        if is_full or (len(batches[-1]) + 1) * longest > max_batch_seconds:
            batches.append([])
            longest = seconds
        batches[-1].append(index)
        previous = file
    return [tuple(batch) for batch in batches]


def plan_batches(
    seconds: Sequence[float | None], *, batch_size: int, max_batch_seconds: float, shuffle: bool = False
) -> list[Batch]:
    """Put the indices of utterances into batches by their lengths in seconds (None: unknown).

    A batch holds at most `batch_size` utterances and `max_batch_seconds` with padding, and at most 5 % of it is
    padding; a longer utterance is a batch of its own. The longest come first, so that no later batch needs more memory;
    each utterance of unknown length comes before them, alone. `shuffle` gives a random order, the same at every run.
    """
    unknown = [(index,) for index, length in enumerate(seconds) if length is None]
    known = sorted((-length, index) for index, length in enumerate(seconds) if length is not None)
    batches: list[list[int]] = []
    width = filled = 0.0
    for negative, index in known:
        length = -negative
        is_full = not batches or len(batches[-1]) == batch_size
        padded = 0.0 if is_full else (len(batches[-1]) + 1) * width
        if is_full or padded > max_batch_seconds or padded - filled - length > _LARGEST_PADDING * padded:
            batches.append([])
            filled = 0.0
            width = padded_frames(max(1, math.ceil(length * _FRAMES_PER_SECOND))) / _FRAMES_PER_SECOND
        batches[-1].append(index)
        filled += length
    planned = [*unknown, *map(tuple, batches)]
    return [planned[number] for number in np.random.default_rng(0).permutation(len(planned))] if shuffle else planned

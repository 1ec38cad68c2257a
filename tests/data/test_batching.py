"""Batches by length: all utterances once, within the bounds, little padding, few shapes, the longest first."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balr.data.batching import group_by_length, padded_frames, plan_batches

LENGTHS = st.lists(st.none() | st.floats(0.0, 4000.0), max_size=80)


def width(seconds: float) -> float:
    return padded_frames(max(1, math.ceil(seconds * 100))) / 100


@given(LENGTHS, st.integers(1, 20), st.floats(1.0, 1000.0), st.booleans())
def test_every_utterance_is_in_one_batch_and_batches_keep_their_bounds(
    seconds: list[float | None], batch_size: int, most: float, shuffle: bool
) -> None:
    plan = plan_batches(seconds, batch_size=batch_size, max_batch_seconds=most, shuffle=shuffle)
    assert sorted(index for batch in plan for index in batch) == list(range(len(seconds)))
    for batch in plan:
        assert len(batch) <= batch_size
        if len(batch) > 1:
            lengths = [seconds[index] for index in batch]
            wide = width(max(lengths))
            assert wide * len(batch) <= most
            assert sum(lengths) >= 0.95 * wide * len(batch) - 1e-6


@given(LENGTHS)
def test_no_batch_is_wider_than_the_one_before_and_the_unknown_comes_first_and_alone(
    seconds: list[float | None],
) -> None:
    plan = plan_batches(seconds, batch_size=4, max_batch_seconds=100.0)
    longest = [[seconds[index] for index in batch] for batch in plan]
    unknown = seconds.count(None)
    assert all(lengths == [None] for lengths in longest[:unknown])
    known = [max(lengths) for lengths in longest[unknown:]]
    assert known == sorted(known, reverse=True)


@given(st.integers(1, 1_000_000))
def test_padded_lengths_are_few_and_at_most_four_percent_over(frames: int) -> None:
    padded = padded_frames(frames)
    assert frames <= padded <= max(frames, frames * 1.04)
    assert padded_frames(padded) == padded


def test_a_corpus_like_voxceleb_has_little_padding_and_few_shapes() -> None:
    seconds = list(4.0 + np.random.default_rng(0).gamma(1.5, 2.6, 20_000))
    plan = plan_batches(seconds, batch_size=64, max_batch_seconds=600.0)
    shapes = {(len(batch), width(seconds[batch[0]])) for batch in plan}
    padded = sum(len(batch) * width(seconds[batch[0]]) for batch in plan)
    assert sum(seconds) / padded > 0.95
    assert len(shapes) < 100
    assert np.mean([len(batch) for batch in plan]) > 40


def test_a_plan_is_the_same_at_every_run_and_shuffled_only_where_asked() -> None:
    seconds = [float(length) for length in range(1, 40)]
    plans = [plan_batches(seconds, batch_size=4, max_batch_seconds=60.0, shuffle=drawn) for drawn in (False, True) * 2]
    assert plans[0] == plans[2] and plans[1] == plans[3]
    assert plans[0] != plans[1] and sorted(plans[0]) == sorted(plans[1])


@pytest.mark.parametrize("seconds", [[], [3.0], [None]])
def test_the_smallest_corpora_have_a_plan(seconds: list[float | None]) -> None:
    assert plan_batches(seconds, batch_size=8, max_batch_seconds=60.0) == [(i,) for i in range(len(seconds))]


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=30))
def test_what_headers_had_wrong_is_grouped_anew(frames: list[int]) -> None:
    groups = group_by_length(frames)
    assert sorted(row for group in groups for row in group) == list(range(len(frames)))
    for group in groups:
        lengths = [frames[row] for row in group]
        assert len(group) == 1 or sum(lengths) >= 0.9 * len(group) * padded_frames(max(lengths))


def test_what_headers_had_right_stays_together() -> None:
    assert group_by_length([800, 790, 805, 781]) == [(0, 1, 2, 3)]
    assert group_by_length([800, 60_000, 790]) == [(1,), (0, 2)]

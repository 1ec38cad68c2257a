"""The seconds of the stages of a thread never add up to more than the clock's."""

import time

import pytest

from balr.embeddings.stage_timer import StageTimer


def test_a_stage_within_another_counts_once() -> None:
    stages = StageTimer()
    started = time.perf_counter()
    with stages.timed("decode_wait"):
        for _ in range(2):
            with stages.timed("write"):
                time.sleep(0.1)
        time.sleep(0.05)
    with stages.timed("write"):
        time.sleep(0.1)
    clock = time.perf_counter() - started
    seconds = stages.seconds()
    assert seconds["write"] >= 0.3 and 0.05 <= seconds["decode_wait"] <= clock - seconds["write"] + 0.002


def test_what_raises_counts_for_nothing_and_spoils_nothing() -> None:
    stages = StageTimer()
    with stages.timed("decode_wait"):
        with pytest.raises(ValueError, match="broken"), stages.timed("write"):
            raise ValueError("broken")
        time.sleep(0.05)
    assert stages.seconds().keys() == {"decode_wait"} and stages.seconds()["decode_wait"] >= 0.05

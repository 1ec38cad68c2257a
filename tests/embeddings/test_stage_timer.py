"""Seconds are added up by stage."""

import time

import pytest

from balr.embeddings.stage_timer import StageTimer


def test_what_raises_counts_for_nothing_and_spoils_nothing() -> None:
    stages = StageTimer()
    for _ in range(2):
        with stages.timed("forward"):
            time.sleep(0.05)
    with stages.timed("decode_wait"):
        with pytest.raises(ValueError, match="broken"), stages.timed("write"):
            raise ValueError("broken")
        time.sleep(0.05)
    assert stages.seconds().keys() == {"forward", "decode_wait"} and stages.seconds()["forward"] >= 0.1
    assert stages.seconds()["decode_wait"] >= 0.05

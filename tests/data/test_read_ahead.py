"""What is decoded ahead is bounded in seconds of audio, whatever the sizes of batches and the number of processes."""

import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, embeddings, speechlike, write_wav

from balr.data.audio_budget import AudioBudget
from balr.data.corpus import Corpus
from balr.data.decoding import decoded_batches, waveform_reader
from balr.embeddings.wespeaker import WespeakerModel
from balr.records import Utterance
from balr.shutdown import Stop


def test_batches_are_counted_in_until_the_bound_and_out_when_embedded() -> None:
    read_ahead = AudioBudget(100.0)
    assert read_ahead.try_reserve(40.0) and read_ahead.try_reserve(50.0)
    assert not read_ahead.try_reserve(30.0)
    read_ahead.release(40.0)
    assert read_ahead.try_reserve(30.0)


def test_a_stop_ends_the_wait_for_room_that_never_comes() -> None:
    read_ahead, stop = AudioBudget(100.0), Stop()
    assert read_ahead.try_reserve(60.0)
    corpus = Corpus([Utterance(id_, Path(f"/{id_}.wav")) for id_ in "ab"], Path("/"))
    settings: dict[str, Any] = {"seconds": [60.0], "pool": None, "ahead": 1, "read_ahead": read_ahead, "stop": stop}
    threading.Timer(0.1, stop.set).start()
    assert list(decoded_batches(corpus, [(1,)], waveform_reader(16_000, 60.0), **settings)) == []


def test_a_batch_over_the_bound_goes_alone() -> None:
    read_ahead = AudioBudget(100.0)
    assert read_ahead.try_reserve(500.0)
    assert not read_ahead.try_reserve(1.0)
    read_ahead.release(500.0)
    assert read_ahead.try_reserve(1.0) and not read_ahead.try_reserve(500.0)


@pytest.mark.parametrize("workers", [0, 3])
def test_a_run_holds_no_more_audio_at_a_time_than_the_bound(
    balr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    for number in range(12):
        write_wav(tmp_path / "corpus" / f"{number}.wav", speechlike(1.0 + 0.1 * number, seed=number))
    reserve, release, lock = AudioBudget.try_reserve, AudioBudget.release, threading.Lock()
    totals: dict[AudioBudget, list[float]] = {}

    def noted(self: AudioBudget, seconds: float, **of: Any) -> bool:
        with lock:
            found = reserve(self, seconds, **of)
            totals.setdefault(self, [0.0]).append(totals[self][-1] + seconds * found)
            return found

    def removed(self: AudioBudget, seconds: float) -> None:
        with lock:
            totals[self].append(totals[self][-1] - seconds)
            release(self, seconds)

    monkeypatch.setattr(AudioBudget, "try_reserve", noted)
    monkeypatch.setattr(AudioBudget, "release", removed)
    options = (
        "data.batch_size=2",
        f"data.num_workers={workers}",
        "data.concurrent_batches=2",
        "data.prefetch_factor=4",
    )
    assert balr("input=corpus", "save_dir=out", "data.max_ahead_seconds=6", *options) == 0
    assert len(embeddings(tmp_path / "out")) == 12
    (bounded,) = (found for found in totals.values() if max(found) > 0)
    assert 4.0 < max(bounded) <= 6.0 and bounded[-1] == pytest.approx(0.0, abs=1e-9)
    assert sum(after - before for before, after in pairwise(bounded) if after > before) == pytest.approx(18.6, abs=0.1)


def test_a_run_whose_every_batch_is_over_the_bound_ends(
    balr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        write_wav(tmp_path / "corpus" / f"{number}.wav", speechlike(1.5, seed=number))
    embed, lock, at_once, most = WespeakerModel.embed, threading.Lock(), [0], [0]

    def counted(self: WespeakerModel, waveforms: list[torch.Tensor], **settings: float) -> torch.Tensor:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        try:
            return embed(self, waveforms, **settings)
        finally:
            with lock:
                at_once[0] -= 1

    monkeypatch.setattr(WespeakerModel, "embed", counted)
    options = ("data.num_workers=2", "data.concurrent_batches=2", "data.max_ahead_seconds=1")
    assert balr("input=corpus", "save_dir=out", *options) == 0
    assert len(embeddings(tmp_path / "out")) == 5 and most[0] == 1

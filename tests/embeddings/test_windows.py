"""A corpus that is planned in windows runs through one pipeline."""

import multiprocessing
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import speechlike, write_wav
from statistics_model import Statistics

from balr.config import DataConfig
from balr.data import planning
from balr.data.dataset import AudioDataset
from balr.data.decoder_pool import DecoderPool
from balr.records import Embedded, Failure
from balr.stores.base import Store


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AudioDataset:
    """Return eight utterances in windows of three; the model fails for the one that is half a second long."""
    monkeypatch.setattr("balr.data.planning._UTTERANCES_PER_WINDOW", 3)
    for number in range(8):
        write_wav(tmp_path / f"{number}.wav", speechlike(0.5 if number == 5 else 1.0 + 0.1 * number, seed=number))
    return AudioDataset.from_dir(tmp_path)


def test_decoders_and_threads_last_through_all_windows_of_a_corpus(
    dataset: AudioDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[DecoderPool] = []
    threads: set[int] = set()

    class Noted(DecoderPool):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            pools.append(self)
            super().__init__(*arguments, **settings)

    class Model(Statistics):
        def embed(self, waveforms: Sequence[torch.Tensor], **limits: float) -> torch.Tensor:
            threads.add(threading.get_native_id())
            return super().embed(waveforms, **limits)

    monkeypatch.setattr("balr.embeddings.base.DecoderPool", Noted)
    pairs = Model().extract_embeddings(dataset, False, DataConfig(batch_size=1, concurrent_batches=2, num_workers=2))
    assert len(pairs) == 7 and len(pairs.failures) == 1
    assert len(pools) == 1 and len(threads) <= 2


def test_what_is_left_of_a_corpus_in_windows_has_all_threads(dataset: AudioDataset) -> None:
    class Left(Statistics):
        def completed(self) -> set[str]:
            return {f"{number}.wav" for number in range(8)} - {"1.wav", "5.wav"}

        def write(self, batch: Sequence[Embedded]) -> list[Failure]:
            return []

    before, model = torch.get_num_threads(), Left()
    torch.set_num_threads(4)
    try:
        model.extract_embeddings(
            dataset, False, DataConfig(concurrent_batches=4, num_workers=0), store=cast("Store", model)
        )
        assert model.threads == {2} and len(model.batches) == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_in_the_plan_of_a_later_window_ends_the_run_with_it(
    dataset: AudioDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, seen = planning.plan_corpus, []

    def second_broken(corpus: Any, *arguments: Any, **settings: Any) -> planning.Plan:
        seen.append(corpus)
        if len(seen) == 2:
            raise OSError("broken")
        return plan(corpus, *arguments, **settings)

    monkeypatch.setattr(planning, "plan_corpus", second_broken)
    model = Statistics()
    with pytest.raises(OSError, match="broken"):
        model.extract_embeddings(dataset, False, DataConfig(batch_size=1, num_workers=2))
    assert len(seen) == 2 and len(model.batches) <= 3
    assert not multiprocessing.active_children()

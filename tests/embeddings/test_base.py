"""The loop around any model: every utterance once, whatever batches, workers, failures and lack of memory do."""

import itertools
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import speechlike, wait_until, write_wav
from statistics_model import Statistics

from balr.config import DataConfig
from balr.data import decoding
from balr.data.dataset import AudioDataset
from balr.embeddings import base
from balr.embeddings.devices import resolve_loading
from balr.shutdown import Stop

LENGTHS = (1.0, 1.31, 1.02, 1.3, 1.01, 0.5, 1.29, 1.03)


@pytest.fixture
def dataset(tmp_path: Path) -> AudioDataset:
    for number, seconds in enumerate(LENGTHS):
        write_wav(tmp_path / "c" / f"{number}.wav", speechlike(seconds, seed=number))
    return AudioDataset.from_dir(tmp_path / "c")


def config(**settings: object) -> DataConfig:
    return DataConfig(**{"num_workers": 0, "max_batch_seconds": 60.0, "concurrent_batches": 2, **settings})


def test_batches_workers_and_order_change_no_embedding_and_lose_none(dataset: AudioDataset) -> None:
    expected = Statistics().extract_embeddings(dataset, False, config(batch_size=1))
    assert [id_ for id_, _ in expected] == [f"{number}.wav" for number in range(8) if number != 5]
    for size, workers, shuffle in itertools.product((2, 64), (0, 2), (False, True)):
        settings = config(batch_size=size, num_workers=workers, shuffle=shuffle, prefetch_factor=1)
        pairs = Statistics().extract_embeddings(dataset, False, settings)
        assert [id_ for id_, _ in pairs] == [id_ for id_, _ in expected]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(pairs, expected, strict=True))


def test_batches_hold_like_lengths_and_the_longest_come_first(dataset: AudioDataset) -> None:
    model = Statistics()
    # One batch at a time: two threads may begin their batches in either order.
    model.extract_embeddings(dataset, False, config(batch_size=64, concurrent_batches=1))
    assert [len(batch) for batch in model.batches] == [3, 4, 1]
    assert [max(batch) for batch in model.batches] == [20_960, 16_480, 8_000]


def test_out_of_memory_halves_the_batch_and_later_ones_and_goes_on(
    dataset: AudioDataset, caplog: pytest.LogCaptureFixture
) -> None:
    model = Statistics(room_for=2)
    pairs = model.extract_embeddings(dataset, False, config(batch_size=64))
    assert len(pairs) == 7
    assert "out of memory with" in caplog.text
    too_large = sum(len(batch) > 2 for batch in model.batches)
    assert 1 <= too_large <= 2  # the second may have been under way already
    pairs = model.extract_embeddings(dataset, False, config(batch_size=64))
    assert len(pairs) == 7 and sum(len(batch) > 2 for batch in model.batches) == too_large


def test_no_memory_for_even_one_utterance_is_a_failure_of_that_one(
    dataset: AudioDataset, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert Statistics(room_for=0).extract_embeddings(dataset, False, config(batch_size=4)) == []
    assert sum("no room" in record.message for record in caplog.records) == 8


@pytest.mark.parametrize("is_lost", [True, False])
def test_an_error_of_a_gpu_ends_the_run_if_the_gpu_is_lost_and_costs_its_utterance_if_not(
    dataset: AudioDataset, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    class Illegal(Statistics):
        def embed(self, waveforms: Sequence[torch.Tensor], **limits: float) -> torch.Tensor:
            if any(waveform.numel() == 16_000 for waveform in waveforms):
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            return super().embed(waveforms, **limits)

    def synchronize() -> None:
        if is_lost:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    if is_lost:
        with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
            Illegal().extract_embeddings(dataset, False, config())
    else:
        assert [one.id for one in Illegal().extract_embeddings(dataset, False, config()).failures] == ["0.wav", "5.wav"]


def test_an_error_within_a_batch_costs_the_utterance_that_it_is_due_to(tmp_path: Path) -> None:
    for number in range(5):
        write_wav(tmp_path / f"{number}.wav", speechlike(0.5 if number == 3 else 0.501, seed=number))
    pairs = Statistics().extract_embeddings(AudioDataset.from_dir(tmp_path), False, config(batch_size=8))
    assert [id_ for id_, _ in pairs] == ["0.wav", "1.wav", "2.wav", "4.wav"]


def test_threads_are_shared_out_and_given_back(dataset: AudioDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    model = Statistics()
    torch.set_num_threads(4)
    try:
        model.extract_embeddings(dataset, False, config(concurrent_batches=4))
        assert model.threads == {1} and torch.get_num_threads() == 4
        model.threads.clear()
        model.extract_embeddings(
            dataset.filter(lambda utterance: utterance.id == "0.wav"), False, config(concurrent_batches=4)
        )
        assert model.threads == {4} and torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_a_stopped_run_saves_what_was_begun(dataset: AudioDataset, tmp_path: Path) -> None:
    stop = Stop()

    class Stopping(Statistics):
        def embed(self, waveforms: Sequence[torch.Tensor], **limits: float) -> torch.Tensor:
            if len(self.batches) == 2:
                stop.set()
            return super().embed(waveforms, **limits)

    model = Stopping()
    dataset.set_output_dir(tmp_path / "out")
    assert model.extract_embeddings(dataset, True, config(batch_size=1, concurrent_batches=1), stop=stop) == []
    assert len(model.batches) == len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_what_was_computed_is_saved_whatever_ends_the_run(
    dataset: AudioDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    seen: list[object] = []

    def sixth_broken(*outcome: object) -> None:
        seen.append(outcome)
        if len(seen) == 6:
            raise error("broken")

    monkeypatch.setattr(base, "find_flaw", sixth_broken)
    dataset.set_output_dir(tmp_path / "out")
    with pytest.raises(error, match="broken"):
        Statistics().extract_embeddings(dataset, True, config(batch_size=1, concurrent_batches=1, shuffle=False))
    assert len(list((tmp_path / "out").iterdir())) == 5


@pytest.mark.parametrize("what", ["computing", "reading"])
def test_embeddings_are_saved_while_another_takes_long(
    dataset: AudioDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    read = decoding.load_waveform

    def is_saved() -> bool:
        return all((tmp_path / "out" / name).exists() for name in ("1_emb.npy", "2_emb.npy"))

    class Slow(Statistics):
        def embed(self, waveforms: Sequence[torch.Tensor], **limits: float) -> torch.Tensor:
            if what == "computing" and waveforms[0].numel() == 16_000:  # the shortest, which is the last
                wait_until(is_saved)
            return super().embed(waveforms, **limits)

    def slow(path: Path, *arguments: object, **settings: object) -> object:
        if what == "reading" and path.name == "0.wav":
            wait_until(is_saved)
        return read(path, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "load_waveform", slow)
    dataset.set_output_dir(tmp_path / "out")
    workers = 1 if what == "reading" else 0
    few = dataset.filter(lambda utterance: utterance.id in ("0.wav", "1.wav", "2.wav"))
    settings = config(batch_size=1, concurrent_batches=1, num_workers=workers, shuffle=False)
    Slow().extract_embeddings(few, True, settings)
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_batches_that_have_no_room_side_by_side_are_embedded_one_after_another(dataset: AudioDataset) -> None:
    class Crowded(Statistics):
        def __init__(self) -> None:
            super().__init__()
            self.lock, self.crowded = threading.Lock(), 0

        def embed(self, waveforms: Sequence[torch.Tensor], **limits: float) -> torch.Tensor:
            if not self.lock.acquire(blocking=False):
                self.crowded += 1
                raise torch.OutOfMemoryError("another batch fills the memory")
            try:
                time.sleep(0.2)
                return super().embed(waveforms, **limits)
            finally:
                self.lock.release()

    model = Crowded()
    pairs = model.extract_embeddings(dataset, False, config(batch_size=3, concurrent_batches=2))
    assert len(pairs) == 7 and model.crowded and [failure.id for failure in pairs.failures] == ["5.wav"]


@pytest.mark.parametrize(("threads", "batches"), [(1, 1), (2, 2), (12, 12), (32, 32), (33, 16), (48, 24), (128, 32)])
def test_concurrent_batches_leave_hardly_a_thread_idle(
    monkeypatch: pytest.MonkeyPatch, threads: int, batches: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert resolve_loading(DataConfig(), torch.device("cpu")).concurrent_batches == batches


def test_what_is_left_open_goes_by_the_device_and_what_is_said_stays() -> None:
    on_cpu, on_gpu = (resolve_loading(DataConfig(), torch.device(name)) for name in ("cpu", "cuda"))
    assert on_cpu.batch_size == 1 and on_gpu.batch_size > 1
    assert on_cpu.concurrent_batches <= torch.get_num_threads() and on_gpu.concurrent_batches == 2
    said = {"batch_size": 3, "max_batch_seconds": 7.0, "num_workers": 0, "concurrent_batches": 5, "prefetch_factor": 1}
    assert vars(resolve_loading(DataConfig(**said), torch.device("cuda"))) == said

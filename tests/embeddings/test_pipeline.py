"""Threads compute, one saves, and all ends in order: whatever was computed is delivered, whatever went wrong raised."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balr.data.dataset import AudioDataset
from balr.embeddings.outcomes import Delivery
from balr.embeddings.pipeline import run_pipeline
from balr.embeddings.stage_timer import StageTimer
from balr.errors import OutputError
from balr.records import Embedded, Failure, Outcome, Utterance
from balr.shutdown import Stop


class Work:
    """Embed numbers to their squares, note what is delivered, and misbehave where told to."""

    def __init__(self, *, embed_fails_at: int | None = None, deliver_fails_at: int | None = None) -> None:
        self.embed_fails_at = embed_fails_at
        self.deliver_fails_at = deliver_fails_at
        self.fails: int | None = None
        self.embedded: list[int] = []
        self.delivered: list[int] = []
        self.savers: set[int] = set()

    def embed(self, number: int) -> list[Any]:
        if number == self.embed_fails_at:
            raise RuntimeError("embed")
        self.embedded.append(number)
        return [BAD if number == self.fails else number * number]

    def deliver(self, squares: Sequence[int]) -> None:
        self.savers.add(threading.get_ident())
        if self.deliver_fails_at is not None and self.deliver_fails_at in squares:
            raise OutputError("the disk is full")
        self.delivered += squares

    def run(self, numbers: Iterator[int], *, threads: int = 3, stop: Stop | None = None) -> None:
        run_pipeline(
            numbers,
            self.embed,
            self.deliver,
            threads=threads,
            prepare=lambda: None,
            stop=stop or Stop(),
        )


def test_every_batch_is_delivered_once_by_one_thread() -> None:
    work = Work()
    work.run(iter(range(200)))
    assert sorted(work.delivered) == [number * number for number in range(200)] and len(work.savers) == 1


def test_a_set_flag_ends_it_and_all_that_was_computed_is_delivered() -> None:
    work, stop = Work(), Stop()

    def numbers() -> Iterator[int]:
        for number in range(1000):
            if number == 20:
                stop.set()
            yield number

    work.run(numbers(), stop=stop)
    assert len(work.embedded) < 30
    assert sorted(work.delivered) == sorted(number * number for number in work.embedded)


def test_an_error_of_a_thread_that_computes_is_raised_when_the_rest_is_saved() -> None:
    work = Work(embed_fails_at=50)
    with pytest.raises(RuntimeError, match="embed"):
        work.run(iter(range(1000)))
    assert len(work.embedded) < 100
    assert sorted(work.delivered) == sorted(number * number for number in work.embedded)


def test_an_error_of_the_thread_that_saves_ends_it_and_nothing_more_is_saved() -> None:
    work = Work(deliver_fails_at=400)
    with pytest.raises(OutputError, match="full"):
        work.run(iter(range(10_000)))
    assert 400 not in work.delivered and len(work.delivered) < 200


def test_an_error_of_decoding_is_raised_when_the_rest_is_saved() -> None:
    def numbers() -> Iterator[int]:
        yield from range(10)
        raise ValueError("decode")

    work = Work()
    with pytest.raises(ValueError, match="decode"):
        work.run(numbers())
    assert sorted(work.delivered) == sorted(number * number for number in work.embedded)


def test_what_is_ready_together_is_saved_together() -> None:
    calls: list[int] = []

    def slow(squares: Sequence[int]) -> None:
        calls.append(len(squares))
        time.sleep(0.05)

    work = Work()
    work.deliver = slow  # type: ignore[method-assign]
    work.run(iter(range(100)))
    assert sum(calls) == 100 and len(calls) < 30


def test_a_failure_is_delivered_before_the_next_is_embedded_long_after() -> None:
    work, stop = Work(), Stop()
    work.fails = 2
    work.deliver = lambda found: stop.set() if BAD in found else None  # type: ignore[assignment, method-assign]

    def numbers() -> Iterator[int]:
        for number in range(100):
            yield number
            time.sleep(0.01)

    work.run(numbers(), stop=stop, threads=1)
    assert len(work.embedded) < 15


BAD = Failure("x", "x.wav", "decode", "bad")


class Noting:
    def __init__(self) -> None:
        self.embedded_ids: list[str] = []
        self.failures: list[Failure] = []

    def planned(self, audio_seconds: float, *, upsampled: int) -> None: ...

    def under_way(self, audio_seconds: float) -> None: ...

    def embedded(self, utterance: Utterance, audio_seconds: float) -> None:
        self.embedded_ids.append(utterance.id)

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)


@pytest.fixture
def dataset(tmp_path: Path) -> AudioDataset:
    files = [Utterance(str(number), tmp_path / f"{number}.wav") for number in range(6)]
    return AudioDataset(files, tmp_path, output_dir=tmp_path / "out")


def outcomes(dataset: AudioDataset) -> list[Outcome]:
    return [Embedded(one, np.ones(3, np.float32), 1.0) for one in dataset.utterances]


def test_what_is_saved_is_reported_and_lies_in_its_place(dataset: AudioDataset, tmp_path: Path) -> None:
    noting = Noting()
    Delivery(dataset.save_batch, noting, StageTimer()).deliver([*outcomes(dataset), BAD])
    assert noting.embedded_ids == [str(number) for number in range(6)] and len(noting.failures) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{n}_emb.npy" for n in range(6)]


def test_what_is_collected_is_written_nowhere(dataset: AudioDataset, tmp_path: Path) -> None:
    delivery = Delivery(None, Noting(), StageTimer())
    delivery.deliver(outcomes(dataset))
    assert len(delivery.collected) == 6 and not (tmp_path / "out").exists()


def test_what_was_completed_before_is_neither_saved_nor_reported_again(dataset: AudioDataset, tmp_path: Path) -> None:
    noting = Noting()
    Delivery(dataset.save_batch, noting, StageTimer(), {"x", "0", "4"}).deliver([*outcomes(dataset), BAD])
    assert noting.embedded_ids == ["1", "2", "3", "5"] and not noting.failures
    assert sorted(path.name[0] for path in (tmp_path / "out").iterdir()) == ["1", "2", "3", "5"]


def test_a_place_that_is_taken_costs_its_utterance_alone(dataset: AudioDataset, tmp_path: Path) -> None:
    (tmp_path / "out" / "2_emb.npy").mkdir(parents=True)
    noting = Noting()
    Delivery(dataset.save_batch, noting, StageTimer()).deliver(outcomes(dataset))
    assert noting.embedded_ids == ["0", "1", "3", "4", "5"]
    assert [(failure.id, failure.stage) for failure in noting.failures] == [("2", "write")]


def test_what_failed_is_reported_before_a_disk_is_full_and_what_is_not_saved_never(dataset: AudioDataset) -> None:
    def full(batch: Sequence[Embedded]) -> list[Failure]:
        raise OutputError("full")

    noting = Noting()
    with pytest.raises(OutputError, match="full"):
        Delivery(full, noting, StageTimer()).deliver([*outcomes(dataset), BAD])
    assert noting.embedded_ids == [] and [failure.id for failure in noting.failures] == ["x"]

"""Processes that decode: whatever becomes of one of them, every utterance comes back once, decoded or lost."""

import faulthandler
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import balr.data.workers as workers_module
from balr.data.dataset import AnnotatedAudio, AudioDataset
from balr.data.loading import decoded_batches
from balr.data.workers import Loss, Workers, at_work
from balr.errors import ConfigError, Failure
from balr.signals import StoppedError, ending_in_order

Item = AnnotatedAudio | Failure

PLAN = [(0, 1, 2), (3,), (4, 5, 6, 7), (8, 9)]


def utterance(index: int) -> Item:
    if index == 5:
        return Failure("5", "5.wav", "decode", "bad")
    return AnnotatedAudio(str(index), torch.full((index * 300_000 + 1,), float(index)), 16_000)


def die(number: int) -> None:
    faulthandler.disable()  # pytest's
    os.kill(os.getpid(), number)


@contextmanager
def workers(
    decode: Callable[[int], Item], *, number: int = 2, timeout_seconds: float = 60.0
) -> Iterator[Workers[Item]]:
    made = Workers(decode, number=number, timeout_seconds=timeout_seconds, quiet=lambda: None)
    try:
        yield made
    finally:
        made.end()


def outcome(decode: Callable[[int], Item], **settings: float) -> tuple[dict[str, Item], dict[int, str]]:
    """Return what was decoded by id, and the reasons of losses by index; nothing may come twice."""
    items: list[Item] = []
    losses: list[Loss] = []
    with workers(decode, **settings) as made:  # type: ignore[arg-type]
        for received in made.decoded(PLAN, ahead=4):
            if isinstance(received, Loss):
                losses.append(received)
            else:
                items += received
    assert len({item.id for item in items}) == len(items)
    assert sorted([*(int(item.id) for item in items), *(loss.index for loss in losses)]) == list(range(10))
    return {item.id: item for item in items}, {loss.index: loss.reason for loss in losses}


@pytest.mark.parametrize("number", [1, 2, 7])
def test_waveforms_of_any_size_come_through_whole_and_failures_with_them(number: int) -> None:
    items, losses = outcome(utterance, number=number)
    assert not losses
    for index in set(range(10)) - {5}:
        item, expected = items[str(index)], utterance(index)
        assert isinstance(item, AnnotatedAudio) and isinstance(expected, AnnotatedAudio)
        assert item.audio is not None and expected.audio is not None
        assert torch.equal(item.audio, expected.audio)
    assert items["5"] == utterance(5)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_process_that_dies_costs_the_utterance_that_it_was_at(number: int) -> None:
    def decode(index: int) -> Item:
        if index in (4, 9):
            die(number)
        return utterance(index)

    _, losses = outcome(decode)
    assert set(losses) == {4, 9}
    assert all(signal.Signals(number).name in reason for reason in losses.values())


def test_one_that_exits_is_told_with_its_exit_code() -> None:
    def decode(index: int) -> Item:
        return os._exit(3) if index == 7 else utterance(index)

    _, losses = outcome(decode)
    assert losses == {7: "the process that read it ended with exit code 3"}


def test_an_utterance_that_takes_for_ever_is_given_up_in_time() -> None:
    def decode(index: int) -> Item:
        while index in (1, 6):
            time.sleep(1)
        return utterance(index)

    started = time.monotonic()
    _, losses = outcome(decode, timeout_seconds=0.7)
    assert set(losses) == {1, 6} and time.monotonic() - started < 10
    assert "over 0.7 s (data.decode_timeout_seconds)" in losses[1]


def test_a_process_that_never_begins_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begin = workers_module._live_for

    def stuck(parent: int) -> None:
        begin(parent)
        if not (tmp_path / "stuck").exists():
            (tmp_path / "stuck").touch()
            time.sleep(3600)

    monkeypatch.setattr(workers_module, "_live_for", stuck)
    monkeypatch.setattr(workers_module, "_SECONDS_TO_BEGIN", 0.5)
    found, losses = outcome(utterance, number=1, timeout_seconds=0.5)
    assert len(found) == 10 and not losses


def test_processes_are_ended_where_a_signal_comes_as_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Workers.__init__

    def interrupted(self: Workers[Item], *arguments: object, **settings: object) -> None:
        begin(self, *arguments, **settings)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Workers, "__init__", interrupted)
    with (
        pytest.raises(StoppedError),
        ending_in_order(),
        at_work(utterance, number=3, timeout_seconds=60, quiet=lambda: None),
    ):
        raise AssertionError("the signal comes before")
    assert not multiprocessing.active_children()


def test_every_utterance_of_a_batch_may_crash() -> None:
    def decode(index: int) -> Item:
        if index in PLAN[2]:
            die(signal.SIGSEGV)
        return utterance(index)

    assert set(outcome(decode)[1]) == set(PLAN[2])


def test_a_process_killed_while_it_holds_a_batch_ready_costs_nothing() -> None:
    with workers(utterance, number=1) as made:
        received = made.decoded(PLAN, ahead=2)
        items = [*next(received)]  # type: ignore[misc]
        time.sleep(0.5)  # the next batch is decoded meanwhile
        made._workers[0].process.kill()
        for batch in received:
            assert not isinstance(batch, Loss)
            items += batch
    assert sorted(int(item.id) for item in items) == list(range(10))


def test_one_that_cannot_hand_its_batch_over_costs_that_batch_alone() -> None:
    class Unsendable(AnnotatedAudio):
        def __reduce__(self) -> str:
            raise MemoryError

    def decode(index: int) -> Item:
        return Unsendable("8", torch.zeros(1), 16_000) if index == 8 else utterance(index)

    _, losses = outcome(decode)
    assert losses == {8: "the process that read it ended with exit code 1"}


def test_no_more_is_decoded_ahead_than_was_asked_for() -> None:
    with workers(utterance, number=4) as made:
        received = made.decoded([(index,) for index in range(10)], ahead=2)
        next(received)
        assert sum(worker.batch is not None for worker in made._workers) <= 2


def test_processes_that_cannot_be_started_are_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(ConfigError, match=r"cannot be started: Resource temporarily unavailable; data\.num_workers=0"):
        Workers(utterance, number=2, timeout_seconds=1, quiet=lambda: None)


def test_threads_rest_before_another_process_is_forked() -> None:
    rested: list[int] = []

    def decode(index: int) -> Item:
        return os._exit(1) if index == 2 else utterance(index)

    made = Workers(decode, number=1, timeout_seconds=60, quiet=lambda: rested.append(1))
    try:
        assert not rested
        assert sum(isinstance(one, Loss) for one in made.decoded(PLAN, ahead=2)) == 1
    finally:
        made.end()
    assert len(rested) == 1


@pytest.mark.slow
def test_processes_that_cannot_be_forked_are_spawned(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: whole("spawn"))
    dataset = AudioDataset.from_dir(corpus)
    settings = {"prefetch_factor": 2, "timeout_seconds": 60.0, "quiet": lambda: None}
    plan = [(0, 1), (2,), (3, 4, 5)]
    spawned = list(decoded_batches(dataset, plan, num_workers=2, **settings))
    here = list(decoded_batches(dataset, plan, num_workers=0, **settings))
    by_id = {batch.utterances[0].id: batch for batch in spawned}
    assert len(by_id) == 3
    assert all(torch.equal(by_id[batch.utterances[0].id].samples, batch.samples) for batch in here)

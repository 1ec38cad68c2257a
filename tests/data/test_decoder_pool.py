"""Whatever becomes of a process that decodes, every task comes back once, read or blamed, in the batch it is of."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import faulty
import numpy as np
import pytest
from conftest import wait_until

from balr.data import decoder_pool
from balr.data.audio_budget import AudioBudget
from balr.data.decoder_pool import DecoderPool
from balr.errors import ConfigError, UtteranceError
from balr.shutdown import Stop

PLAN = [(0, 1, 2), (3,), (4, 5, 6, 7), (8, 9)]
Task = tuple[str, Any]


def waveforms() -> list[Task]:
    return [("waveform", number * 300_000 + 1) for number in range(10)]


def results(
    tasks: Sequence[Task],
    *,
    processes: int = 2,
    timeout_seconds: float = 30.0,
    ahead: int = 4,
    stop: Stop | None = None,
) -> list[object]:
    """Return what became of each task, and hold the pool to batches that come back once and whole."""
    found: dict[int, object] = {}
    with DecoderPool(faulty.read, processes=processes, timeout_seconds=timeout_seconds) as pool:
        for number, results in pool.results(PLAN, tasks, ahead=ahead, stop=stop or Stop()):
            assert not set(PLAN[number]) & set(found)
            found |= dict(zip(PLAN[number], results, strict=True))
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("ahead", [1, 8])
def test_waveforms_come_back_bit_for_bit_in_their_batches(processes: int, ahead: int) -> None:
    for (_, samples), waveform in zip(waveforms(), results(waveforms(), processes=processes, ahead=ahead), strict=True):
        assert isinstance(waveform, np.ndarray) and waveform.dtype == np.float32
        assert waveform.shape == (samples,) and (waveform == samples).all()


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (("signal", signal.SIGSEGV), "ended by SIGSEGV: the file crashes its decoder"),
        (("signal", signal.SIGKILL), r"ended by SIGKILL \(out of memory\?\)"),
        (("exit", 7), "ended with exit code 7"),
        (("memory", 0), "^MemoryError"),
        (("sleep", 60), "took over 1 s"),
        (("rubbish", 0), "ended by SIGKILL"),
        (("bad", 0), "^bad audio$"),
        (("broken", 3), "^KeyError: 3$"),
    ],
)
def test_a_task_costs_itself_and_the_others_come_back(task: Task, reason: str) -> None:
    tasks = waveforms()
    tasks[1] = tasks[5] = task
    found = results(tasks, processes=2, timeout_seconds=1.0 if task[0] == "sleep" else 30.0)
    for index, result in enumerate(found):
        if index in (1, 5):
            with pytest.raises(UtteranceError, match=reason):
                raise result  # type: ignore[misc]
        else:
            assert isinstance(result, np.ndarray) and result.size == tasks[index][1]


def test_other_results_come_back_as_json_has_them() -> None:
    assert results([("value", number) for number in range(10)]) == [[number, None] for number in range(10)]


def test_each_process_may_be_lost_and_the_pool_goes_on() -> None:
    found = results([("signal", signal.SIGSEGV)] * 10, processes=2)
    assert len(found) == 10 and all(isinstance(result, UtteranceError) for result in found)


def test_a_process_that_ends_with_nothing_to_do_costs_nothing() -> None:
    with DecoderPool(faulty.read, processes=2, timeout_seconds=30.0) as pool:
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        found = [result for _, found in pool.results(PLAN, waveforms(), ahead=4, stop=Stop()) for result in found]
    assert len(found) == 10 and all(isinstance(result, np.ndarray) for result in found)


def test_pools_that_start_side_by_side_leave_the_main_script_as_it_was() -> None:
    main = sys.modules["__main__"]
    before = main.__spec__, getattr(main, "__file__", None)
    settings: dict[str, Any] = {"processes": 2, "timeout_seconds": 30.0, "beside_threads": True}
    with ThreadPoolExecutor(2) as threads:
        for pool in threads.map(lambda _: DecoderPool(faulty.read, **settings), range(2)):
            with pool:
                assert len(list(pool.results(PLAN, waveforms(), ahead=4, stop=Stop()))) == len(PLAN)
    assert sys.modules["__main__"] is main and (main.__spec__, getattr(main, "__file__", None)) == before


def test_a_task_that_waits_behind_a_slow_one_has_its_whole_time() -> None:
    tasks: list[Task] = [("sleep", 1)] * 3 + [("samples", 1)] * 7
    assert all(isinstance(result, np.ndarray) for result in results(tasks, processes=1, timeout_seconds=1.7))


def test_a_run_that_is_suspended_costs_no_task_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def suspended_at_first(connections: Sequence[Any], seconds: float) -> list[Any]:
        waits.append(seconds)
        time.sleep(1.4 if len(waits) == 1 else 0)
        return [] if len(waits) == 1 else wait(connections, seconds)

    monkeypatch.setattr(decoder_pool, "wait", suspended_at_first)
    found = results([("sleep", 2)] + [("samples", 1)] * 9, processes=1, timeout_seconds=1.3)
    assert all(isinstance(result, np.ndarray) for result in found)


def killing(monkeypatch: pytest.MonkeyPatch, first: Callable[[BaseProcess], None]) -> Callable[[BaseProcess], None]:
    """Have the first process that is killed, and no other, meet something else; return what kills it."""
    kill, chosen = BaseProcess.kill, []

    def kill_others(process: BaseProcess) -> None:
        chosen.append(process)
        (first if process is chosen[0] else kill)(process)

    monkeypatch.setattr(BaseProcess, "kill", kill_others)
    return kill


def blamed(results: Sequence[object]) -> list[int]:
    return [index for index, result in enumerate(results) if "took over 1 s" in str(result)]


def test_a_late_process_that_no_signal_ends_costs_its_task_and_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spared: list[BaseProcess] = []
    monkeypatch.setattr(decoder_pool, "_SECONDS_TO_DIE", 0.2)
    kill = killing(monkeypatch, spared.append)
    began = time.monotonic()
    found = results([("sleep", 60)] + [("samples", 1)] * 9, processes=2, timeout_seconds=1.0)
    assert blamed(found) == [0] and sum(isinstance(result, np.ndarray) for result in found) == 9
    assert time.monotonic() - began < 20 and not multiprocessing.active_children(), "nor as this process exits"
    kill(spared[0])


def test_an_answer_as_its_process_is_found_late_is_not_taken_for_that_of_the_next_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answered_meanwhile(process: BaseProcess) -> None:
        time.sleep(0.7)
        kill(process)

    kill = killing(monkeypatch, answered_meanwhile)
    assert blamed(results([("sleep", 1.3)] + [("samples", 1)] * 9, processes=1, timeout_seconds=1.0)) == [0]


def test_a_set_flag_ends_it_early_and_no_process_is_left() -> None:
    stop = Stop()
    with DecoderPool(faulty.read, processes=2, timeout_seconds=30.0) as pool:
        began = time.monotonic()
        for number, _ in enumerate(pool.results(PLAN, [("value", 0)] * 9 + [("sleep", 20)], ahead=4, stop=stop)):
            if number == 2:
                stop.set()
        assert time.monotonic() - began < 10
    assert not multiprocessing.active_children()


def test_the_bound_of_what_is_read_ahead_is_kept() -> None:
    room, seconds, now, most = AudioBudget(45.0), [10.0 * len(batch) for batch in PLAN], 0.0, 0.0

    def may_start(number: int) -> bool:
        nonlocal now, most
        has_room = room.try_reserve(seconds[number])
        now += seconds[number] * has_room
        most = max(most, now)
        return has_room

    with DecoderPool(faulty.read, processes=3, timeout_seconds=30.0) as pool:
        found = []
        for number, _ in pool.results(PLAN, waveforms(), ahead=8, may_start=may_start, stop=Stop()):
            found.append(number)
            now -= seconds[number]
            room.release(seconds[number])
        assert sorted(found) == list(range(len(PLAN))) and 40.0 <= most <= 45.0


def test_processes_take_no_signal_of_the_run_and_end_with_their_pool() -> None:
    with DecoderPool(faulty.read, processes=2, timeout_seconds=30.0) as pool:
        children = [child.pid for child in multiprocessing.active_children()]
        for pid in children:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(int(pid or 0), number)
        assert len(list(pool.results(PLAN, waveforms(), ahead=4, stop=Stop()))) == len(PLAN)
    wait_until(lambda: not [child for child in multiprocessing.active_children() if child.pid in children])


def test_processes_that_cannot_be_started_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    with pytest.raises(ConfigError, match=r"data.num_workers=0 decodes in this process"):
        DecoderPool(faulty.read, processes=2, timeout_seconds=1.0)

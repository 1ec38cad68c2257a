"""The first signal sets a flag and raises nothing; the second one ends the process at once."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from balr.shutdown import Stop, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_sets_the_flag_and_handlers_are_as_before(number: int) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop.is_set() and stop.exit_code is None
        os.kill(os.getpid(), number)
        assert stop.is_set() and stop.exit_code == 128 + number
        assert stop.signal_name == signal.Signals(number).name
    assert signal.getsignal(number) is before


def test_the_signal_of_a_launcher_before_a_time_limit_has_the_exit_code_of_a_time_limit() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
    assert stop.is_set() and stop.exit_code == 138 and stop.signal_name == "SIGUSR2"


def test_a_flag_may_be_set_without_a_signal() -> None:
    stop = Stop()
    stop.set()
    assert stop.is_set() and stop.exit_code is None and stop.signal_name is None


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = (
        "import os, signal, time\nfrom balr.shutdown import stop_on_signals\n"
        "with stop_on_signals():\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "on\n", "")


def test_the_end_of_the_process_above_sets_the_flag_however_many_threads_it_had() -> None:
    job = (
        "import os, sys, time\nfrom balr.shutdown import stop_on_signals\n"
        "with stop_on_signals(parent=os.getppid()) as stop:\n    print('on', file=sys.stderr, flush=True)\n"
        "    stop.wait(30)\n    time.sleep(0.5)\n    print(stop.signal_name, flush=True)\n"
    )
    sweep = (
        "import os, subprocess, sys, threading, time\n"
        "for _ in range(4):\n    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "job = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stderr=subprocess.PIPE)\n"
        "job.stderr.readline()\nos._exit(143)\n"
    )
    done = subprocess.run([sys.executable, "-c", sweep, job], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (143, "SIGHUP\n")


@pytest.mark.parametrize("order", [(signal.SIGHUP, signal.SIGINT), (signal.SIGINT, signal.SIGHUP)])
def test_the_end_of_the_process_above_is_no_second_signal(order: tuple[int, int]) -> None:
    stop = Stop()
    stop.handle(order[0], None)
    with stop._cond:  # as where it comes while the first one is handled
        stop.handle(order[1], None)
    assert stop.signal_name == "SIGINT"


def test_a_thread_without_signals_gets_a_flag_that_nobody_sets() -> None:
    found: list[bool] = []

    def use() -> None:
        with stop_on_signals() as stop:
            found.append(stop.is_set())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [False]


def test_the_process_ends_with_its_code_after_what_is_registered_for_its_exit() -> None:
    program = (
        "import atexit, threading, time\n"
        "from balr.shutdown import end_process\n"
        "atexit.register(print, 'registered')\n"
        "{before}"
        "print('printed')\n"
        "end_process(3)\n"
    )
    thread = "threading.Thread(target=lambda: (time.sleep(0.3), print('waited for'))).start()\n"
    for before, printed in (("", "printed\nregistered\n"), (thread, "printed\nwaited for\nregistered\n")):
        command = [sys.executable, "-c", program.format(before=before)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (3, printed), done.stderr

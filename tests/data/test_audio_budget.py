"""AudioBudget: what threads hold at once stays within the limit, and what is longer than it goes alone."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

from balr.data.audio_budget import AudioBudget


def test_threads_never_hold_more_than_the_limit_but_for_one_alone() -> None:
    budget, lock, held, seen = AudioBudget(), threading.Lock(), [], []

    def hold(seconds: float) -> None:
        with budget.reserve(seconds, of=10.0):
            with lock:
                held.append(seconds)
                seen.append(list(held))
            threading.Event().wait(0.001)
            with lock:
                held.remove(seconds)

    lengths = random.Random(0).choices([1.0, 2.5, 4.0, 9.0, 25.0], k=200)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, lengths))
    assert len(seen) == 200 and not held
    assert all(sum(now) <= 10.0 or len(now) == 1 for now in seen)
    assert any(len(now) > 1 for now in seen)

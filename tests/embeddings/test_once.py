"""A property that threads ask for at the same time is computed by one of them."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

from balr.embeddings.once import computed_once


class Slow:
    """Note the threads that compute `value`."""

    def __init__(self) -> None:
        self.computed_by: list[int] = []

    @computed_once
    def value(self) -> int:
        self.computed_by.append(get_ident())
        time.sleep(0.1)
        return 7


def test_one_thread_computes_and_the_others_wait() -> None:
    slow = Slow()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: slow.value, range(8))) == [7] * 8
    assert len(slow.computed_by) == 1 and vars(slow)["value"] == 7

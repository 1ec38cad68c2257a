"""A property that is computed once, whichever threads ask for it."""

from collections.abc import Callable
from functools import cached_property
from threading import RLock
from typing import Any, TypeVar

_T = TypeVar("_T")


def computed_once(function: Callable[[Any], _T]) -> cached_property[_T]:
    """Make a cached property that one thread computes while others wait; functools has no lock from Python 3.12 on."""
    return _LockedProperty(function)


class _LockedProperty(cached_property[_T]):
    def __init__(self, function: Callable[[Any], _T]) -> None:
        super().__init__(function)
        self._lock = RLock()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        with self._lock:
            return super().__get__(instance, owner)

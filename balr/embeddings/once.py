"""A property that is computed once, whichever threads ask for it."""

from collections.abc import Callable
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar

_T = TypeVar("_T")


class computed_once(cached_property[_T]):  # noqa: N801
    """A cached property that one thread computes while others wait; functools has no lock from Python 3.12 on."""

    def __init__(self, function: Callable[[Any], _T]) -> None:
        super().__init__(function)
        self._lock = RLock()

    if not TYPE_CHECKING:  # the types are those of a cached property

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            """Return the value, which is an attribute of the instance from then on."""
            with self._lock:
                return super().__get__(instance, owner)

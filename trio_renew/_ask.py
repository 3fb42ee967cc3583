"""One call of a store that serves a provider: bounded, reported when it fails, and then no reason to give up.

Invariants:

* What a store raises (an Exception) or takes too long for becomes :class:`StoreDown`, after it was reported as the
  failure of the store's method; a cancellation and a KeyboardInterrupt stay what they are.
* A store is the user's code: a KeyboardInterrupt may strike in it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from ._errors import StoreError
from ._user import call_user

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ("PATIENCE", "Ask", "StoreDown", "check_methods", "check_name", "half_the_time")

#: Seconds that one call of a store may take.
PATIENCE = 5.0


class StoreDown(Exception):
    """A store could not be asked; that was reported. Never leaves the package."""


def half_the_time() -> float:
    """Give half of the seconds that are left of the fetch that we are in; infinity outside of one.

    Who waits no longer than that for stores, however often, leaves time to fetch without them.
    """
    return max(0.0, trio.current_effective_deadline() - trio.current_time()) / 2


class _Call:
    """A call and its arguments in a box: a traceback may show the locals of our frames, and they may hold a secret."""

    __slots__ = ("_made",)

    def __init__(self, made: Callable[[], Awaitable[Any]]) -> None:
        self._made = made

    def __call__(self) -> Awaitable[Any]:
        return self._made()


class Ask:
    """Calls stores for one provider.

    Args:
      report: Told the method and the error of each failed call.
    """

    __slots__ = ("_report",)

    def __init__(self, report: Callable[[str, BaseException], None]) -> None:
        self._report = report

    def report(self, operation: str, error: BaseException) -> None:
        """Report a failure that shows only in what a store has answered."""
        self._report(operation, error)

    async def __call__(
        self, store: object, operation: str, *args: object, within: float | None = None, **options: object
    ) -> Any:
        """Call one method of a store.

        Raises:
          StoreDown: It raised, or took longer than ``within`` seconds. None: than 5, or half the time of the fetch.
        """
        if within is None:
            within = min(PATIENCE, half_the_time())
        try:
            call = _Call(partial(getattr(store, operation), *args, **options))
            del args, options
            with trio.move_on_after(within):
                return await call_user(operation, call)
            error: Exception = StoreError(f"{operation}() took longer than {within:g} s")
        except Exception as exc:
            error = exc
        self._report(operation, error)
        del error  # its traceback holds this frame
        raise StoreDown


def check_methods(name: str, what: str, store: object, *methods: str) -> None:
    """Refuse what is no such store.

    Raises:
      TypeError: A method is missing.
    """
    for method in methods:
        if not callable(getattr(store, method, None)):
            raise TypeError(f"{name} must be {what}, but {type(store).__name__} has no {method}")


def check_name(name: str, value: object) -> None:
    """Refuse what is no non-empty text.

    Raises:
      TypeError: It is no str.
      ValueError: It is empty.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not of type {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must not be empty")

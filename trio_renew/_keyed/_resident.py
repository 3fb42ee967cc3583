"""One open value of a pool, from before it opens until it has closed, in one task of its own.

Invariants:

* Its context manager is entered and left in that task, and left once if it was entered, whatever happens.
* It is lent only while it is ``OPEN`` and nobody has asked it to leave; it is asked to leave when it is *retired* and
  nobody has it or is about to get it. So no borrower ever has a closed one.
* The task's scope is cancelled while it opens, never while it is open: there a Cancelled comes from inside of the
  value, which has crashed. Then its borrowers leave first, its context manager after them, and what that raises is
  what they get.
"""

from __future__ import annotations

import enum
import inspect
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio
from trio.lowlevel import disable_ki_protection, enable_ki_protection

from .._events import logger
from .._raising import raise_shared, set_context

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import NoReturn, Protocol

    from .._flight import Flight

    class Holder(Protocol):
        """Somebody who has a value."""

        def _cancel(self) -> None:
            """End its block."""

    class Landlord(Protocol):
        """What a resident tells its pool; all of it synchronous."""

        @property
        def _is_closed(self) -> bool:
            """Whether the pool has closed."""
            ...

        def _has_opened(self, resident: Resident[Any, Any]) -> None:
            """It is open from here on."""

        def _has_crashed(self, resident: Resident[Any, Any]) -> None:
            """It is of no use any more."""

        def _has_gone(self, resident: Resident[Any, Any]) -> None:
            """It has closed, or was never open."""

        def _has_returned(self, resident: Resident[Any, Any]) -> None:
            """Somebody has given it back."""


__all__ = ("Phase", "Resident")

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class Phase(enum.Enum):
    """Where a value stands."""

    OPENING = enum.auto()
    OPEN = enum.auto()
    CRASHED = enum.auto()
    LEAVING = enum.auto()


@disable_ki_protection
def _make(open_value: Callable[[Any], Any], key: object) -> Any:
    return open_value(key)


@disable_ki_protection
async def _enter(enter: Any, manager: object, entered: list[Any]) -> None:
    # One expression: no KeyboardInterrupt can fall between having entered and knowing it.
    entered.append(await enter(manager))


async def _exit(manager: object, problem: BaseException | None) -> BaseException | None:
    """Leave a context manager as ``async with`` does; gives what comes out of it."""
    # Protected: a KeyboardInterrupt on the way into it would leave the value open.
    kind: Any = type(manager)
    error: Any = (None, None, None) if problem is None else (type(problem), problem, problem.__traceback__)
    try:
        suppressed = await kind.__aexit__(manager, *error)
    except BaseException as exc:  # noqa: ASYNC103 - it is raised in the end
        return exc  # noqa: ASYNC104, ASYNC910 - as above
    return None if suppressed else problem


def _check_manager(manager: object) -> Any:
    kind: type[object] = type(manager)
    if not (hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__")):
        if inspect.iscoroutine(manager):
            manager.close()
        raise TypeError(
            f"open_value must return an async context manager, but it returned {kind.__name__}: "
            "a plain function that returns open_provider(...), or one made with @asynccontextmanager"
        )
    return kind


class Resident(Generic[K, V]):
    """A value in its task.

    Args:
      pool: Who is told.
      key: Its key.
      open_value: Makes its context manager.
      flight: The flight that opens it.

    Attributes:
      value: The value, while it is open.
      stored: When it was opened; set by the pool.
      idle_since: When the last borrower gave it back; set by the pool.
      retired: Nobody new gets it.
      borrows: Who has it.
      flight: Those who wait on it are about to get the value.
      error: What its context manager raised.
      opened: Set when it is decided whether it opens.
      gone: Set when it has closed.
    """

    __slots__ = (
        "_context",
        "_leave",
        "_open_value",
        "_pool",
        "_returned",
        "_scope",
        "_told",
        "_traceback",
        "borrows",
        "error",
        "flight",
        "gone",
        "idle_since",
        "key",
        "opened",
        "phase",
        "retired",
        "stored",
        "value",
    )

    value: V

    def __init__(
        self,
        pool: Landlord,
        key: K,
        open_value: Callable[[K], AbstractAsyncContextManager[V]],
        flight: Flight[Any, Any],
        deadline: float,
    ) -> None:
        self._pool = pool
        self._open_value = open_value
        self._scope = trio.CancelScope(shield=True, deadline=deadline)
        self._leave = trio.Event()
        self._returned: trio.Event | None = None
        #: Whether somebody had it, or was about to get it, when it crashed.
        self._told = False
        self.key: K = key
        self.flight: Flight[Any, Any] | None = flight
        self.phase: Phase = Phase.OPENING
        self.stored: float = 0.0
        self.idle_since: float = 0.0
        self.retired: bool = False
        self.borrows: dict[Holder, None] = {}
        self.error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._context: BaseException | None = None
        self.opened: trio.Event = trio.Event()
        self.gone: trio.Event = trio.Event()

    # For the pool

    @property
    def is_wanted(self) -> bool:
        """Whether somebody has it, or is about to get it."""
        if self.borrows:
            return True
        if self.flight is not None and not self.flight.waiting:
            self.flight = None
        return self.flight is not None

    def retire(self) -> None:
        """Let nobody new have it, and let it close when nobody has it."""
        self.retired = True
        if not self.is_wanted:
            self._leave.set()

    def dismiss(self) -> None:
        """Nobody waits for it any more: it is not to open, or to close again."""
        if self.phase is Phase.OPENING:
            self._scope.cancel()
        else:
            self.retire()

    async def evict(self) -> None:  # noqa: ASYNC910 - it waits only where there is something to wait for
        """Cancel the blocks of those who have it, and wait until they have left."""
        while self.borrows:
            for borrow in self.borrows:
                borrow._cancel()
            self._returned = trio.Event()
            await self._returned.wait()

    async def close(self) -> None:
        """Take it from those who have it, and close it."""
        await self.evict()
        self._leave.set()
        await self.gone.wait()

    def give_back(self, borrow: Holder) -> None:
        """Somebody leaves."""
        del self.borrows[borrow]
        if not self.borrows and self._returned is not None:
            self._returned.set()
        self._pool._has_returned(self)

    def raise_error(self) -> NoReturn:
        """Raise what its context manager raised, in one of those who had it, once it has gone."""
        error, context = self.error, self._context
        assert error is not None
        try:
            raise_shared(error, self._traceback, context)
        finally:
            # Not the Cancelled that a borrower's block was ended by.
            set_context(error, context)
            del error, context

    # The task

    @enable_ki_protection
    async def run(self) -> None:
        """Open, stay, close. Only what is no Exception leaves."""
        problem = await self._stay()
        if isinstance(problem, trio.Cancelled):
            problem = None  # of a scope inside of the value, which it did not leave as it should
        if problem is None and self.phase is Phase.CRASHED:
            problem = trio.BrokenResourceError(f"the value of {self.key!r} ended by itself while it was open")
        fatal = problem is not None and not isinstance(problem, Exception)
        if not fatal:
            self._report(problem)
        self.opened.set()
        self.gone.set()
        self._pool._has_gone(self)
        try:
            if problem is not None and fatal:
                raise problem
        finally:
            del problem

    async def _stay(self) -> BaseException | None:
        problem = None
        try:
            with self._scope:
                problem = await self._live()
                if problem is not None:
                    raise problem
        except BaseException as exc:  # noqa: ASYNC103 - it is raised in the end
            return exc  # noqa: ASYNC104, ASYNC910 - as above
        finally:
            del problem
        return None

    async def _live(self) -> BaseException | None:
        assert self.flight is not None
        self.flight.go_inside()
        entered: list[V] = []
        problem: BaseException | None = None
        manager = None
        try:
            manager = _make(self._open_value, self.key)
            kind = _check_manager(manager)
            await _enter(kind.__aenter__, manager, entered)
        except BaseException as exc:  # noqa: ASYNC103 - as above
            problem = exc
        if not entered:
            return problem  # noqa: ASYNC910 - a task's own work
        problem = await self._be_open(entered.pop()) if problem is None else problem
        if self.phase is not Phase.CRASHED:
            self.phase = Phase.LEAVING
        return await _exit(manager, problem)

    async def _be_open(self, value: V) -> BaseException | None:
        if self._scope.cancel_called or self._pool._is_closed:
            return None  # noqa: ASYNC910 - a task's own work
        self._scope.deadline = inf
        self.value = value
        del value
        self.phase = Phase.OPEN
        self._pool._has_opened(self)
        self.opened.set()
        problem: BaseException | None = None
        try:
            await self._leave.wait()
        except BaseException as exc:  # noqa: ASYNC103 - as above
            problem = exc
        if problem is not None:
            self.phase = Phase.CRASHED
            self._told = self.is_wanted
            self._pool._has_crashed(self)
            with trio.CancelScope(shield=True):
                await self.evict()
        del self.value
        return problem  # noqa: ASYNC910 - as above

    def _report(self, problem: BaseException | None) -> None:
        if self.phase in (Phase.OPENING, Phase.CRASHED):
            self.error = problem
            if problem is not None:
                self._traceback, self._context = problem.__traceback__, problem.__context__
        heard = self.phase is Phase.OPENING or (self._told and not self._pool._is_closed)
        if problem is not None and not heard:
            logger.error("the value of %r in %r failed", self.key, self._pool, exc_info=problem)

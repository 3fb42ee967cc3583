"""Whoever owns tasks: a service nursery, its clock, its alarms, and the end of it all.

Invariants:

* The body of the ``async with`` leaves first, the owner's tasks die last. Until then neither a cancellation around the
  owner nor an exception of the body reaches them: each piece of work runs in a shielded scope that it opens before its
  first checkpoint.
* No task of the nursery ever raises into it. What crashes is kept (:meth:`Owner.crash`), closes the owner at once and
  leaves the ``async with`` as itself; an exception of the body becomes its context.
* Closing is one synchronous step: from it on every call is refused. Then the tasks are waited for, then
  :class:`~trio_renew.OwnerClosed` is told.
* An owner belongs to one thread of one process. In a forked child it is refused like in a foreign thread.
* Our own steps are protected from KeyboardInterrupt, the user's code is not (:mod:`._user`).
"""

from __future__ import annotations

import functools
import os
import weakref
from contextlib import AbstractAsyncContextManager
from contextvars import Context, copy_context
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from threading import get_ident
from types import SimpleNamespace
from typing import TYPE_CHECKING, Generic, NoReturn, ParamSpec, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from ._clock import Clock
from ._events import Event, OwnerClosed, emit, logger
from ._raising import chain, raise_as_it_is, set_traceback
from ._user import check_function

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from types import TracebackType

__all__ = ("Alarm", "Owner", "hosting", "owning")

P = ParamSpec("P")
X = TypeVar("X")

# Below this many dead entries a heap is not worth rebuilding.
_FEW = 64


_alive: weakref.WeakSet[Owner] = weakref.WeakSet()


def _disown_after_fork() -> None:
    for owner in _alive:
        owner.disown()


# Windows has no fork: there, this makes a namespace that nobody looks at.
getattr(os, "register_at_fork", SimpleNamespace)(after_in_child=_disown_after_fork)


class Alarm:
    """One callback at one instant of Trio's clock. Made by :meth:`Owner.alarm`."""

    __slots__ = ("_owner", "callback", "deadline")

    def __init__(self, owner: Owner, deadline: float, callback: Callable[[], None]) -> None:
        self._owner = owner
        self.deadline: float = deadline
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget it; fine when it has rung."""
        if self.callback is not None:
            self.callback = None
            self._owner._alarm_cancelled()


class Owner:
    """The nursery of one resource, provider, cache or pool, and what belongs to its lifetime.

    Args:
      name: For events and task names.
      observe: Told every event.
      clock: The user's clock, or None.
    """

    __slots__ = (
        "__weakref__",
        "_alarms",
        "_closing",
        "_context",
        "_crash",
        "_dead_alarms",
        "_followers",
        "_nursery",
        "_sleeper",
        "_thread",
        "_tickets",
        "_timekeeping",
        "_token",
        "clock",
        "closed",
        "name",
        "observe",
    )

    clock: Clock
    _nursery: trio.Nursery
    _token: trio.lowlevel.TrioToken

    def __init__(
        self,
        name: str | None,
        observe: Callable[[Event], None] | None,
        clock: Callable[[], float] | None,
    ) -> None:
        check_function("observe", observe, "a function of one event")
        check_function("clock", clock, "a function that returns POSIX seconds")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, got {type(name).__name__}")
        self.name: str | None = name
        self.observe: Callable[[Event], None] | None = observe
        self.clock = Clock(clock)
        self.closed: bool = False
        # A dict for its order: what closes first is the same in every run.
        self._closing: dict[Callable[[], None], None] = {}
        self._context: Context = copy_context()
        self._crash: BaseException | None = None
        self._alarms: list[tuple[float, int, Alarm]] = []
        self._dead_alarms = 0
        self._tickets = count()
        self._sleeper: trio.CancelScope | None = None
        self._timekeeping = False
        self._thread = get_ident()
        self._followers: list[Callable[[], None]] = []
        _alive.add(self)
        self._token = trio.lowlevel.current_trio_token()

    @property
    def thread(self) -> int:
        """The ident of the thread that the owner lives in."""
        return self._thread

    def on_disowned(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in a forked child, where a hit must not skip the check of the thread."""
        self._followers.append(callback)

    def disown(self) -> None:
        """Belong to no thread any more."""
        self._thread = 0
        for callback in self._followers:
            callback()

    def tell(self, *events: Event) -> None:
        """Tell the observer; see :func:`trio_renew._events.emit`."""
        emit(self.observe, *events)

    def check(self) -> None:
        """Refuse a call that comes too late or from elsewhere.

        Raises:
          RuntimeError: Called from another thread or another Trio run.
          trio.ClosedResourceError: The owner is closed.
        """
        if get_ident() != self._thread:
            raise RuntimeError(f"{self!r} belongs to another thread or process: use it in the Trio run that opened it")
        if self.closed:
            self.refuse()
        if trio.lowlevel.current_trio_token() is not self._token:
            raise RuntimeError(f"{self!r} belongs to another Trio run: use it in the run that opened it")

    def refuse(self) -> NoReturn:
        """Raise what callers of a closed owner get."""
        raise trio.ClosedResourceError(f"{self!r} is closed")

    def __repr__(self) -> str:
        return f"<trio_renew owner {self.name or 'without a name'}{' (closed)' if self.closed else ''}>"

    # Tasks

    def on_closing(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in the step that closes the owner; it must not raise."""
        self._closing[callback] = None

    def not_closing(self, callback: Callable[[], None]) -> None:
        """Take :meth:`on_closing` back; fine when it has been called."""
        self._closing.pop(callback, None)

    @enable_ki_protection
    def start(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Run ``work`` in a task of the nursery, in a copy of the context in which the owner was opened.

        ``work`` opens a shielded scope before its first checkpoint and ends soon after the owner has closed.
        """
        label = f"{name} of {self.name or 'trio_renew'}"
        self._context.run(lambda: self._nursery.start_soon(self._guard, work, name=label))

    @enable_ki_protection
    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:  # noqa: ASYNC910 - a task's own work
        crash: BaseException | None = None
        try:
            await work()
        except BaseException as exc:  # noqa: ASYNC103 - it leaves the owner
            crash = exc
        if crash is not None:
            # Not while it is handled: it would become the context of what the others are woken with.
            self.crash(crash)
            del crash

    @enable_ki_protection
    def crash(self, error: BaseException) -> None:
        """End the owner as a crashed task ends a nursery; the error leaves its ``async with`` as itself."""
        if self._crash is None:
            self._crash = error
        else:
            logger.error("%r crashed again while it was ending", self, exc_info=error)
        self.close()
        self._nursery.cancel_scope.cancel()

    @enable_ki_protection
    def close(self) -> None:
        """Refuse all calls from here on, and tell the work to end."""
        if self.closed:
            return
        self.closed = True
        for callback in list(self._closing):
            callback()
        self._closing.clear()
        self._alarms.clear()
        if self._sleeper is not None:
            self._sleeper.cancel()

    # Alarms

    @enable_ki_protection
    def alarm(self, deadline: float, callback: Callable[[], None]) -> Alarm:
        """Have ``callback`` called at ``deadline`` on Trio's clock, in a task of the nursery."""
        alarm = Alarm(self, deadline, callback)
        heappush(self._alarms, (deadline, next(self._tickets), alarm))
        if not self._timekeeping:
            self._timekeeping = True
            self.start(self._keep_time, "timekeeper")
        elif self._alarms[0][2] is alarm:
            self._set_sleeper()
        return alarm

    def _alarm_cancelled(self) -> None:
        self._dead_alarms += 1
        heap = self._alarms
        if self._dead_alarms > _FEW and self._dead_alarms * 2 > len(heap):
            heap[:] = [entry for entry in heap if entry[2].callback is not None]
            heapify(heap)
            self._dead_alarms = 0
        self._drop_dead()
        self._set_sleeper()

    def _drop_dead(self) -> None:
        # Nobody is woken for an alarm that is off.
        heap = self._alarms
        while heap and heap[0][2].callback is None:
            heappop(heap)
            self._dead_alarms -= 1

    def _set_sleeper(self) -> None:
        deadline = self._alarms[0][0] if self._alarms else inf
        # Setting it costs something, and most of the time nothing has changed.
        if self._sleeper is not None and self._sleeper.deadline != deadline:
            self._sleeper.deadline = deadline

    async def _keep_time(self) -> None:  # noqa: ASYNC910 - a task's own work
        while not self.closed:
            with trio.CancelScope(shield=True) as self._sleeper:
                self._set_sleeper()
                await trio.sleep_forever()
            self._sleeper = None
            now = trio.current_time()
            while self._alarms and self._alarms[0][0] <= now:
                alarm = heappop(self._alarms)[2]
                callback, alarm.callback = alarm.callback, None
                if callback is None:
                    self._dead_alarms -= 1
                else:
                    callback()


class _Owning(AbstractAsyncContextManager[X], Generic[X]):
    """An async generator with one ``yield`` as a context manager, which can be entered once.

    No KeyboardInterrupt can split its own steps, and what the body raises is not written to, as contextlib would.
    """

    __slots__ = ("_entered", "_generator")

    def __init__(self, generator: AsyncGenerator[X, None]) -> None:
        self._generator = generator
        self._entered = False

    @enable_ki_protection
    async def __aenter__(self) -> X:  # noqa: ASYNC910 - the generator's own
        if self._entered:
            raise RuntimeError("what an open_... function returns can be entered once: call the function again")
        self._entered = True
        try:
            return await self._generator.__anext__()
        except RuntimeError as exc:
            stop = _wrapped(exc)
            if stop is None:
                raise
        try:
            raise_as_it_is(stop)
        finally:
            del stop

    @enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        generator, left = self._generator, error
        try:
            await (generator.__anext__() if error is None else generator.athrow(error))  # noqa: ASYNC102 - it shields itself
        except StopAsyncIteration:
            return error is not None  # noqa: ASYNC910 - the generator's own
        except BaseException as exc:  # noqa: ASYNC103 - it is raised below
            left = _wrapped(exc) or exc
        assert left is not None  # one yield
        try:
            if left is not error:
                raise_as_it_is(left)
            set_traceback(left, traceback)
            return False  # noqa: ASYNC910 - as above
        finally:
            del left, error, traceback


def _wrapped(error: BaseException) -> BaseException | None:
    """Find what Python has wrapped on its way out of a generator: its wrapper has no frame but that of who asked."""
    cause, traceback = error.__cause__, error.__traceback__
    made_here = isinstance(error, RuntimeError) and traceback is not None and traceback.tb_next is None
    return cause if made_here and isinstance(cause, (StopIteration, StopAsyncIteration)) else None


def owning(function: Callable[P, AsyncGenerator[X, None]]) -> Callable[P, AbstractAsyncContextManager[X]]:
    """Make an async context manager of a generator, protected from KeyboardInterrupt at both ends."""

    @functools.wraps(function)
    def manage(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[X]:
        return _Owning(function(*args, **kwargs))

    return manage


@owning
async def hosting(owner: Owner) -> AsyncGenerator[None, None]:  # noqa: ASYNC911 - where there are tasks it waits
    """Keep an owner's nursery open around a body. Leaving waits for its tasks, and cannot be cancelled.

    What leaves, when several things go wrong at once: a crash of the owner's work, else a KeyboardInterrupt that came
    while closing, else the exception of the body; each as itself, with the later ones of this list as its context.
    """
    problems: list[BaseException] = []
    try:
        async with trio.open_nursery(strict_exception_groups=True) as owner._nursery:
            try:
                yield
            except BaseException as exc:  # noqa: ASYNC103 - the last of them is raised below
                problems.append(exc)
            owner.close()
    except BaseExceptionGroup as group:
        # Our tasks never raise into the nursery: this is what interrupted the waiting for them.
        problems.extend(group.exceptions)
    try:
        owner.tell(OwnerClosed(name=owner.name))
    except BaseException as exc:  # noqa: ASYNC103 - as above
        problems.append(exc)
    if owner._crash is not None:
        problems.append(owner._crash)
        owner._crash = None
    if problems:
        *earlier, error = problems
        for problem in reversed(earlier):
            if not isinstance(problem, trio.Cancelled):
                chain(error, problem)
        try:
            raise_as_it_is(error)
        finally:
            del error, earlier, problems[:]

"""A storage as a resource uses it: one call at a time, in order, bounded, and never in the way.

Invariants:

* Each call runs in a task of the owner's nursery, so that whoever asked may leave. Writes and clears run in the order
  in which they were asked for: a ``clear`` asked for after a ``set`` always has the last word. The one read comes
  first, or not at all.
* A call *settles* (its askers go on) when it ends or after ``timeout`` seconds; the next one waits for its *end*.
* What fails is reported once and raised nowhere. A KeyboardInterrupt or SystemExit crashes the owner; a write or clear
  that is interrupted is made once more before: neither a new value nor a logout is lost to it.
* Closing cancels a read; a write or a clear goes on within its bound, and nobody waits for it but the nursery.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from ._errors import StoreError
from ._user import call_user

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._owner import Owner
    from .abc import Storage

__all__ = ("Stash",)

T = TypeVar("T")


class _Call(Generic[T]):
    __slots__ = (
        "args",
        "before",
        "dismissed",
        "ended",
        "operation",
        "reported",
        "result",
        "scope",
        "settled",
        "wanted",
    )

    def __init__(self, operation: str, args: tuple[Any, ...], before: trio.Event | None) -> None:
        self.operation = operation
        self.args = args
        self.before = before
        self.ended = trio.Event()
        self.settled = trio.Event()
        self.reported = False
        self.result: T | None = None
        self.scope = trio.CancelScope()
        self.wanted: Callable[[], bool] | None = None
        self.dismissed = False

    def dismiss(self) -> None:
        """Nobody wants its result any more."""
        self.dismissed = True
        self.scope.cancel()


class Stash(Generic[T]):
    """The one storage of one resource.

    Args:
      owner: Whose nursery runs the calls.
      storage: The user's storage.
      timeout: Bound of each call, in seconds; infinity for none.
      report: Told the operation and the error of each failed call.
    """

    __slots__ = ("_last", "_owner", "_read", "_report", "_storage", "_timeout", "unread")

    def __init__(
        self, owner: Owner, storage: Storage[T], timeout: float, report: Callable[[str, BaseException], None]
    ) -> None:
        self._owner = owner
        self._storage = storage
        self._timeout = timeout
        self._report = report
        self._last: trio.Event | None = None
        self._read: _Call[T] | None = None
        #: Whether what is stored may still be wanted.
        self.unread = True

    async def read(self, accept: Callable[[T], None]) -> None:
        """Have the storage read, once, and wait for it; ``accept`` gets what it held, unless that is not wanted."""
        call = self._read
        if call is None:
            call = self._read = self._ask("get")
            self._owner.on_closing(call.settled.set)
            self._owner.on_closing(call.dismiss)
            self._owner.start(lambda: self._run_read(call, accept), "storage get")
        await call.settled.wait()

    async def write(self, value: T, wanted: Callable[[], bool]) -> None:
        """Write a value down and wait for it; given up when it is no longer wanted at its turn."""
        self.forget()
        call: _Call[T] = self._ask("set", value)
        call.wanted = wanted
        self._owner.start(lambda: self._run(call), "storage set")
        with trio.CancelScope(shield=True):
            await call.settled.wait()

    @enable_ki_protection
    def clear(self) -> trio.Event:
        """Have the storage cleared, whoever waits for it; the event is set when that is settled."""
        self.forget()
        call: _Call[T] = self._ask("clear")
        self._owner.on_closing(call.settled.set)
        self._owner.start(lambda: self._run(call), "storage clear")
        return call.settled

    def forget(self) -> None:
        """What is stored is not wanted any more."""
        self.unread = False
        if self._read is not None:
            self._read.dismiss()
            self._read.settled.set()

    def _ask(self, operation: str, *args: Any) -> _Call[T]:
        call: _Call[T] = _Call(operation, args, self._last)
        if operation != "get":  # nothing is read after a write, and nothing that is written waits for a read
            self._last = call.ended
        return call

    async def _run_read(self, call: _Call[T], accept: Callable[[T], None]) -> None:
        try:
            await self._run(call)
            if call.result is not None and not (call.dismissed or call.reported):
                try:
                    accept(call.result)
                except Exception as exc:
                    self._fail(call, exc)
        finally:
            self.unread = False
            self._owner.not_closing(call.dismiss)
            call.result = None
            call.settled.set()

    async def _run(self, call: _Call[T]) -> None:
        with trio.CancelScope(shield=True):
            try:
                if await self._my_turn(call) and (call.wanted is None or call.wanted()):
                    await self._insist(call)
            finally:
                call.args = ()
                if call.operation != "get":
                    call.settled.set()
                call.ended.set()
                self._owner.not_closing(call.settled.set)

    async def _my_turn(self, call: _Call[T]) -> bool:
        before, call.before = call.before, None
        if before is None:
            return True  # noqa: ASYNC910 - it waits only where there is something to wait for
        with trio.move_on_after(self._timeout):
            await before.wait()
            return True
        # Somebody's storage does not answer to cancellation. Nobody waits for it, but the order holds.
        self._fail(call, StoreError(f"storage.{call.operation} could not start: an earlier call does not end"))
        await before.wait()
        return call.operation == "clear"

    async def _insist(self, call: _Call[T]) -> None:
        try:
            await self._bounded(call)
        except KeyboardInterrupt:
            # It may have struck before the storage was reached.
            if call.operation != "get":
                call.scope = trio.CancelScope()
                await self._bounded(call)  # noqa: ASYNC120 - it is shielded
            raise

    async def _bounded(self, call: _Call[T]) -> None:  # noqa: ASYNC910 - the storage's own
        alarm = None
        if self._timeout != inf:
            call.scope.deadline = trio.current_time() + self._timeout
            if not self._owner.closed:  # after that nobody waits who would have to be told in time
                alarm = self._owner.alarm(call.scope.deadline, lambda: self._late(call))
        try:
            with call.scope:
                call.result = await call_user(
                    f"storage.{call.operation}", getattr(self._storage, call.operation), *call.args
                )
        except Exception as exc:
            self._fail(call, exc)
        finally:
            if alarm is not None:
                alarm.cancel()
        if call.scope.cancelled_caught:
            self._late(call)

    def _late(self, call: _Call[T]) -> None:
        self._fail(call, StoreError(f"storage.{call.operation} took longer than {self._timeout:g} s"))

    def _fail(self, call: _Call[T], error: BaseException) -> None:
        if call is self._read:
            self.unread = False  # one attempt
        call.settled.set()
        if not (call.reported or call.dismissed):
            call.reported = True
            self._report(call.operation, error)

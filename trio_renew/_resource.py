"""One resource: a value that is fetched when it is first asked for, kept, and fetched again on request.

Invariants:

* A method that awaits is one checkpoint where the value is there, and refuses to be called from inside the fetch.
* How it is decided what a caller gets is in ``_deciding.py``; here is what users call.
"""

from __future__ import annotations

import time
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar

from trio.lowlevel import checkpoint, enable_ki_protection

from ._deciding import AGAIN, Deciding
from ._flight import current_flights, refuse_reentry
from ._held import Changes, Status
from ._owner import hosting, owning
from ._user import check_async_function
from ._values import Lease

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from typing import Literal

    from ._events import Event
    from .abc import Storage

__all__ = ("RenewableResource", "open_resource", "open_resource_with")

T = TypeVar("T")


class RenewableResource(Deciding[T]):
    """A value that is fetched once for all who want it. Made by :func:`open_resource`."""

    __slots__ = ()

    @enable_ki_protection
    async def get(self) -> T:
        """Hand out the value, fetching it first where none is held.

        Exactly one checkpoint when it is held. Cancelling it takes only this caller away: the fetch is not the
        caller's (see ``when_abandoned``).

        Returns:
          The value; None only where the fetch returned None ("completed, no value").

        Raises:
          Exception: What the fetch raised, with its own type and traceback, in each caller of that fetch.
          FetchTimeout: The fetch took longer than ``fetch_timeout`` seconds.
          ReentrantFetchError: Called from inside the fetch itself.
          trio.ClosedResourceError: The owner is closed, or closed meanwhile.
          RuntimeError: Called from another thread or Trio run.

        Example::

            token = await resource.get()
        """
        if current_flights():
            refuse_reentry(self, "get()")
        waited = False
        if self._fast_thread == get_ident() and time.time() < self._fast_until:
            await checkpoint()
            waited = True
            if self._fast_thread == get_ident() and time.time() < self._fast_until:
                return self._fast_value  # type: ignore[return-value]
        flight = self._awaited
        if flight is None or not flight.joinable or get_ident() != self._thread:
            held = await self._obtain(waited=waited)
        else:
            # What Flight.wait() does, without its frame: 100,000 callers may come this way.
            flight.waiting += 1
            try:
                await flight.settled.wait()
            except BaseException:
                flight.leave()
                raise
            flight.waiting -= 1
            if self._fast_thread and time.time() < self._fast_until and not flight.fenced:
                return self._fast_value  # type: ignore[return-value]
            outcome = self._outcome(flight)
            held = (await self._obtain()) if outcome is AGAIN else outcome
        return None if held is None else held.value  # type: ignore[return-value]

    def get_nowait(self) -> T:
        """Hand out the value that is held, without waiting. Never a checkpoint.

        Raises:
          trio.WouldBlock: There is none, or it is not good any more.
          trio.ClosedResourceError: The owner is closed.
          RuntimeError: Called from another thread or Trio run.
        """
        if self._fast_thread == get_ident() and time.time() < self._fast_until:
            return self._fast_value  # type: ignore[return-value]
        return self._get_nowait()

    async def lease(self) -> Lease[T]:
        """Hand out the value with its generation, as :meth:`get` does, with the same checkpoint and errors.

        A lease is what :meth:`refresh` compares best: by generation, whatever the value is.
        """
        if current_flights():
            refuse_reentry(self, "lease()")
        held = await self._obtain()
        if held is None:
            return Lease(None, self._generation, self._clock.now(), None)  # type: ignore[arg-type]
        return held.lease()

    async def refresh(self, stale: T | Lease[T] | None = None) -> T:
        """Fetch now and replace the value, unless it is another one than ``stale`` already.

        At least one checkpoint. Joins a fetch that runs. Cancelling it takes only this caller away.

        Args:
          stale: The value, or its :class:`Lease`, that was rejected somewhere. If what is held differs and is good, it
            is returned without a fetch. None: fetch in any case.

        Raises:
          Exception: What the fetch raised, also when an old value is held; that one stays.
          FetchTimeout: The fetch took longer than ``fetch_timeout`` seconds.
          ReentrantFetchError: Called from inside the fetch itself.
          trio.ClosedResourceError: The owner is closed, or closed meanwhile.

        Example::

            if response.status_code == 401:
                token = await resource.refresh(stale=token)
        """
        if current_flights():
            refuse_reentry(self, "refresh()")
        await checkpoint()
        held = await self._renew(stale)
        return None if held is None else held.value  # type: ignore[return-value]

    async def clear(self) -> None:
        """Forget the value, here and in the storage: at logout, or when the tenant changes.

        A fetch in flight answers those who joined it and is not kept. Exactly one checkpoint without a storage;
        cancelled there, nothing has happened. With one it waits for the storage, which is cleared also when this
        caller leaves; its failure is reported, not raised.

        Raises:
          ReentrantFetchError: Called from inside the fetch itself.
          trio.ClosedResourceError: The owner is closed, or closed meanwhile.
        """
        if current_flights():
            refuse_reentry(self, "clear()")
        await checkpoint()
        self._owner.check()
        settled = self._forget()
        if settled is not None:
            await settled.wait()
            if self._owner.closed:
                self._owner.refuse()

    def changes(self) -> Changes[T]:
        """Iterate over the value that is good now, and each new one; the latest wins.

        It never fetches by itself. The loop ends when the owner closes.

        Raises:
          trio.ClosedResourceError: The owner is closed already.

        Example::

            async for token in resource.changes():
                client.headers["Authorization"] = f"Bearer {token.secret.reveal()}"
        """
        self._owner.check()
        return Changes(self._owner, self._look, self._change)

    def status(self) -> Status:
        """Take a snapshot. Never a checkpoint; works on a closed owner, and inside the fetch.

        Raises:
          RuntimeError: Called from another thread or Trio run, where the owner's time cannot be read, while it is open.
        """
        if not self._owner.closed:
            self._owner.check()
        now = 0.0 if self._owner.closed else self._clock.last()
        held, flight = self._held, self._flight
        return Status(
            name=self._owner.name,
            generation=self._generation,
            held=held is not None,
            good=held is not None and now < held.good_until,
            issued_at=None if held is None else held.issued_at,
            expires_at=None if held is None else held.expires_at,
            due_at=None if held is None else held.due_at,
            fetching=flight is not None,
            waiting=0 if flight is None else flight.waiting,
            last_error=self._last_error,
            closed=self._owner.closed,
            **self._health(now),
        )


@owning
async def open_resource_with(
    after_claim: Callable[[], Awaitable[object]] | None,
    fetch: Callable[[], Awaitable[T]],
    *,
    storage: Storage[Any] | None = None,
    fetch_timeout: float | None = 30.0,
    when_abandoned: Literal["finish", "cancel"] = "finish",
    observe: Callable[[Event], None] | None = None,
    clock: Callable[[], float] | None = None,
    name: str | None = None,
) -> AsyncGenerator[RenewableResource[T], None]:
    """Open a resource as :func:`trio_renew.open_resource` does, with a hook between claim and runner.

    Args:
      after_claim: Awaited between the claim of a fetch and the start of its task: the window that production code
        crosses without a checkpoint. What it raises (a cancellation, too) goes to the caller that claimed; the claim
        is released, and those who had joined decide again.
      fetch: As for ``open_resource``, like all that follow.
      storage: See there.
      fetch_timeout: See there; counts from after the hook.
      when_abandoned: See there.
      observe: See there.
      clock: See there.
      name: See there.
    """
    check_async_function("fetch", fetch)
    resource: RenewableResource[T] = RenewableResource(
        fetch,
        after_claim=after_claim,
        storage=storage,
        fetch_timeout=fetch_timeout,
        when_abandoned=when_abandoned,
        observe=observe,
        clock=clock,
        name=name,
    )
    async with hosting(resource._owner):
        yield resource  # noqa: ASYNC119 - @owning makes a context manager of it


@owning
async def open_resource(
    fetch: Callable[[], Awaitable[T]],
    *,
    storage: Storage[Any] | None = None,
    fetch_timeout: float | None = 30.0,
    when_abandoned: Literal["finish", "cancel"] = "finish",
    observe: Callable[[Event], None] | None = None,
    clock: Callable[[], float] | None = None,
    name: str | None = None,
) -> AsyncGenerator[RenewableResource[T], None]:
    """Keep a resource open around a body: a value that is fetched when first asked for, once for all who want it.

    Entering fetches nothing. Leaving is not a cancellation point: it cancels what is in flight and waits for it to
    unwind; callers elsewhere get ``trio.ClosedResourceError`` at once. The body can still use the resource in its
    ``finally`` blocks. What the body raises leaves as itself, not in a group.

    Args:
      fetch: An async function of no arguments that returns the value, or None for "completed, no value". What it
        raises goes to every caller of that fetch. It runs in a task of the resource's own nursery.
      storage: Where the value outlives the process (``get``, ``set``, ``clear``); read once, when first needed.
      fetch_timeout: Seconds that one fetch may take, and each storage call by itself; None or infinity: no limit.
      when_abandoned: What becomes of a fetch when its last caller leaves: ``"finish"`` keeps its value, ``"cancel"``
        cancels it.
      observe: Told every :data:`Event`, synchronously; must be quick. What it raises is logged.
      clock: Returns the time in POSIX seconds. None: the wall clock, or the test clock's under ``MockClock``.
      name: For events, logs and task names.

    Yields:
      The :class:`RenewableResource`.

    Raises:
      TypeError: An argument has the wrong type; it is named.
      ValueError: An argument is out of range; it is named.

    Example::

        async def fetch_csrf_token() -> str:
            response = await client.get("/csrf")
            return response.text

        async with open_resource(fetch_csrf_token) as csrf:
            await post(data, headers={"X-CSRF-Token": await csrf.get()})
    """
    async with open_resource_with(
        None,
        fetch,
        storage=storage,
        fetch_timeout=fetch_timeout,
        when_abandoned=when_abandoned,
        observe=observe,
        clock=clock,
        name=name,
    ) as resource:
        yield resource  # noqa: ASYNC119 - as above

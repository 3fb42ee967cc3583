"""One resource: a value that is fetched when it is first asked for, kept, and fetched again on request.

Invariants:

* What is held is replaced by a better one or forgotten by ``clear()``, never spoilt by a failure.
* Deciding is one step: the state is read, the clock is read, and the claim is made, without a checkpoint in between.
  After every wait the decision is made again (:meth:`RenewableResource._obtain`).
* Under a clock that goes by the wall clock, ``_fast_value`` may be handed out without a look at anything else in the
  thread ``_fast_thread`` while the wall clock is before ``_fast_until``. Whatever makes a value less good sets
  ``_fast_thread`` to 0 first: no thread, and no look at the wall clock.
* The provider (``_provider.py``) is this class with another notion of good (:meth:`_serve`), leave to fetch
  (:meth:`_admit`) and consolation (:meth:`_console`).
"""

from __future__ import annotations

import enum
import time
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import trio
from trio.lowlevel import checkpoint, checkpoint_if_cancelled, enable_ki_protection

from ._errors import FetchTimeout, MintedTokenAlreadyExpired
from ._events import Cleared, FetchFailed, FetchStarted, FetchSucceeded, StorageFailed
from ._flight import Flight, current_flights, refuse_reentry
from ._held import Changes, Held, Status
from ._owner import Owner, call_user, check_async_function, hosting, owning
from ._redact import describe_error, secret_texts
from ._stash import Stash
from ._values import Lease, check_seconds

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from typing import Literal

    from ._events import Event, Reason
    from .abc import Storage

__all__ = ("RenewableResource", "open_resource", "open_resource_with")

T = TypeVar("T")


class _Again(enum.Enum):
    AGAIN = enum.auto()


_AGAIN: Final = _Again.AGAIN


def _same(held: object, stale: object) -> bool:
    """Whether two values are one: by identity, then by type and equality (1 is not True)."""
    return held is stale or (type(held) is type(stale) and bool(held == stale))


class RenewableResource(Generic[T]):
    """A value that is fetched once for all who want it. Made by :func:`open_resource`."""

    __slots__ = (
        "__weakref__",
        "_after_claim",
        "_awaited",
        "_changed",
        "_clock",
        "_counts_uses",
        "_fast_thread",
        "_fast_until",
        "_fast_value",
        "_fetch",
        "_flight",
        "_generation",
        "_held",
        "_last_error",
        "_owner",
        "_stash",
        "_thread",
        "cancel_when_left",
        "fetch_timeout",
        "key",
    )

    def __init__(
        self,
        fetch: Callable[[], Awaitable[T | None]],
        *,
        after_claim: Callable[[], Awaitable[object]] | None,
        storage: Storage[Any] | None,
        fetch_timeout: float | None,
        when_abandoned: Literal["finish", "cancel"],
        observe: Callable[[Event], None] | None,
        clock: Callable[[], float] | None,
        name: str | None,
    ) -> None:
        if when_abandoned not in ("finish", "cancel"):
            raise ValueError(f'when_abandoned must be "finish" or "cancel", not {when_abandoned!r}')
        if after_claim is not None:
            check_async_function("after_claim", after_claim)
        for method in ("get", "set", "clear"):
            if storage is not None and not callable(getattr(storage, method, None)):
                raise TypeError(
                    f"storage must have async get, set and clear, but {type(storage).__name__} has no {method}"
                )
        if isinstance(storage, type):
            raise TypeError(f"storage must be a storage, got the class {storage.__name__}: call it")
        self.fetch_timeout: float = (
            inf if fetch_timeout is None else check_seconds("fetch_timeout", fetch_timeout, above=True, allow_inf=True)
        )
        self.cancel_when_left: bool = when_abandoned == "cancel"
        self.key: None = None
        self._fetch = fetch
        self._after_claim = after_claim
        self._owner = owner = Owner(name, observe, clock)
        self._clock = owner.clock
        self._thread = owner.thread
        self._held: Held[T] | None = None
        self._generation = 0
        self._flight: Flight[T, Held[T]] | None = None
        #: Whether each use has to be noticed.
        self._counts_uses = False
        #: The flight that every caller of get() has to wait for: claimed because nothing good was held, not settled.
        self._awaited: Flight[T, Held[T]] | None = None
        self._changed: trio.Event | None = None
        self._last_error: str | None = None
        self._fast_thread = 0
        self._fast_until = 0.0
        self._fast_value: T | None = None
        self._stash: Stash[T] | None = None
        if storage is not None:
            self._stash = Stash(owner, storage, self.fetch_timeout, self._storage_failed)
        owner.on_closing(self._closed)
        owner.on_disowned(self._disowned)

    def __repr__(self) -> str:
        name = "" if self._owner.name is None else f" {self._owner.name!r}"
        return f"<{type(self).__name__}{name}{' (closed)' if self._owner.closed else ''}>"

    # What users call

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
        if self._fast_thread == get_ident() and time.time() < self._fast_until:
            await checkpoint()
            if self._fast_thread == get_ident() and time.time() < self._fast_until:
                return self._fast_value  # type: ignore[return-value]
        flight = self._awaited
        if flight is None or not flight.joinable or get_ident() != self._thread:
            held = await self._obtain()
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
            held = (await self._obtain()) if outcome is _AGAIN else outcome
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
        """Take a snapshot. Never a checkpoint, never refused; works on a closed owner."""
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

    # Deciding

    def _serve(self, now: float, *, may_wait: bool) -> Held[T] | None:
        """Hand out what is good at this instant, or None."""
        return self._held

    def _admit(self, now: float, rejected: Held[T] | None) -> bool:
        """Refuse a fetch for a caller, by raising. True: it is let through an open breaker."""
        return False

    def _console(self, now: float, *, permanent: bool = False) -> Held[T] | None:
        """Find what may be handed out although it is not good and no better one could be had."""
        return None

    def _is_permanent(self, refusal: Exception) -> bool:
        """Whether a refusal of :meth:`_admit` is a failure that trying again does not mend."""
        return False

    def _still_usable(self, held: Held[T], now: float) -> bool:
        """Whether a value that has just arrived may be handed to those who waited for it."""
        return True

    def _health(self, now: float) -> dict[str, Any]:
        return {"breaker": None, "failures": None, "next_attempt_at": None}

    def _used(self, now: float) -> None:
        """Somebody wants the value."""

    def _get_nowait(self) -> T:
        self._owner.check()
        now = self._clock.now()
        self._used(now)
        held = self._serve(now, may_wait=False)
        if held is None:
            raise trio.WouldBlock
        self._speed_up(held, now)
        return held.value

    @enable_ki_protection
    async def _obtain(self, reason: Reason | None = None) -> Held[T] | None:
        """Get a good value, by whatever it takes; None: the fetch had none.

        Its one checkpoint comes before the decision where the value is there, and is the waiting where it is not.
        """
        waited = spoilt = False
        while True:
            self._owner.check()
            now = self._clock.now()
            held = self._held
            if not waited:
                if held is not None and now < held.good_until:
                    await checkpoint()
                    waited = True
                    continue
                await checkpoint_if_cancelled()
            self._used(now)
            held = self._serve(now, may_wait=True)
            if held is not None:
                self._speed_up(held, now)
                return held
            if self._stash is not None and self._stash.unread:
                waited = True
                await self._read()
                continue
            flight = self._flight
            if flight is None:
                try:
                    self._admit(now, None)
                except Exception as refusal:
                    if waited:
                        return self._consoled(refusal)
                    await checkpoint()
                    waited = True
                    continue
                flight = await self._claim(reason or ("absent" if self._held is None else "expired"), awaited=True)
            elif not flight.joinable:
                waited = True
                if not await flight.wait_freed():
                    self._owner.check()
                    return self._consoled(FetchTimeout(f"an earlier fetch did not end within {self.fetch_timeout:g} s"))
                continue
            waited = True
            await flight.wait()
            outcome = self._outcome(flight)
            if outcome is not _AGAIN:
                return outcome
            spoilt = self._spoilt(flight, spoilt)

    def _outcome(self, flight: Flight[T, Held[T]]) -> Held[T] | _Again | None:
        """What a flight that has settled means to somebody who needs the value; _AGAIN: decide again."""
        if self._owner.closed:
            self._owner.refuse()
        now = self._clock.now()
        held = flight.held
        if flight.error is not None:
            if self._asks_again(flight):
                return _AGAIN
            held = None if flight.fenced else self._console(now, permanent=flight.permanent)
            if held is None:
                flight.raise_error()
            return held
        if not flight.answered:
            return _AGAIN
        if held is None:
            return None if flight.fenced else self._console(now)
        if not self._still_usable(held, now):
            return _AGAIN
        if held is self._held:
            self._speed_up(held, now)
        return held

    @enable_ki_protection
    async def _renew(self, stale: T | Lease[T] | None) -> Held[T] | None:
        """Fetch, or join a fetch, or find that somebody has done it already."""
        spoilt = False
        while True:
            self._owner.check()
            now = self._clock.now()
            self._used(now)
            ours = False
            rejected: Held[T] | None = None
            if stale is not None:
                if self._stash is not None and self._stash.unread:
                    await self._read()
                    continue
                rejected = self._held
                if rejected is not None and not self._is(rejected, stale):
                    if now < rejected.good_until:
                        return rejected
                    rejected = None
            flight = self._flight
            if flight is None:
                override = self._admit(now, rejected)
                flight = await self._claim("forced", rejected, override=override, stale=stale)
                ours = True
            elif not flight.joinable:
                if not await flight.wait_freed():
                    raise FetchTimeout(f"an earlier fetch did not end within {self.fetch_timeout:g} s")
                continue
            await flight.wait()
            if self._owner.closed:
                self._owner.refuse()
            if flight.error is not None:
                if self._asks_again(flight):
                    continue
                flight.raise_error()
            if flight.stored and not ours:
                continue  # it fetched nothing: that is no answer
            if flight.answered and (flight.held is None or self._still_usable(flight.held, self._clock.now())):
                return flight.held
            spoilt = self._spoilt(flight, spoilt)

    def _spoilt(self, flight: Flight[T, Held[T]], before: bool) -> bool:
        """Whether a value had ended before it could be handed out; a caller does not go on like that."""
        if flight.held is None:
            return before
        if before:
            raise MintedTokenAlreadyExpired("the fetch brings values that expire before they can be handed out")
        return True

    def _is(self, held: Held[T], stale: T | Lease[T]) -> bool:
        if isinstance(stale, Lease):
            return held.generation == stale.generation
        return _same(held.value, stale)

    def _asks_again(self, flight: Flight[T, Held[T]]) -> bool:
        """Whether those who joined a flight that was refused decide again, in their own name."""
        return flight.background and flight.refused

    def _consoled(self, refusal: Exception) -> Held[T]:
        held = self._console(self._clock.now(), permanent=self._is_permanent(refusal))
        if held is not None:
            return held
        try:
            raise refusal
        finally:
            del refusal

    @enable_ki_protection
    async def _claim(
        self,
        reason: Reason,
        rejected: Held[T] | None = None,
        *,
        override: bool = False,
        awaited: bool = False,
        stale: object = None,
    ) -> Flight[T, Held[T]]:
        """Claim the flight for a caller, pass the hook, and launch it."""
        flight = self._take(reason, background=False)
        flight.rejected = rejected
        flight.stale = stale
        flight.override = override
        if awaited and not self._counts_uses:
            self._awaited = flight
        if self._after_claim is None:
            flight.launch()
        else:
            await flight.pass_hook(self._after_claim)
        return flight

    def _take(self, reason: Reason, *, background: bool) -> Flight[T, Held[T]]:
        flight: Flight[T, Held[T]] = Flight(
            self._owner,
            self,
            reason=reason,
            generation=self._generation,
            background=background,
            after_claim=self._after_claim if background else None,
        )
        self._flight = flight
        return flight

    # What the flight asks (Home)

    def flight_starts(self, flight: Flight[T, Held[T]]) -> None:
        """See :class:`~trio_renew._flight.Home`; so for the next ones."""
        self._owner.tell(FetchStarted(flight.reason, name=self._owner.name))

    async def fetch(self, flight: Flight[T, Held[T]]) -> T | None:
        return await call_user("fetch", self._fetch)

    def accept(self, flight: Flight[T, Held[T]], value: T) -> Held[T]:
        self._reanchor()
        return Held(value, min(flight.issued_at, self._clock.now()))

    def _reanchor(self) -> None:
        """A fresh value has arrived: the clock may say something else from here on, also of what is held."""
        self._clock.reanchor()
        self._slow_down()

    async def keep(self, flight: Flight[T, Held[T]], held: Held[T]) -> None:
        if self._stash is not None and not flight.fenced:
            await self._stash.write(held.value, lambda: not flight.fenced)

    def flight_succeeded(self, flight: Flight[T, Held[T]], held: Held[T] | None) -> None:
        self._owner.tell(self._succeeded(flight, held))

    def flight_failed(self, flight: Flight[T, Held[T]], error: BaseException) -> None:
        self._note_failure(flight, error)
        self._owner.tell(FetchFailed(flight.reason, flight.duration, error, None, None, name=self._owner.name))

    def release(self, flight: Flight[T, Held[T]]) -> None:
        if self._flight is flight:
            self._flight = self._awaited = None

    def _succeeded(self, flight: Flight[T, Held[T]], held: Held[T] | None) -> Event:
        remaining = None
        if held is not None:
            remaining = held.remaining(self._clock.last())
            if flight.fenced:
                held.generation = flight.generation
            else:
                self._commit(held)
        generation = flight.generation if flight.fenced else self._generation
        return FetchSucceeded(flight.reason, flight.duration, remaining, generation, name=self._owner.name)

    def _commit(self, held: Held[T]) -> None:
        self._generation += 1
        held.generation = self._generation
        self._slow_down()
        self._last_error = None
        if self._owner.closed:
            return
        self._held = held
        if self._stash is not None:
            self._stash.forget()
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _note_failure(self, flight: Flight[T, Held[T]], error: BaseException) -> None:
        if not flight.fenced:
            secrets = [] if self._held is None else secret_texts(self._held.value)
            if flight.unusable is not None:
                secrets += secret_texts(flight.unusable)
            self._last_error = describe_error(error, secrets)

    # The rest

    async def _read(self) -> None:
        assert self._stash is not None
        await self._stash.read(self._accept_stored)

    def _accept_stored(self, value: T) -> None:
        self._commit(self._from_storage(value))

    def _from_storage(self, value: T) -> Held[T]:
        return Held(value, self._clock.now())

    def _storage_failed(self, operation: str, error: BaseException) -> None:
        self._owner.tell(StorageFailed(operation, error, name=self._owner.name))

    @enable_ki_protection
    def _forget(self) -> trio.Event | None:
        """Forget the value in one step; the event, if any, is set when the storage has, too."""
        self._slow_down()
        self._generation += 1
        self._held = None
        if self._flight is not None:
            self._flight.fence()
            self._flight = self._awaited = None
        settled = None if self._stash is None else self._stash.clear()
        self._owner.tell(Cleared(self._generation, name=self._owner.name))
        return settled

    def _look(self, seen: int) -> Held[T] | None:
        held, now = self._held, self._clock.now()
        if held is None or held.generation == seen or not now < held.good_until:
            return None
        self._used(now)
        return held

    def _change(self) -> trio.Event:
        if self._changed is None:
            self._changed = trio.Event()
        return self._changed

    def _speed_up(self, held: Held[T], now: float) -> None:
        """Let the next hits skip the decision, for as long as it cannot come out differently."""
        if self._clock.wall_based:
            self._fast_value = held.value
            self._fast_until = inf
            self._fast_thread = self._thread

    def _slow_down(self) -> None:
        self._fast_thread = 0
        self._fast_value = None

    def _disowned(self) -> None:
        self._thread = self._fast_thread = 0

    def _closed(self) -> None:
        self._slow_down()
        self._held = None
        self._flight = self._awaited = None
        if self._changed is not None:
            self._changed.set()


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

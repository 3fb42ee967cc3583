"""How one resource decides: serve, wait, fetch, or refuse; and what it does with what arrives.

Invariants:

* What is held is replaced by a better one or forgotten by ``clear()``, never spoilt by a failure.
* Deciding is one step: the state is read, the clock is read, and the claim is made, without a checkpoint in between.
  After every wait the decision is made again (:meth:`Deciding._obtain`).
* Under a clock that goes by the wall clock, ``_fast_value`` may be handed out without a look at anything else in the
  thread ``_fast_thread`` while the wall clock is before ``_fast_until``. Whatever makes a value less good sets
  ``_fast_thread`` to 0 first: no thread, and no look at the wall clock.
* The provider is this class with another notion of good (:meth:`_serve`), leave to fetch (:meth:`_admit`) and
  consolation (:meth:`_console`).
"""

from __future__ import annotations

import enum
from math import inf
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import trio
from trio.lowlevel import checkpoint, checkpoint_if_cancelled, enable_ki_protection

from ._errors import FetchTimeout, MintedTokenAlreadyExpired
from ._events import Cleared, FetchFailed, FetchStarted, FetchSucceeded, StorageFailed
from ._flight import Flight
from ._held import Held
from ._owner import Owner
from ._redact import describe_error, secret_texts
from ._stash import Stash
from ._user import call_user, check_async_function
from ._values import Lease, check_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Literal

    from ._events import Event, Reason
    from .abc import Storage

__all__ = ("AGAIN", "Again", "Deciding")

T = TypeVar("T")


class Again(enum.Enum):
    """Says that a decision has to be made anew."""

    AGAIN = enum.auto()


AGAIN: Final = Again.AGAIN


def _same(held: object, stale: object) -> bool:
    """Whether two values are one: by identity, then by type and equality (1 is not True)."""
    return held is stale or (type(held) is type(stale) and bool(held == stale))


class Deciding(Generic[T]):
    """What a resource is, without what its users call."""

    __slots__ = (
        "__weakref__",
        "_after_claim",
        "_awaited",
        "_cancel_when_left",
        "_changed",
        "_clock",
        "_counts_uses",
        "_fast_thread",
        "_fast_until",
        "_fast_value",
        "_fetch",
        "_fetch_timeout",
        "_flight",
        "_generation",
        "_held",
        "_last_error",
        "_owner",
        "_stash",
        "_thread",
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
        self._fetch_timeout: float = (
            inf if fetch_timeout is None else check_seconds("fetch_timeout", fetch_timeout, above=True, allow_inf=True)
        )
        self._cancel_when_left: bool = when_abandoned == "cancel"
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
            self._stash = Stash(owner, storage, self._fetch_timeout, self._storage_failed)
        owner.on_closing(self._closed)
        owner.on_disowned(self._disowned)

    def __repr__(self) -> str:
        name = "" if self._owner.name is None else f" {self._owner.name!r}"
        return f"<{type(self).__name__}{name}{' (closed)' if self._owner.closed else ''}>"

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

    @enable_ki_protection
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
                    return self._consoled(
                        FetchTimeout(f"an earlier fetch did not end within {self._fetch_timeout:g} s")
                    )
                continue
            waited = True
            await flight.wait()
            outcome = self._outcome(flight)
            if outcome is not AGAIN:
                return outcome
            spoilt = self._spoilt(flight, spoilt)

    def _outcome(self, flight: Flight[T, Held[T]]) -> Held[T] | Again | None:
        """What a flight that has settled means to somebody who needs the value; AGAIN: decide again."""
        if self._owner.closed:
            self._owner.refuse()
        now = self._clock.now()
        held = flight.held
        if flight.error is not None:
            if self._asks_again(flight):
                return AGAIN
            held = None if flight.fenced else self._console(now, permanent=flight.permanent)
            if held is None:
                flight.raise_error()
            return held
        if not flight.answered:
            return AGAIN
        if held is None:
            return None if flight.fenced else self._console(now)
        if not self._still_usable(held, now):
            return AGAIN
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
                    raise FetchTimeout(f"an earlier fetch did not end within {self._fetch_timeout:g} s")
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

    def _flight_starts(self, flight: Flight[T, Held[T]]) -> None:
        """See :class:`~trio_renew._flight.Home`; so for the next ones."""
        flight.issued_at = self._clock.now()
        self._owner.tell(FetchStarted(flight.reason, name=self._owner.name))

    def _flight_fetch(self, flight: Flight[T, Held[T]]) -> Awaitable[T | None]:
        return call_user("fetch", self._fetch)

    def _flight_accept(self, flight: Flight[T, Held[T]], value: T) -> Held[T]:
        self._reanchor()
        return Held(value, min(flight.issued_at, self._clock.now()))

    def _reanchor(self) -> None:
        """A fresh value has arrived: the clock may say something else from here on, also of what is held."""
        self._clock.reanchor()
        self._slow_down()

    async def _flight_keep(self, flight: Flight[T, Held[T]], held: Held[T]) -> None:
        if self._stash is not None and not flight.fenced:
            await self._stash.write(held.value, lambda: not flight.fenced)

    def _flight_succeeded(self, flight: Flight[T, Held[T]], held: Held[T] | None) -> None:
        self._owner.tell(self._succeeded(flight, held))

    def _flight_failed(self, flight: Flight[T, Held[T]], error: BaseException) -> None:
        self._note_failure(flight, error)
        self._owner.tell(FetchFailed(flight.reason, flight.duration, error, None, None, name=self._owner.name))

    def _flight_release(self, flight: Flight[T, Held[T]]) -> None:
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
        settled = self._drop()
        self._owner.tell(Cleared(self._generation, name=self._owner.name))
        return settled

    def _drop(self) -> trio.Event | None:
        """Do what there is to do for :meth:`_forget`, all of it, before anybody is told."""
        self._slow_down()
        self._generation += 1
        self._held = None
        if self._flight is not None:
            self._flight.fence()
            self._flight = self._awaited = None
        return None if self._stash is None else self._stash.clear()

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

"""What one resource keeps: the value that is held, what a flight makes of what arrives, and how all of it is forgotten.

Invariants:

* What is held is replaced by a better one or forgotten by ``clear()``, never spoilt by a failure.
* Under a clock that goes by the wall clock, ``_fast_value`` may be handed out without a look at anything else in the
  thread ``_fast_thread`` while the wall clock is before ``_fast_until``. Whatever makes a value less good sets
  ``_fast_thread`` to 0 first: no thread, and no look at the wall clock.
* Observers are told when all is done, so that one who is interrupted interrupts nothing.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from ._events import Cleared, FetchFailed, FetchStarted, FetchSucceeded, StorageFailed
from ._held import Held
from ._owner import Owner
from ._redact import describe_error, secret_texts
from ._stash import Stash
from ._user import call_user, check_async_function
from ._values import check_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Literal

    from ._events import Event
    from ._flight import Flight
    from .abc import Storage

__all__ = ("Keeping",)

T = TypeVar("T")


class Keeping(Generic[T]):
    """What a resource is as the home of its flights; how it decides comes on top."""

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

    def _used(self, now: float) -> None:
        """Somebody wants the value."""

    # What the flight asks (Home)

    def _flight_starts(self, flight: Flight[T, Held[T]]) -> None:
        """See :class:`~trio_renew._flight.Home`; so for the next ones."""
        # A clock that cannot be read now is asked again when the value arrives: the start is told in any case.
        flight.issued_at = self._clock.last()
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

    async def _flight_keep(self, flight: Flight[T, Held[T]], held: Held[T]) -> None:  # noqa: ASYNC910 - without storage
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
            now = self._clock.last()
            held.bring_back(now)  # while it was written, the clock may have gone back
            remaining = held.remaining(now)
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

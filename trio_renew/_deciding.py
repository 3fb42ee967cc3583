"""How one resource decides: serve, wait, fetch, or refuse.

Invariants:

* Deciding is one step: the state is read, the clock is read, and the claim is made, without a checkpoint in between.
  After every wait the decision is made again (:meth:`Deciding._obtain`).
* What is held, and what becomes of what arrives, is in ``_keeping.py``.
* The provider is this class with another notion of good (:meth:`_serve`), leave to fetch (:meth:`_admit`) and
  consolation (:meth:`_console`).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
from trio.lowlevel import checkpoint, checkpoint_if_cancelled, enable_ki_protection

from ._errors import FetchTimeout, MintedTokenAlreadyExpired
from ._flight import Flight
from ._keeping import Keeping
from ._values import Lease

if TYPE_CHECKING:
    from ._events import Reason
    from ._held import Held

__all__ = ("AGAIN", "Again", "Deciding")

T = TypeVar("T")


class Again(enum.Enum):
    """Says that a decision has to be made anew."""

    AGAIN = enum.auto()


AGAIN: Final = Again.AGAIN


def _same(held: object, stale: object) -> bool:
    """Whether two values are one: by identity, then by type and equality (1 is not True)."""
    return held is stale or (type(held) is type(stale) and bool(held == stale))


class Deciding(Keeping[T]):
    """What a resource is, without what its users call."""

    __slots__ = ()

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
    async def _obtain(self, reason: Reason | None = None, *, waited: bool = False) -> Held[T] | None:
        """Get a good value, by whatever it takes; None: the fetch had none.

        Its one checkpoint comes before the decision where the value is there, and is the waiting where it is not; who
        has ``waited`` already has made it.
        """
        spoilt = False
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
                return held  # noqa: ASYNC910 - the checkpoint was made above
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
                        return self._consoled(refusal)  # noqa: ASYNC910 - as above
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
                        return rejected  # noqa: ASYNC910 - whoever calls it makes the checkpoint
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
        return flight  # noqa: ASYNC910 - whoever calls it makes the checkpoint

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

"""The window between claim and runner, held open.

Invariant: a claim is in ``_parked`` from the moment it is counted until it is let go or cancelled; nothing stays in it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final, final

import trio

from ._arguments import check_number

__all__ = ("Handoff", "all_claims")


@final
class _AllClaims:
    __slots__ = ()

    def __contains__(self, number: object, /) -> bool:
        return True

    def __repr__(self) -> str:
        return "all_claims"


#: For `Handoff`: park every claim.
all_claims: Final = _AllClaims()


def _is_collection(given: object) -> bool:
    return isinstance(given, (Container, Iterable))


class Handoff:
    """An ``after_claim`` hook that parks who has claimed a flight, before the fetch starts.

    Hand it to ``trio_renew.lowlevel.open_provider_with(handoff, mint)`` and its siblings. A claim that is not held
    passes without a checkpoint, as in production. A parked one can be cancelled like any wait.

    Args:
      hold: The numbers of the claims to park, counted from 1 (anything that has ``in``); default: all of them.

    Attributes:
      claims: How many claims have come so far.

    Example::

        handoff = Handoff()
        async with lowlevel.open_resource_with(handoff, fetch) as resource, trio.open_nursery() as nursery:
            nursery.start_soon(resource.get)
            await handoff.reached()
            assert resource.status().fetching and fetch.calls == 0
            handoff.release()
    """

    def __init__(self, hold: Container[int] | Iterable[int] = all_claims) -> None:
        if not _is_collection(hold):
            raise TypeError(f"Handoff(hold=...): the numbers of the claims to park, such as {{2}}, not {hold!r}")
        self._hold: Container[int] = hold if isinstance(hold, Container) else frozenset(hold)
        self._parked: dict[int, trio.Event] = {}
        self._arrivals = trio.lowlevel.ParkingLot()
        self.claims: int = 0

    def __repr__(self) -> str:
        return f"<Handoff: {self.claims} claims, parked {list(self._parked)}>"

    async def __call__(self) -> None:
        """Count a claim, and park it if it is to be held."""
        self.claims += 1
        number = self.claims
        self._arrivals.unpark_all()
        if number not in self._hold:
            return  # noqa: ASYNC910 - the window has no checkpoint of its own
        event = self._parked[number] = trio.Event()
        try:
            await event.wait()
        finally:
            self._parked.pop(number, None)

    async def reached(self, n: int = 1) -> None:  # noqa: ASYNC910 - one of the two is
        """Wait until the n-th claim is in the window (or has been there). A checkpoint, also if it is.

        Args:
          n: Which claim, counted from 1.

        Raises:
          ValueError: `n` is below 1.
          TypeError: It is no whole number.
        """
        check_number("reached(n)", n, 1)
        if self.claims >= n:
            await trio.lowlevel.checkpoint()
        while self.claims < n:
            await self._arrivals.park()

    def release(self) -> None:
        """Let go who is parked now. Later claims park again."""
        for event in self._parked.values():
            event.set()
        self._parked.clear()

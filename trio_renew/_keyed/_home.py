"""A key, as a flight sees it: made for the flight, and gone with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .._events import FetchStarted

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from .._owner import Owner
    from ._rings import AnyFlight

__all__ = ("Home", "Keeper")


class Keeper(Protocol):
    """What a home asks of its cache or pool; see :class:`~trio_renew._flight.Home` for what it is asked itself."""

    _owner: Owner
    _cancel_when_left: bool
    _fetch_timeout: float

    async def _fetch(self, flight: AnyFlight, key: Any, /) -> Any:
        """Ask the source."""

    def _accept(self, flight: AnyFlight, key: Any, value: Any, /) -> None:
        """Prepare what arrived for being kept; what it raises makes this a failed fetch."""

    def _succeeded(self, flight: AnyFlight, key: Any, held: Any, /) -> None:
        """Commit and tell."""

    def _failed(self, flight: AnyFlight, key: Any, error: BaseException, /) -> None:
        """Commit and tell."""

    def _released(self, flight: AnyFlight, key: Any, /) -> None:
        """The flight is over."""


class Home:
    """One key of a cache or pool, for one flight."""

    __slots__ = ("_cancel_when_left", "_fetch_timeout", "_key", "member")

    def __init__(self, member: Keeper, key: Any) -> None:
        self.member = member
        self._key = key
        self._fetch_timeout = member._fetch_timeout
        self._cancel_when_left = member._cancel_when_left

    def __repr__(self) -> str:
        return repr(self.member)

    def _flight_starts(self, flight: AnyFlight) -> None:
        owner = self.member._owner
        if owner.observe is not None:
            owner.tell(FetchStarted(flight.reason, name=owner.name, key=self._key))

    def _flight_fetch(self, flight: AnyFlight) -> Awaitable[Any]:
        return self.member._fetch(flight, self._key)

    def _flight_accept(self, flight: AnyFlight, value: Any) -> Any:
        self.member._accept(flight, self._key, value)
        return value

    async def _flight_keep(self, flight: AnyFlight, held: Any) -> None:
        pass

    def _flight_succeeded(self, flight: AnyFlight, held: Any) -> None:
        self.member._succeeded(flight, self._key, held)

    def _flight_failed(self, flight: AnyFlight, error: BaseException) -> None:
        self.member._failed(flight, self._key, error)

    def _flight_release(self, flight: AnyFlight) -> None:
        self.member._released(flight, self._key)

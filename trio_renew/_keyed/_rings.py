"""Who waits for whom, over all caches and pools: a wait that would close a ring is refused.

Invariants:

* A flight waits on another when a task inside its fetch (or a child task of it) does. Only waits that are going on are
  recorded; a flight that is over waits for nobody.
* A wait is checked and recorded in one step, so of two that would close a ring together the second is refused.
* A task that is inside no flight can close no ring and records nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from .._errors import ReentrantFetchError
from .._flight import Flight, State, current_flights

if TYPE_CHECKING:
    from collections.abc import Hashable

    from ._member import Member

__all__ = ("AnyFlight", "Inside", "Wait", "inside", "refuse_own")

AnyFlight: TypeAlias = Flight[Any, Any]
#: The flights inside of which a task runs, outermost first.
Inside: TypeAlias = tuple[AnyFlight, ...]

# Several runs, in several threads, may use it at once: their flights differ, and each step is a single one.
_waits: dict[AnyFlight, dict[AnyFlight, int]] = {}


def inside() -> Inside:
    """The flights inside of which the current task runs, and which are not over."""
    marks = current_flights()
    if not marks:
        return ()
    flights = (mark() for mark in marks)
    return tuple(flight for flight in flights if flight is not None and flight.state is not State.DONE)


def _reaches(flight: AnyFlight, goals: Inside) -> bool:
    seen = {flight}
    stack = [flight]
    while stack:
        flight = stack.pop()
        if flight in goals:
            return True
        new = _waits.get(flight, {}).keys() - seen
        seen |= new
        stack += new
    return False


def refuse_own(member: Member[Any], key: Hashable, flights: Inside) -> None:
    """Refuse to wait for what is being fetched right here.

    Raises:
      ReentrantFetchError: The task is inside a fetch of this very key.
    """
    for flight in flights:
        if flight.home is member and flight.key == key:
            raise ReentrantFetchError(
                f"{key!r} was asked of {member!r} from inside the fetch of that very key: it would wait for itself"
            )


class Wait:
    """Let a task that is inside ``flights`` wait on ``target``; a context manager.

    Raises:
      ReentrantFetchError: On entering; ``target`` waits, directly or not, on one of them.
    """

    __slots__ = ("_flights", "_target")

    def __init__(self, flights: Inside, target: AnyFlight) -> None:
        self._flights = flights
        self._target = target

    def __enter__(self) -> None:
        target = self._target
        if self._flights and _reaches(target, self._flights):
            what = f"{target.key!r} of {target.home!r}"
            raise ReentrantFetchError(f"a ring: {what} waits for what asks for it, directly or not")
        for flight in self._flights:
            waits = _waits.setdefault(flight, {})
            waits[target] = waits.get(target, 0) + 1

    def __exit__(self, *_: object) -> None:
        target = self._target
        for flight in self._flights:
            waits = _waits[flight]
            waits[target] -= 1
            if not waits[target]:
                del waits[target]
                if not waits:
                    del _waits[flight]

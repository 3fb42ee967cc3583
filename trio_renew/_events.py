"""What observers are told.

Invariants:

* An observer is called synchronously, after the state that the event speaks of has been committed.
* Each :class:`FetchStarted` is followed by exactly one :class:`FetchSucceeded`, :class:`FetchFailed` or
  :class:`FetchAbandoned` of that fetch. :class:`OwnerClosed` is the last event of an owner.
* An observer that raises is logged and changes nothing. No event carries a value.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from ._policy.breaker import Closed, HalfOpen, Open

__all__ = (
    "BreakerChanged",
    "Cleared",
    "Event",
    "FetchAbandoned",
    "FetchFailed",
    "FetchStarted",
    "FetchSucceeded",
    "OwnerClosed",
    "Reason",
    "ServedExpired",
    "StorageFailed",
    "emit",
    "logger",
)

logger = logging.getLogger("trio_renew")

#: Why a fetch was started: at opening, nothing held, due for renewal, past its deadline, asked for by ``refresh``.
Reason: TypeAlias = Literal["initial", "absent", "aging", "expired", "forced"]


@attrs.frozen(kw_only=True)
class _Origin:
    name: str | None = None
    key: Hashable = None


@attrs.frozen
class FetchStarted(_Origin):
    """A fetch starts now.

    Attributes:
      reason: Why.
      name: The owner's name.
      key: The key, in keyed caches and pools; None elsewhere.
    """

    reason: Reason


@attrs.frozen
class FetchSucceeded(_Origin):
    """A fetch has completed: with a value, or with None ("no value").

    Attributes:
      reason: Why it was started.
      duration: Seconds from its start to its end, on Trio's clock.
      remaining: Seconds of life of the new value, never negative; None for no expiry or no value.
      generation: The generation of the new value; the unchanged one where nothing was kept.
      name: The owner's name.
      key: The key, in keyed caches and pools; None elsewhere.
    """

    reason: Reason
    duration: float
    remaining: float | None
    generation: int


@attrs.frozen
class FetchFailed(_Origin):
    """A fetch has failed: it raised, ran out of time, or brought a value that cannot be used.

    Attributes:
      reason: Why it was started.
      duration: Seconds from its start to its failure, on Trio's clock.
      error: The fetch's own exception, as it is.
      remaining: Seconds of life of the value still held, never negative; None for no expiry or nothing held.
      next_attempt_at: When a background refresh may be tried again, in POSIX seconds; None: at once.
      name: The owner's name.
      key: The key, in keyed caches and pools; None elsewhere.
    """

    reason: Reason
    duration: float
    error: BaseException
    remaining: float | None
    next_attempt_at: float | None


@attrs.frozen
class FetchAbandoned(_Origin):
    """A fetch ended without an outcome: it was cancelled, refused by a budget, or its owner closed.

    Attributes:
      reason: Why it was started.
      name: The owner's name.
      key: The key, in keyed caches and pools; None elsewhere.
    """

    reason: Reason


@attrs.frozen
class BreakerChanged(_Origin):
    """The breaker moved between closed, open and half-open. Counting up inside closed is no change.

    Attributes:
      old: The state before.
      new: The state now.
      name: The owner's name.
      key: The key, in keyed caches and pools; None elsewhere.
    """

    old: Closed | Open | HalfOpen
    new: Closed | Open | HalfOpen


@attrs.frozen
class ServedExpired(_Origin):
    """A value was handed out past the point where it counts as good, because nothing better could be had.

    Attributes:
      age: Seconds since its expiry; 0 while it is only inside its leeway.
      name: The owner's name.
      key: The key, in keyed caches and pools; None elsewhere.
    """

    age: float


@attrs.frozen
class StorageFailed(_Origin):
    """A storage, a store or a bus failed. The resource goes on without it.

    Attributes:
      operation: What was tried: ``"get"``, ``"set"``, ``"clear"``, a store's method, or ``"bus"``.
      error: What it raised.
      name: The owner's name.
      key: The key, in keyed caches and pools; None elsewhere.
    """

    operation: str
    error: BaseException


@attrs.frozen
class Cleared(_Origin):
    """What was held has been forgotten on request.

    Attributes:
      generation: The generation from here on.
      name: The owner's name.
      key: The key that was dropped; None where all of it was.
    """

    generation: int


@attrs.frozen
class OwnerClosed(_Origin):
    """The owner has closed and all its tasks have ended. Nothing follows.

    Attributes:
      name: The owner's name.
      key: None.
    """


Event: TypeAlias = (
    FetchStarted
    | FetchSucceeded
    | FetchFailed
    | FetchAbandoned
    | BreakerChanged
    | ServedExpired
    | StorageFailed
    | Cleared
    | OwnerClosed
)


@trio.lowlevel.disable_ki_protection
def _tell(observe: Callable[[Event], None], event: Event) -> None:
    observe(event)


def _on_the_way(interrupt: BaseException) -> bool:
    """Whether an interrupt struck between us and the observer, who then must not miss an event for it."""
    traceback = interrupt.__traceback__
    while traceback is not None and traceback.tb_frame.f_code is not _tell.__code__:
        traceback = traceback.tb_next
    inner = traceback and traceback.tb_next
    # The only frame below ours is then that of the signal handler.
    return inner is None or str(inner.tb_frame.f_globals.get("__name__")).partition(".")[0] in ("trio", "trio_renew")


def emit(observe: Callable[[Event], None] | None, *events: Event) -> None:
    """Tell an observer, isolated from it: an Exception is logged.

    What is not an Exception (a KeyboardInterrupt in the observer) is raised after all the events were told, so call
    this with the state in order.
    """
    if observe is None:
        return
    interrupt: BaseException | None = None
    for event in events:
        try:
            _tell(observe, event)
        except Exception:
            logger.exception("an observer raised at %s of %r", type(event).__name__, event.name)
        except BaseException as exc:  # noqa: ASYNC103 - it is raised below
            interrupt = exc
            if _on_the_way(exc):
                observe(event)
    if interrupt is not None:
        try:
            raise interrupt
        finally:
            del interrupt

"""Who is reached by an invalidation: every open cache and pool of the process, from wherever it is called.

Invariants:

* A member is in the roster from when it opens until it closes; it puts itself in and takes itself out.
* All members forget before the first of them publishes or tells: one that hears of it through another has nothing left
  to count.
* A signal handler, or a finalizer, may come in the middle of any step of Trio's or ours. What is called from there is
  left for the next step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import RLock
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from trio.lowlevel import currently_ki_protected, enable_ki_protection

from .._raising import call_all

__all__ = ("Message", "News", "What", "clear_provider_caches", "invalidate_provider", "roster")

What: TypeAlias = Literal["key", "tag", "all"]


class Message(NamedTuple):
    """What is to be forgotten, and whether others are to hear of it."""

    what: What
    key: Any
    publish: bool


#: What is still to be said of what has been forgotten.
News: TypeAlias = Callable[[], None]


class Reachable(Protocol):
    """What the roster asks of its members."""

    def _take_up(self, message: Message, news: list[News], *, at_rest: bool) -> int:
        """Forget something, from any thread, and add what is to be said of it; how much was, or will be, dropped."""
        ...


class Roster:
    """The open members of this process.

    Attributes:
      lock: Held while members or an inbox change, or are counted. One who is interrupted by a signal's handler while
        holding it may be asked again by that handler.
      members: By identity.
    """

    __slots__ = ("lock", "members")

    def __init__(self) -> None:
        self.lock = RLock()
        self.members: dict[int, Reachable] = {}

    def add(self, member: Reachable) -> None:
        """Let a member be reached."""
        with self.lock:
            self.members[id(member)] = member

    def remove(self, member: Reachable) -> None:
        """Let it not be reached any more; fine when it never was."""
        with self.lock:
            self.members.pop(id(member), None)

    def begin_anew(self) -> None:
        """Have no members: the parent's runs do not go on in a forked child, and waking them would disturb it."""
        self.lock = RLock()
        self.members.clear()


roster = Roster()
# Where there is no fork, there is nothing to do after one.
getattr(os, "register_at_fork", dict)(after_in_child=roster.begin_anew)


@enable_ki_protection
def _invalidate_everywhere(message: Message, *, at_rest: bool) -> int:
    with roster.lock:
        members = list(roster.members.values())
    news: list[News] = []
    # A sibling that hears of it on the bus has nothing left to count: first all forget, then the first one publishes.
    count = sum([member._take_up(message, news, at_rest=at_rest) for member in members])
    # What the others are to hear has happened, also when an observer is interrupted.
    call_all(news)
    return count


def invalidate_provider(key: object) -> bool:
    """Drop a key in every open cache and pool of this process, whichever thread runs it.

    May be called from any thread, inside of Trio and outside, also by a signal handler; never a checkpoint. What runs
    in the caller's own Trio run has dropped it on return. Any other serves nothing of it from its next use on, and
    drops it at its run's next step; so does everything where a signal handler interrupts Trio or this library at work.
    A resolution or opening in progress answers those who wait for it, and is not kept. Caches with a bus pass it
    on to the other processes; those without one learn nothing from it: there the TTL is what bounds staleness.

    Returns:
      Whether a live entry, or a resolution in progress, was affected anywhere.

    Raises:
      TypeError: The key is not hashable.

    Example::

        def tenant_disabled(tenant_id: str) -> None:
            invalidate_provider(tenant_id)
    """
    hash(key)
    return _invalidate_everywhere(Message("key", key, True), at_rest=_at_rest()) > 0


def clear_provider_caches() -> int:
    """Empty every open cache and pool of this process, whichever thread runs it; like :func:`invalidate_provider`.

    Returns:
      How many live entries that were, over all of them.
    """
    return _invalidate_everywhere(Message("all", None, True), at_rest=_at_rest())


def _at_rest() -> bool:
    """Whether no step of Trio's or ours is under way; asked by what may be called from a signal handler.

    The same lines are protected from a KeyboardInterrupt, for the same reason.
    """
    return not currently_ki_protected()

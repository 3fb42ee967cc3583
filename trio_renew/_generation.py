"""The mark in the store that says since which ``clear()`` a value was fetched.

Invariants:

* It is one key of the cache store. Every ``clear()`` puts a new mark there, which nobody has had before; a store
  without one is in its first generation.
* A mark that has moved makes the provider forget what it holds, and so does one that the store has lost.
* Until the store has the mark that our own ``clear()`` began, nothing is read from it: each look tries again first.
  Where putting it there is interrupted, that is done once more before the owner ends.
* What a look has read counts only if nobody here has learnt better while it was reading.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from ._ask import StoreDown, half_the_time
from ._errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._ask import Ask
    from ._owner import Owner
    from .abc import CacheStore

__all__ = ("Generation",)

F = TypeVar("F")  # a flight

# The generation of a store without a mark.
_FIRST = "first"
_MARK = "generation"


class Generation(Generic[F]):
    """The generation of a store, as one provider knows it.

    Args:
      owner: Whose nursery runs what nobody waits for.
      cache: The store.
      prefix: The key of the share.
      moved: Makes the provider forget, as by ``clear()``, but for a flight that goes on.
      ask: Calls the store.
    """

    __slots__ = (
        "_ask",
        "_cache",
        "_epoch",
        "_failures",
        "_known",
        "_looking",
        "_moved",
        "_owner",
        "_prefix",
        "_putting",
        "_seen",
        "_unput",
    )

    def __init__(
        self,
        owner: Owner,
        cache: CacheStore[Any],
        prefix: str,
        moved: Callable[[F | None], object],
        ask: Ask,
    ) -> None:
        self._owner = owner
        self._cache = cache
        self._prefix = prefix
        self._moved = moved
        self._ask = ask
        #: What the values here belong to; None: not known yet. A new epoch begins with each change of it.
        self._known: str | None = None
        self._epoch = 0
        #: What the store was last seen to have; None: never seen.
        self._seen: str | None = None
        #: What our clear() began and the store does not have yet.
        self._unput: str | None = None
        self._putting = trio.Lock()
        self._failures = 0
        self._looking = False

    @property
    def known(self) -> bool:
        """Whether a change would be noticed."""
        return self._known is not None

    def key(self, generation: str) -> str:
        """Give the key under which records and jobs of a generation stand."""
        return f"{self._prefix}:{generation}"

    def clear(self, after: trio.Event | None) -> trio.Event:
        """Begin a new generation, whoever waits for it; the event is set when the store has it, and ``after`` is."""
        self._known = self._unput = os.urandom(16).hex()
        self._epoch += 1
        done = trio.Event()
        self._owner.on_closing(done.set)
        self._owner.start(lambda: self._run_clear(done, after), "share clear")
        return done

    async def _run_clear(self, done: trio.Event, after: trio.Event | None) -> None:
        with trio.CancelScope(shield=True):
            try:
                await self._insist()
                if after is not None:
                    await after.wait()
            finally:
                self._owner.not_closing(done.set)
                done.set()

    async def _insist(self) -> None:  # noqa: ASYNC910 - it waits only where there is something to wait for
        try:
            await self._put()
        except StoreDown:
            pass  # the next look tries again
        except KeyboardInterrupt:
            # It may have struck before the store was reached.
            with suppress(StoreDown):
                await self._put()  # noqa: ASYNC120 - it is shielded
            raise

    def look_soon(self) -> None:
        """Look at the generation in the background, so that a ``clear()`` elsewhere is noticed here."""
        if self._looking:
            return
        self._looking = True
        scope = trio.CancelScope(shield=True)
        self._owner.on_closing(scope.cancel)
        self._owner.start(lambda: self._run_look(scope), "share look")

    async def _run_look(self, scope: trio.CancelScope) -> None:  # noqa: ASYNC910 - a task's own work
        try:
            with scope:
                await self.look(None)
        except StoreDown:
            pass
        finally:
            self._looking = False
            self._owner.not_closing(scope.cancel)

    async def look(self, sparing: F | None) -> str:
        """Read the generation; where it has moved, forget what belongs to the old one."""
        while True:
            await self._put()
            epoch = self._epoch
            generation = await self._generation()
            # Somebody here has learnt better meanwhile: what was read may be older.
            if epoch == self._epoch:
                break
        known, self._known = self._known, generation
        self._seen = generation
        if known != generation:
            self._epoch += 1
            if known is not None:
                self._moved(sparing)
        return generation

    async def _generation(self) -> str:
        found = await self._ask(self._cache, "get", self.key(_MARK))
        return _FIRST if found is None else str(found)

    async def _put(self) -> None:
        """Let the store know the generation that our clear() began."""
        failures = self._failures
        with trio.move_on_after(half_the_time()) as waiting:
            await self._putting.acquire()
        if waiting.cancelled_caught:
            self._ask.report("set", StoreError("set() of the mark that clear() has begun has not ended yet"))
            raise StoreDown
        try:
            while self._unput is not None:
                if self._failures != failures:
                    raise StoreDown  # who waited here need not try again
                wanted, cache = self._unput, self._cache
                try:
                    old = await self._generation() if self._seen is None else self._seen
                    await self._ask(cache, "set", self.key(_MARK), wanted, 0.0)
                except StoreDown:
                    self._failures += 1
                    raise
                self._seen = wanted
                if self._unput == wanted:
                    self._unput = None
                try:
                    # Nobody reads it any more; a value that never ends would stay for ever.
                    await self._ask(cache, "delete", self.key(old))
                except StoreDown:
                    pass
        finally:
            self._putting.release()

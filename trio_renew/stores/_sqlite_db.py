"""One SQLite connection and its worker: who may use it when, what happens when it is locked, and its end.

Invariants:

* The connection is used by one thread at a time: the worker of the moment, or Trio's own thread under a test clock,
  where a thread would be invisible to an autojump clock.
* One piece of work is one hop and at most one transaction: what raises is rolled back, and a hop is never abandoned.
  So a cancelled call has happened wholly or not at all.
* Waiting for another process's lock is asynchronous but for a short moment per try, cancellable, and bounded.
* Nothing is opened before the first use. What breaks the connection drops it; the next use opens it again.
* ``sqlite3`` is known here and in the schema only.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Callable
from sqlite3 import Connection as Connection
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from .._clock import under_test_clock, wall_now
from .._errors import StoreError
from ._sqlite_schema import MEMORY, connect

if TYPE_CHECKING:
    from .._owner import Owner

__all__ = ("CLEANING", "PATIENCE", "Connection", "Database", "Look", "check_path")

X = TypeVar("X")

#: Reads the clock: the instant to date with, and the instant to compare deadlines with.
Look: TypeAlias = Callable[[], tuple[float, float]]
#: Removes what is over, or some of it; gives how many things, and the next instant at which something will be over.
Cleaner: TypeAlias = Callable[[Connection, Look], tuple[int, float | None]]

#: Seconds for which a call waits for other processes' locks.
PATIENCE = 5.0
#: Seconds after which what is over is removed without being touched.
CLEANING = 60.0
# Seconds that one try waits for a lock: in the worker, and in Trio's own thread.
_BUSY, _BUSY_HERE = 0.05, 0.005
# Seconds between two looks whether the path still names the file that is open.
_CHECKED_EVERY = 0.05
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05

_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
# After these the connection is as good as before.
_HARMLESS = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR}


class _LockedError(Exception):
    """Another process holds the lock: nothing has happened, and trying again will help."""


def check_path(path: Any) -> str:
    """Take the path of a file, absolute from here on."""
    as_path: Callable[[], Any] = getattr(path, "__fspath__", lambda: path)
    text = as_path()
    if not isinstance(text, str):
        raise TypeError(f"path must be a str or a path of str, not {path!r}")
    if not text or "\0" in text:
        raise ValueError(f"path must name a file, not {path!r}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"path must be what a file can be called, not {path!r}") from None
    return text if text == MEMORY else os.path.abspath(text)


def reading(now: float) -> tuple[float, float]:
    """Give an instant, and the one to compare deadlines with.

    Sums of instants and durations are off by a unit in the last place here and there: who has slept until a deadline
    must not be told that it lies ahead still.
    """
    return now, now + 2 * math.ulp(now)


def _wall_look() -> tuple[float, float]:
    return reading(time.time())


class Database:
    """The file of one owner, and the turn to use it.

    Args:
      owner: Whose tasks keep it clean, and whose end it shares.
      path: From :func:`check_path`.
      clock: The user's clock, or None.
    """

    __slots__ = (
        "_checked",
        "_cleaners",
        "_clock",
        "_connection",
        "_file",
        "_free",
        "_inline",
        "_scope",
        "_turn",
        "_used",
        "owner",
        "path",
    )

    def __init__(self, owner: Owner, path: str, clock: Callable[[], float] | None = None) -> None:
        self.owner: Owner = owner
        self.path: str = path
        self._inline = under_test_clock()
        # The wall clock is read in the worker, with the write lock held; any other clock in its own thread.
        self._clock = wall_now if clock is None and self._inline else clock
        self._connection: Connection | None = None
        self._file: tuple[int, int] | None = None
        self._checked = -math.inf
        self._turn = trio.CapacityLimiter(1)
        self._free = trio.CapacityLimiter(1)
        self._used = trio.Event()
        self._cleaners: list[Cleaner] = []
        # Made here: the owner may close before its task has taken its first step.
        self._scope = trio.CancelScope(shield=True)
        owner.on_closing(self._scope.cancel)

    @property
    def inline(self) -> bool:
        """Whether the work is done in Trio's own thread."""
        return self._inline

    # Work

    async def step(self) -> None:
        """Be the checkpoint of a method that has no work for the connection.

        Raises:
          trio.ClosedResourceError: The owner is closed.
        """
        self.owner.check()
        await trio.lowlevel.checkpoint()
        self.owner.check()

    @enable_ki_protection
    async def run(self, work: Callable[[Connection, Look], X], *, is_use: bool = True) -> X:
        """Do one piece of work on the connection.

        A checkpoint. Cancelled, the work has happened wholly or not at all.

        Args:
          work: What to do, in whichever thread.
          is_use: Whether there may be something to clean after it.

        Raises:
          StoreError: It failed, or the file was locked for 5 s.
          trio.ClosedResourceError: The owner is closed, or was before the work's turn came.
        """
        self.owner.check()
        if is_use:
            self._used.set()
        deadline = trio.current_time() + PATIENCE
        pause = _FIRST_PAUSE
        while True:
            try:
                if self._inline:
                    await trio.lowlevel.checkpoint()
                    self.owner.check()
                    return self._attempt(work, self._look())
                if self._turn.available_tokens:
                    # Nobody can take the turn before Trio does.
                    return await trio.to_thread.run_sync(self._attempt, work, self._look(), limiter=self._turn)
                return await self._wait_for_turn(work, deadline)
            except _LockedError as locked:
                if trio.current_time() >= deadline:
                    raise StoreError(f"{self.path} was locked for {PATIENCE:g} s: {locked}") from locked.__cause__
            await trio.sleep(pause)
            self.owner.check()
            pause = min(2 * pause, _LONGEST_PAUSE)

    @enable_ki_protection
    async def _wait_for_turn(self, work: Callable[[Connection, Look], X], deadline: float) -> X:
        me = object()
        with trio.move_on_at(deadline) as waiting:
            await self._turn.acquire_on_behalf_of(me)
        if waiting.cancelled_caught:
            raise StoreError(f"{self.path} was busy with other calls for {PATIENCE:g} s")
        try:
            # The clock is read, and the end is noticed, when the turn has come.
            self.owner.check()
            return await trio.to_thread.run_sync(self._attempt, work, self._look(), limiter=self._free)
        finally:
            self._turn.release_on_behalf_of(me)

    def _look(self) -> Look:
        if self._clock is None:
            return _wall_look
        read = reading(float(self._clock()))
        return lambda: read

    @enable_ki_protection
    def _attempt(self, work: Callable[[Connection, Look], X], look: Look) -> X:
        keep = False
        try:
            if self._connection is None or self._is_replaced():
                self._disconnect()
                self._connection = connect(self.path, _BUSY_HERE if self._inline else _BUSY)
                self._file = self._identity()
            result = work(self._connection, look)
            keep = True
            return result
        except (sqlite3.Error, OSError, StoreError) as exc:
            code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            keep = code in _LOCKED or code in _HARMLESS
            if code in _LOCKED:
                raise _LockedError(str(exc)) from exc
            raise StoreError(f"{self.path} cannot be used: {exc}") from exc
        finally:
            if not keep or (self._connection is not None and self._connection.in_transaction):
                self._roll_back(keep)

    def _roll_back(self, keep: bool) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            keep = False
        if not keep:
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # An open transaction is rolled back; SQLite itself leaves the companions of a file alone that has moved.
            connection.close()

    def _is_replaced(self) -> bool:
        # Somebody may have removed the file, or put another one in its place: what is written to the old one is lost.
        # In the worker it is looked at now and then only: it is the dearest part of a call but for the hop.
        now = time.monotonic()
        if now < self._checked + _CHECKED_EVERY and not self._inline:
            return False
        self._checked = now
        return self._file != self._identity()

    def _identity(self) -> tuple[int, int] | None:
        if self.path == MEMORY:
            return None
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def wal_mark(self) -> tuple[int, int] | None:
        """Look at the write-ahead log: another mark than before means that somebody has written."""
        try:
            found = os.stat(f"{self.path}-wal")
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    # Cleaning and the end

    def on_cleaning(self, cleaner: Cleaner) -> None:
        """Have ``cleaner`` called within a minute of what it has to remove."""
        self._cleaners.append(cleaner)

    async def keep_clean(self) -> None:
        """Remove what is over while the owner lives; asleep while nobody uses the file and nothing ends."""
        with self._scope:
            pause = math.inf
            while True:
                with trio.move_on_after(pause):
                    await self._used.wait()
                self._used = trio.Event()
                await trio.sleep(CLEANING)
                try:
                    while not (pause := await self.run(self._clean, is_use=False)):
                        # There is more that is over than one step removes.
                        pass
                except (StoreError, trio.ClosedResourceError):
                    # Whoever uses the file next is told, or nobody is there any more.
                    pause = math.inf

    def _clean(self, connection: Connection, look: Look) -> float:
        ends = [end for _, end in [cleaner(connection, look) for cleaner in self._cleaners] if end is not None]
        return max(0.0, min(ends) - look()[0]) if ends else math.inf

    @enable_ki_protection
    async def aclose(self) -> None:
        """Close the connection when its last user has left; cannot be cancelled."""
        with trio.CancelScope(shield=True):
            if self._inline:
                self._disconnect()
                return  # noqa: ASYNC910 - without threads there is nothing to wait for
            async with self._turn:
                await trio.to_thread.run_sync(self._disconnect, limiter=self._free)

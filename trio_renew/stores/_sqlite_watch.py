"""Who waits for a job of the SQLite engine, and how they hear of its end.

Invariants:

* Whoever settles a job in this process tells those who wait here at once (:meth:`Watch.tell`). What other processes
  do is seen by one task, which lives while somebody waits: it looks at the write-ahead log every few milliseconds,
  asks for all jobs at once when it has changed, when a lease should have ended, and every 100 ms anyway.
* The mark of the log is taken before the question, and asked about once more at the next looks: the log is written
  a moment before what it says can be read.
* A job leaves ``_waiting`` with its last waiter. Closing wakes everybody.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio

from .._errors import StoreError

if TYPE_CHECKING:
    from ._sqlite_db import Connection, Database, Look

__all__ = ("COMPLETED", "FAILED", "LOST", "PENDING", "Seen", "Watch", "find_jobs", "redate_jobs")

#: What a row can be; LOST is the one that is not there.
PENDING, COMPLETED, FAILED, LOST = range(4)

_FIRST_LOOK, _LONGEST_LOOK = 0.002, 0.008
_ANYWAY = 0.1
# How many more looks ask after one that has seen a change.
_AFTERMATH = 2
# SQLite takes only so many values in one statement.
_AT_ONCE = 500


@attrs.frozen
class Seen:
    """What one look at a job has seen.

    Attributes:
      job_id: Its id; empty for a job that is not there.
      state: PENDING, COMPLETED, FAILED or LOST.
      left: The seconds until its lease ends, while it is pending.
      value: The encoded value of a completed one.
      error: The type's name and the text of a failed one's error.
    """

    job_id: str = ""
    state: int = LOST
    left: float = math.inf
    value: bytes = attrs.field(default=b"", repr=False)
    error: tuple[str, str] = ("", "")


_Answer: TypeAlias = "Seen | StoreError | None"


def redate_jobs(connection: Connection, ns: str, look: Look) -> float:
    """Date now what seems to come from the future; gives the instant to compare deadlines with."""
    now, seen = look()
    names = {"ns": ns, "now": now, "seen": seen}
    future = "FROM renew_jobs WHERE ns = :ns AND dated_at > :seen"
    if connection.execute(f"SELECT EXISTS (SELECT 1 {future})", names).fetchone()[0]:
        connection.execute(
            """UPDATE renew_jobs SET created_at = MIN(created_at, :now), dated_at = :now,
            until = until - (dated_at - :now) WHERE ns = :ns AND dated_at > :seen""",
            names,
        )
    return seen


def find_jobs(connection: Connection, look: Look, where: str, values: tuple[str, ...]) -> list[Seen]:
    """Look at the jobs of a namespace (the first of the values) that meet a condition.

    Those that have lost their owner, and outcomes that are no longer kept, are left out.
    """
    question = f"SELECT job_id, state, dated_at, until, value, error_type, error FROM renew_jobs WHERE {where}"
    rows = connection.execute(question, values).fetchall()
    now, seen = look()
    if any(row[2] > seen for row in rows):
        # A traceback may show the locals of this frame, and a value may be a secret.
        del rows
        redate_jobs(connection, values[0], look)
        rows = connection.execute(question, values).fetchall()
    return [
        Seen(job_id, state, until - now, value, (error_type, error))
        for job_id, state, _, until, value, error_type, error in rows
        if until > seen
    ]


class _Waiting:
    __slots__ = ("answer", "count", "told")

    def __init__(self) -> None:
        self.count = 0
        self.told = trio.Event()
        self.answer: _Answer = None


class Watch:
    """The waiters of one dedupe store."""

    __slots__ = ("_database", "_late", "_ns", "_running", "_scope", "_waiting")

    def __init__(self, database: Database, ns: str) -> None:
        self._database = database
        self._ns = ns
        self._waiting: dict[str, _Waiting] = {}
        self._running = False
        self._scope = trio.CancelScope()
        # Somebody has come since the last question: what happened before that must be asked for.
        self._late = False
        database.owner.on_closing(self._close)

    async def wait(self, job_id: str) -> Seen:
        """Wait until a pending job is not pending any more.

        Raises:
          StoreError: The file cannot be asked.
          trio.ClosedResourceError: The owner was closed meanwhile.
        """
        self._database.owner.check()
        waiting = self._waiting.setdefault(job_id, _Waiting())
        waiting.count += 1
        self._late = True
        if not self._running:
            self._running = True
            self._scope = trio.CancelScope(shield=True)
            self._database.owner.start(self._look_around, "watch")
        try:
            await waiting.told.wait()
        finally:
            waiting.count -= 1
            if not waiting.count and self._waiting.get(job_id) is waiting:
                del self._waiting[job_id]
        answer = waiting.answer
        if isinstance(answer, Seen):
            return answer
        if answer is None:
            self._database.owner.refuse()
        raise StoreError(*answer.args) from answer.__cause__

    def tell(self, job_id: str, answer: _Answer) -> None:
        """Give those who wait for a job here what has become of it."""
        waiting = self._waiting.pop(job_id, None)
        if waiting is not None:
            waiting.answer = answer
            waiting.told.set()

    def waited_for(self) -> list[str]:
        """Give the ids of the jobs that somebody here waits for."""
        return list(self._waiting)

    def _close(self) -> None:
        for job_id in self.waited_for():
            self.tell(job_id, None)
        self._scope.cancel()

    async def _look_around(self) -> None:  # noqa: ASYNC910 - a task's own work
        try:
            with self._scope:
                await self._until_nobody_waits()
        except trio.ClosedResourceError:
            # Closing has told everybody.
            pass
        finally:
            self._running = False

    async def _until_nobody_waits(self) -> None:  # noqa: ASYNC910 - a task's own work
        # Under a test clock, time that is slept away in small steps costs more than the precision is worth.
        longest = _ANYWAY if self._database.inline else _LONGEST_LOOK
        mark, aftermath, pause, due = None, 0, _FIRST_LOOK, -math.inf
        while self._waiting:
            latest = self._database.wal_mark()
            if latest != mark:
                mark, aftermath, pause = latest, _AFTERMATH + 1, _FIRST_LOOK
            if aftermath or self._late or trio.current_time() >= due:
                aftermath = max(0, aftermath - 1)
                self._late = False
                try:
                    left = await self._ask()
                except StoreError as exc:
                    for job_id in self.waited_for():
                        self.tell(job_id, exc)
                    return  # noqa: ASYNC910 - as above
                due = trio.current_time() + min(_ANYWAY, left)
            await trio.sleep(max(0.0, min(pause, due - trio.current_time())))
            pause = min(1.5 * pause, longest)

    async def _ask(self) -> float:
        """Look at all jobs that are waited for; gives the seconds until the first lease of them ends."""
        asked = self.waited_for()

        def work(connection: Connection, look: Look) -> dict[str, Seen]:
            found: dict[str, Seen] = {}
            for start in range(0, len(asked), _AT_ONCE):
                some = asked[start : start + _AT_ONCE]
                where = f"ns = ? AND job_id IN ({', '.join('?' * len(some))})"
                found.update((job.job_id, job) for job in find_jobs(connection, look, where, (self._ns, *some)))
            return found

        found = await self._database.run(work)
        left = math.inf
        for job_id in asked:
            job = found.get(job_id, Seen())
            if job.state == PENDING:
                left = min(left, job.left)
            else:
                self.tell(job_id, job)
        return left

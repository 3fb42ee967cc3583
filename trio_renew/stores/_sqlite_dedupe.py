"""The dedupe store of the SQLite engine: jobs that run once, in whichever process.

Invariants:

* At most one job per key is pending (a unique index says so), and registering is one transaction: a lost job is
  replaced by exactly one of those who come.
* A job leaves "pending" once, by one conditional update of its own row: who has lost it changes nothing.
* Settled, it is found by its id only, and for one lease from then.
* The exceptions that were given to this store object are kept as long as their rows.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import outcome

from .._errors import JobLost, RemoteFetchError, StoreError
from ..abc import Registration
from ._common import (
    DedupeStats,
    JobInfo,
    check_error,
    check_hash,
    check_page,
    check_scope,
    check_text,
    encoded,
    error_type_name,
)
from ._sqlite_schema import immediate, starts_with
from ._sqlite_watch import COMPLETED, FAILED, PENDING, Seen, Watch, find_jobs, redate_jobs

if TYPE_CHECKING:
    from ._common import Options
    from ._sqlite_db import Connection, Database, Look

__all__ = ("SQLiteDedupeStore",)

T = TypeVar("T")

_PENDING = f"ns = ? AND hash = ? AND state = {PENDING}"
_BY_ID = "ns = ? AND hash = ? AND job_id = ?"
_REGISTER = """INSERT INTO renew_jobs (job_id, ns, hash, lease, created_at, dated_at, until)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""
_SETTLE = f"""UPDATE renew_jobs SET state = ?, value = ?, error_type = ?, error = ?, dated_at = ?, until = ? + lease
    WHERE {_BY_ID} AND state = {PENDING} AND until > ?"""
_EXTEND = f"""UPDATE renew_jobs SET dated_at = ?, until = ? + lease
    WHERE {_BY_ID} AND state = {PENDING} AND until > ?"""
_STATUS = {PENDING: "pending", COMPLETED: "completed", FAILED: "failed"}


class SQLiteDedupeStore(Generic[T]):
    """Jobs that run once, whoever asks, in all processes that open the file.

    Belongs to the bundle of :func:`open_sqlite_stores`.

    Attributes:
      lease: The seconds that a job lives without :meth:`extend`.
    """

    __slots__ = ("_codec", "_database", "_errors", "_ns", "_owned", "_total", "_watch", "lease")

    def __init__(self, database: Database, ns: str, options: Options) -> None:
        self._database = database
        self._ns = ns
        self._codec = options.codec
        self.lease: float = options.lease
        self._watch = Watch(database, ns)
        # What this store object came to own by register, and the exceptions that it was given, by job id.
        self._owned: dict[str, str] = {}
        self._errors: dict[str, BaseException] = {}
        self._total = 0
        database.on_cleaning(self.clean)
        database.owner.on_closing(self._errors.clear)

    # ---------------------------------------------------------------------------------------------- the protocol

    async def register(self, hash: str) -> str:
        """Do what :meth:`register_or_join` does, and give the job's id. A checkpoint, and atomic.

        This store object remembers that it came to own the job in this way: then :meth:`complete` and :meth:`fail`
        settle it without an id.
        """
        job = await self.register_or_join(hash)
        if job.is_owner:
            self._owned[hash] = job.job_id
        return job.job_id

    async def register_or_join(self, hash: str) -> Registration:
        """Become the owner of a new job for this key, or join the one in progress. A checkpoint, and atomic."""
        key = (self._ns, check_hash(hash))
        new = os.urandom(16).hex()

        def work(connection: Connection, look: Look) -> str:
            # Who joins needs no lock.
            for job in find_jobs(connection, look, _PENDING, key):
                return job.job_id
            with immediate(connection):
                now, seen = look()
                row = connection.execute(f"SELECT job_id, until FROM renew_jobs WHERE {_PENDING}", key).fetchone()
                if row is not None and row[1] > seen:
                    return cast(str, row[0])
                connection.execute(f"DELETE FROM renew_jobs WHERE {_PENDING}", key)
                connection.execute(_REGISTER, (new, *key, self.lease, now, now, now + self.lease))
            return new

        job_id = await self._database.run(work)
        self._total += job_id == new
        return Registration(job_id, is_owner=job_id == new)

    async def wait_for(self, hash: str, *, job_id: str | None = None) -> T | None:
        """Wait for the job's value; None also when the owner failed or was lost, and when there is no such job."""
        result = await self.wait_outcome(hash, job_id=job_id)
        return result.value if isinstance(result, outcome.Value) else None

    async def wait_outcome(self, hash: str, *, job_id: str | None = None) -> outcome.Outcome[T]:
        """Wait for what became of the job. A checkpoint.

        What is settled in this process is known at once, what is settled in another one within a few milliseconds.

        Args:
          hash: The key.
          job_id: The job that was joined; None: the one in progress now.

        Returns:
          Its value; or an ``Error`` with its error (itself where it was given to this store object, otherwise a
          :class:`~trio_renew.RemoteFetchError`), or with ``JobLost``.

        Raises:
          StoreError: The file cannot be used, or the codec cannot decode the value.
          trio.ClosedResourceError: The bundle closed before it became known.
        """
        where, values = self._which(hash, job_id)
        found = await self._database.run(
            lambda connection, look: next(iter(find_jobs(connection, look, where, values)), Seen())
        )
        if found.state == PENDING:
            found = await self._watch.wait(found.job_id)
        if found.state == COMPLETED:
            try:
                value: T = self._codec.decode(found.value)
            except Exception as exc:
                raise StoreError(f"the codec cannot decode the value of {hash!r}: {type(exc).__name__}") from exc
            return outcome.Value(value)
        if found.state == FAILED:
            return outcome.Error(self._errors.get(found.job_id) or RemoteFetchError(*found.error))
        return outcome.Error(JobLost(f"the job for {hash!r} has no owner, or its outcome is no longer kept"))

    async def complete(self, hash: str, value: T, *, job_id: str | None = None) -> None:
        """Settle the job with a value, if it is still this owner's; otherwise nothing happens. A checkpoint.

        Raises:
          StoreError: The codec cannot encode the value; the job stays the owner's.
        """
        mine = self._mine(hash, job_id)
        self._database.owner.check()
        data = encoded(self._codec, hash, value)
        # Whoever gets a traceback with the locals of our frames must not get a secret.
        del value
        await self._settle(hash, mine, Seen(mine, COMPLETED, value=data), None)

    async def fail(self, hash: str, error: BaseException, *, job_id: str | None = None) -> None:
        """Settle the job with an error, if it is still this owner's; otherwise nothing happens. A checkpoint."""
        mine = self._mine(hash, job_id)
        check_error(error)
        await self._settle(hash, mine, Seen(mine, FAILED, error=_as_text(error)), error)

    async def is_in_progress(self, hash: str) -> bool:
        """Say whether a job for this key has an owner at this moment. A checkpoint."""
        key = (self._ns, check_hash(hash))
        return await self._database.run(lambda connection, look: bool(find_jobs(connection, look, _PENDING, key)))

    async def extend(self, hash: str, job_id: str) -> bool:
        """Let the job live for one whole lease from now; False: it is no longer the owner's. A checkpoint."""
        key = (self._ns, check_hash(hash), check_text("job_id", job_id))

        def work(connection: Connection, look: Look) -> bool:
            with immediate(connection):
                now, seen = look()
                return connection.execute(_EXTEND, (now, now, *key, seen)).rowcount == 1

        return await self._database.run(work)

    # ------------------------------------------------------------------------------------------------- for people

    async def list_jobs(self, offset: int = 0, limit: int = 50) -> list[JobInfo]:
        """List the jobs in progress and the outcomes that are kept, the oldest job first. A checkpoint."""
        start, count = check_page(offset, limit)

        def work(connection: Connection, look: Look) -> list[tuple[Any, ...]]:
            return connection.execute(
                """SELECT hash, job_id, state, created_at, until FROM renew_jobs WHERE ns = ? AND until > ?
                ORDER BY id LIMIT ? OFFSET ?""",
                (self._ns, redate_jobs(connection, self._ns, look), count, start),
            ).fetchall()

        rows = await self._database.run(work)
        return [JobInfo(key, job_id, cast(Any, _STATUS[state]), made, end) for key, job_id, state, made, end in rows]

    async def get_stats(self) -> DedupeStats:
        """Count the jobs. A checkpoint."""

        def work(connection: Connection, look: Look) -> tuple[int, int, float]:
            now, seen = look()[0], redate_jobs(connection, self._ns, look)
            active, oldest, lost = connection.execute(
                f"""SELECT COUNT(*) FILTER (WHERE until > :seen), MIN(created_at) FILTER (WHERE until > :seen),
                COUNT(*) FILTER (WHERE until <= :seen) FROM renew_jobs WHERE ns = :ns AND state = {PENDING}""",
                {"ns": self._ns, "seen": seen},
            ).fetchone()
            return active, lost, 0.0 if oldest is None else max(0.0, now - oldest)

        active, lost, age = await self._database.run(work)
        return DedupeStats(active_jobs=active, total_jobs_processed=self._total, expired_jobs=lost, oldest_job_age=age)

    async def cleanup(self) -> int:
        """Remove jobs that have lost their owner and outcomes no longer kept; says how many. A checkpoint."""
        return (await self._database.run(self.clean))[0]

    async def clear(self, scope: str | None = None) -> None:
        """Drop every job, or those whose key starts with exactly ``scope``; who waits finds it lost. A checkpoint."""
        where, values = starts_with("hash", check_scope(scope))

        def work(connection: Connection, look: Look) -> list[str]:
            with immediate(connection):
                which = f"FROM renew_jobs WHERE ns = ?{where}"
                rows = connection.execute(f"SELECT job_id {which}", (self._ns, *values)).fetchall()
                connection.execute(f"DELETE {which}", (self._ns, *values))
            return [row[0] for row in rows]

        for job_id in await self._database.run(work):
            self._watch.tell(job_id, Seen())

    # --------------------------------------------------------------------------------------------------- our steps

    def _which(self, hash: str, job_id: str | None) -> tuple[str, tuple[str, ...]]:
        check_hash(hash)
        if job_id is None:
            return _PENDING, (self._ns, hash)
        return _BY_ID, (self._ns, hash, check_text("job_id", job_id))

    def _mine(self, hash: str, job_id: str | None) -> str:
        """Give the id of the job to settle; empty: there is none."""
        check_hash(hash)
        return self._owned.get(hash, "") if job_id is None else check_text("job_id", job_id)

    async def _settle(self, hash: str, job_id: str, result: Seen, error: BaseException | None) -> None:
        def work(connection: Connection, look: Look) -> bool:
            with immediate(connection):
                now, seen = look()
                row = (result.state, result.value, *result.error, now, now, self._ns, hash, job_id, seen)
                settled = connection.execute(_SETTLE, row).rowcount == 1
            if settled and error is not None:
                # Still in our turn: nobody here sees the outcome before.
                self._errors[job_id] = error
            return settled

        if await self._database.run(work):
            self._watch.tell(job_id, result)
        self._forget(hash, job_id)

    def clean(self, connection: Connection, look: Look) -> tuple[int, float | None]:
        """Remove what is over, and say when something will be next."""
        end = "SELECT MIN(until) FROM renew_jobs WHERE ns = ?"
        seen = redate_jobs(connection, self._ns, look)
        removed = 0
        due = connection.execute(end, (self._ns,)).fetchone()[0]
        if due is not None and due <= seen:
            statement = "DELETE FROM renew_jobs WHERE ns = ? AND until <= ?"
            removed = connection.execute(statement, (self._ns, seen)).rowcount
            due = connection.execute(end, (self._ns,)).fetchone()[0]
        kept = {row[0] for row in connection.execute("SELECT job_id FROM renew_jobs WHERE ns = ?", (self._ns,))}
        for job_id in self._errors.keys() - kept:
            self._errors.pop(job_id, None)
        for hash, job_id in list(self._owned.items()):
            if job_id not in kept:
                self._forget(hash, job_id)
        return removed, due

    def _forget(self, hash: str, job_id: str) -> None:
        if self._owned.get(hash) == job_id:
            self._owned.pop(hash, None)


def _as_text(error: BaseException) -> tuple[str, str]:
    """Give what travels of an error: the name of its type, and its text, short and without credentials."""
    try:
        text = error.message if isinstance(error, RemoteFetchError) else str(error)
    except Exception:
        text = ""
    remote = RemoteFetchError(error_type_name(error), text)
    # SQLite takes no halves of surrogate pairs.
    return remote.type_name, remote.message.encode(errors="backslashreplace").decode()

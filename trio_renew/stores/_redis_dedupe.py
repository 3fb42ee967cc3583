"""The dedupe store of the Redis engine.

Invariants:

* A job is a key that lives for a lease; whoever's id it holds is the owner, and only the owner's scripts touch it.
* Who waits subscribes first, then looks, then waits: for a message, for the end of the lease, or for the loss of the
  connection, and in doubt looks again. Nothing is polled, except where the server does not let us subscribe.
* A registration that is cancelled is taken back: nobody would work on the job.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import uuid4

import outcome
import trio

from .._errors import JobLost, RemoteFetchError, StoreError
from ..abc import Registration
from ._common import (
    DedupeStats,
    Encoded,
    JobInfo,
    check_error,
    check_hash,
    check_page,
    check_scope,
    check_text,
    encoded,
    error_type_name,
    in_page,
)
from ._redis_link import was_lost
from ._redis_room import batches, milliseconds
from ._redis_scripts import (
    DESCRIBE_JOBS,
    EXTEND,
    LOOK,
    REGISTER,
    RELEASE,
    SETTLE,
    WIPE_JOBS,
    WIPE_OUTCOMES,
)

if TYPE_CHECKING:
    from ._redis_room import Room

__all__ = ("RedisDedupeStore",)

T = TypeVar("T")

# Where we may not subscribe: seconds between two looks.
_LOOK_EVERY = 0.1
# A longer outcome is not sent to everybody who listens: they look for it.
_MOST_PUBLISHED = 65_536
# From so many on, those that have run out are forgotten.
_MANY = 1000


class _Waiter:
    __slots__ = ("heard", "woken")

    def __init__(self) -> None:
        self.woken = trio.Event()
        #: What was said about which job.
        self.heard: dict[bytes, bytes] = {}


class RedisDedupeStore(Generic[T]):
    """Jobs that run once for all processes of a server. Belongs to the bundle of :func:`open_redis_stores`.

    ``register``, ``register_or_join``, ``complete``, ``fail``, ``extend`` and ``is_in_progress`` are one round trip.
    A cancelled call happens on the server wholly or not at all; which of the two is not known to who was cancelled,
    but a registration that is cancelled leaves no job behind.

    Attributes:
      lease: The seconds that a job lives without :meth:`extend`.
    """

    __slots__ = ("_errors", "_forgetting", "_lease", "_registered", "_room", "_total", "_waiters", "lease")

    def __init__(self, room: Room) -> None:
        self._room = room
        self.lease: float = room.options.lease
        self._lease = milliseconds(self.lease)
        self._total = 0
        #: Who waits on which channel.
        self._waiters: dict[bytes, set[_Waiter]] = {}
        #: Of a key the job that came to us by ``register``, and when it has run out for sure.
        self._registered: OrderedDict[str, tuple[str, float]] = OrderedDict()
        #: The errors themselves of jobs that failed here, by job and what was said, and until when they are kept.
        self._errors: OrderedDict[bytes, tuple[BaseException, float]] = OrderedDict()
        self._forgetting = trio.CancelScope()
        room.owner.on_closing(self.look_again)
        room.owner.on_closing(lambda: self._forgetting.cancel())

    async def register(self, hash: str) -> str:
        """Do what :meth:`register_or_join` does, and give the job's id.

        This store object remembers that it came to own the job in this way: then :meth:`complete` and :meth:`fail`
        settle it without an id.
        """
        registration = await self.register_or_join(hash)
        if registration.is_owner:
            self._remember(hash, registration.job_id)
        return registration.job_id

    async def register_or_join(self, hash: str) -> Registration:
        """Become the owner of a new job for this key, or join the one in progress.

        Raises:
          StoreError: The server cannot be asked.
          trio.ClosedResourceError: The stores are closed.
        """
        check_hash(hash)
        mine = uuid4().hex
        key = self._room.key(b"j:", hash)
        try:
            current: bytes = await self._room.link.run(REGISTER, (key,), mine.encode(), self._lease)
        except BaseException:
            self._room.link.mention(RELEASE, (key, self._room.key(b"d:", hash)), mine.encode())
            raise
        job_id = current.decode()
        self._total += job_id == mine
        return Registration(job_id, is_owner=job_id == mine)

    async def wait_for(self, hash: str, *, job_id: str | None = None) -> T | None:
        """Wait for the job's value; None also when the owner failed or was lost, and when there is no such job."""
        result = await self.wait_outcome(hash, job_id=job_id)
        return result.value if isinstance(result, outcome.Value) else None

    async def wait_outcome(self, hash: str, *, job_id: str | None = None) -> outcome.Outcome[T]:
        """Wait for what became of the job: its value, its error, or an ``Error`` with ``JobLost``.

        Args:
          hash: The key.
          job_id: The job that was joined; None: the one in progress now.

        Raises:
          StoreError: The server cannot be asked, or the codec cannot decode the value.
          trio.ClosedResourceError: The stores are closed, or close before it becomes known.
        """
        check_hash(hash)
        job = b"" if job_id is None else check_text("job_id", job_id).encode()
        if b":" in job:
            # No id of ours; behind the key it could be taken for the end of another key, and an id.
            job = b"-"
        channel = self._room.key(b"d:", hash)
        keys = (self._room.key(b"j:", hash), self._room.key(b"o:", hash) + b":")
        waiter = _Waiter()
        waiters = self._waiters.setdefault(channel, set())
        try:
            waiters.add(waiter)
            while True:
                waiter.woken = trio.Event()
                what, job, *more = await self._look(keys, job, channel)
                if what == b"wait":
                    said = await self._hear(waiter, job, more[0] / 1000)
                elif what == b"done":
                    said = Encoded(more[0])
                else:
                    said = b"L"
                # A traceback may show the locals of this frame, and a value may be a secret.
                more.clear()
                if said == b"L":
                    return outcome.Error(
                        JobLost(f"the job for {hash!r} has no owner, or its outcome is no longer kept")
                    )
                if said != b"?":
                    return self._outcome(hash, job, said)
        finally:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[channel]
                self._room.link.unsubscribe(channel)

    async def _look(self, keys: tuple[bytes, bytes], job: bytes, channel: bytes) -> Any:
        try:
            return await self._room.link.run(LOOK, keys, job, channel=channel)
        except StoreError as error:
            if not was_lost(error):
                raise
        # Looking changes nothing, so it may be done again; but not for ever.
        return await self._room.link.run(LOOK, keys, job, channel=channel)

    async def _hear(self, waiter: _Waiter, job: bytes, left: float) -> bytes:
        # The server forgets a job in the millisecond after its last one.
        left += 0.002
        with trio.move_on_after(left if self._room.link.may_listen else min(left, _LOOK_EVERY)):
            await waiter.woken.wait()
        return waiter.heard.pop(job, b"?")

    def _outcome(self, hash: str, job: bytes, said: bytes) -> outcome.Outcome[T]:
        if said[:1] == b"V":
            try:
                value: T = self._room.options.codec.decode(said[1:])
            except Exception as error:
                raise StoreError(f"the codec cannot decode the outcome of {hash!r}: {type(error).__name__}") from error
            return outcome.Value(value)
        if job + said in self._errors:
            return outcome.Error(self._errors[job + said][0])
        return outcome.Error(RemoteFetchError(*json.loads(said[1:])))

    async def complete(self, hash: str, value: T, *, job_id: str | None = None) -> None:
        """Settle the job with a value, if it is still this owner's; otherwise nothing happens.

        Raises:
          StoreError: The codec cannot encode the value, and the job stays the owner's; or the server cannot be asked.
          trio.ClosedResourceError: The stores are closed.
        """
        job = self._job_of(hash, job_id)
        try:
            said = Encoded(b"V" + encoded(self._room.options.codec, hash, value))
        except StoreError:
            await trio.lowlevel.checkpoint()  # noqa: ASYNC120 - a cancellation counts for more
            raise
        finally:
            # Whoever gets a traceback with the locals of our frames must not get a secret.
            del value
        await self._settle(hash, job, said)

    async def fail(self, hash: str, error: BaseException, *, job_id: str | None = None) -> None:
        """Settle the job with an error, if it is still this owner's; otherwise nothing happens.

        Raises:
          StoreError: The server cannot be asked.
          trio.ClosedResourceError: The stores are closed.
        """
        check_error(error)
        job = self._job_of(hash, job_id)
        told = _told(error)
        said = b"E" + json.dumps([told.type_name, told.message]).encode()
        if job is not None:
            self._room.owner.check()
            # Before the server knows of it: then it is here for whoever hears of it.
            if not self._errors:
                self._forgetting = trio.CancelScope(shield=True)
                self._room.owner.start(self._forget_errors, "forgetting errors")
            self._errors.setdefault(job.encode() + said, (error, trio.current_time() + 2 * self.lease))
        await self._settle(hash, job, said)

    async def _forget_errors(self) -> None:  # noqa: ASYNC910 - a task's own work
        """Let go of errors that nobody can ask for any more, as long as there are any."""
        with self._forgetting:
            while self._errors:
                await trio.sleep_until(next(iter(self._errors.values()))[1])
                self._errors.popitem(last=False)
        self._errors.clear()

    def _job_of(self, hash: str, job_id: str | None) -> str | None:
        check_hash(hash)
        if job_id is not None:
            return check_text("job_id", job_id)
        return self._registered.get(hash, (None, 0.0))[0]

    async def _settle(self, hash: str, job: str | None, said: bytes) -> None:
        if job is None:
            self._room.owner.check()
            await trio.lowlevel.checkpoint()
            return
        keys = (
            self._room.key(b"j:", hash),
            self._room.key(b"o:", f"{hash}:{job}"),
            self._room.key(b"d:", hash),
        )
        short = len(said) <= _MOST_PUBLISHED
        await self._room.link.run(SETTLE, keys, job.encode(), said, self._lease, int(short))
        if self._registered.get(hash, ("", 0.0))[0] == job:
            del self._registered[hash]

    async def is_in_progress(self, hash: str) -> bool:
        """Say whether a job for this key has an owner at this moment."""
        return bool(await self._room.link.call(b"EXISTS", self._room.key(b"j:", check_hash(hash))))

    async def extend(self, hash: str, job_id: str) -> bool:
        """Let the job live for one whole lease from now; False: it is no longer the owner's."""
        check_hash(hash)
        job = check_text("job_id", job_id).encode()
        mine = bool(await self._room.link.run(EXTEND, (self._room.key(b"j:", hash),), job, self._lease))
        if mine and self._registered.get(hash, ("", 0.0))[0] == job_id:
            self._remember(hash, job_id)
        return mine

    def _remember(self, hash: str, job_id: str) -> None:
        now = trio.current_time()
        while len(self._registered) > _MANY and next(iter(self._registered.values()))[1] < now:
            self._registered.popitem(last=False)
        self._registered[hash] = (job_id, now + self.lease)
        self._registered.move_to_end(hash)

    # What the connection tells

    def heard(self, channel: bytes, message: bytes) -> None:
        """Take a message: an id, and what became of that job."""
        for waiter in self._waiters.get(channel, ()):
            waiter.heard[message[:32]] = Encoded(message[32:])
            waiter.woken.set()

    def look_again(self) -> None:
        """Let everybody who waits look for themselves: messages may have been lost, or it is all over."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.woken.set()

    # For people

    async def list_jobs(self, offset: int = 0, limit: int = 50) -> list[JobInfo]:
        """List the jobs in progress and the outcomes that are kept, the oldest job first.

        Looks at every key of the server.
        """
        page = check_page(offset, limit)
        return in_page(sorted(await self._describe(), key=lambda job: (job.created_at, job.hash)), *page)

    async def get_stats(self) -> DedupeStats:
        """Count the jobs. Looks at every key of the server."""
        now = int(await self._room.stamp()) / 1e6
        active = [job for job in await self._describe() if job.status == "pending"]
        return DedupeStats(
            active_jobs=len(active),
            total_jobs_processed=self._total,
            expired_jobs=0,
            oldest_job_age=max((now - job.created_at for job in active), default=0.0),
        )

    async def cleanup(self) -> int:
        """Do nothing: the server itself drops what has ended. Gives 0."""
        self._room.owner.check()
        await trio.lowlevel.checkpoint()
        return 0

    async def clear(self, scope: str | None = None) -> None:
        """Drop every job, or those whose key starts with exactly ``scope``; who waits finds it lost.

        Looks at every key of the server, in batches. Cancelled, it goes on without the caller. What is registered
        after it was called stays.
        """
        prefix = check_scope(scope)
        room = self._room

        async def wipe() -> None:
            stamp = await room.stamp()
            for names in batches(await room.names(b"j:", prefix)):
                channels = [room.key(b"d:", name) for name in names]
                await room.link.run(WIPE_JOBS, [room.key(b"j:", name) for name in names], stamp, *channels)
            # Behind the key stands an id: a name may start with the scope where the key is shorter.
            outcomes = await room.names(b"o:", prefix)
            for names in batches([name for name in outcomes if name.rpartition(":")[0].startswith(prefix)]):
                await room.link.run(WIPE_OUTCOMES, [room.key(b"o:", name) for name in names], stamp)

        await room.outliving(wipe, "clearing the jobs")

    async def _describe(self) -> list[JobInfo]:
        jobs: list[JobInfo] = []
        now, rows = await self._room.describe(DESCRIBE_JOBS, b"j:", await self._room.names(b"j:"))
        for name, (head, left) in rows:
            if head:
                jobs.append(JobInfo(name, head[:32].decode(), "pending", int(head[32:]) / 1e6, now + left / 1000))
        now, rows = await self._room.describe(DESCRIBE_JOBS, b"o:", await self._room.names(b"o:"))
        for name, (head, left) in rows:
            if head:
                hash, _, job_id = name.rpartition(":")
                status: Any = "completed" if head[16:17] == b"V" else "failed"
                jobs.append(JobInfo(hash, job_id, status, int(head[:16]) / 1e6, now + left / 1000))
        return jobs


def _told(error: BaseException) -> RemoteFetchError:
    if isinstance(error, RemoteFetchError):
        return error
    try:
        text = str(error)
    except Exception:
        text = ""
    return RemoteFetchError(error_type_name(error), text)

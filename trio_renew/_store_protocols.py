"""What a user may implement of the stores: the protocols, and the frozen results that they return.

Part of :mod:`trio_renew.abc`, which is where users find it, and which has the rules for every method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, runtime_checkable

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable

    import outcome

__all__ = (
    "AdaptiveRateLimitStatus",
    "AdaptiveRateLimitStore",
    "CacheStore",
    "DedupeStore",
    "Priority",
    "RateLimitStatus",
    "RateLimitStore",
    "Registration",
)

T = TypeVar("T")

#: Who asks an adaptive rate limit: a person that waits, or work that can wait.
Priority = Literal["user", "background"]


@runtime_checkable
class CacheStore(Protocol[T]):
    """Values by key, each with a time to live and tags.

    Example::

        await cache.set("item:1", {"name": "x"}, 60.0, tags=("items",))
        await cache.get("item:1")  # {"name": "x"}; None from 60 s on
        await cache.invalidate_tag("items")  # 1
    """

    async def get(self, hash: str) -> T | None:
        """Give the value under this key, or None when there is none or it has expired.

        Args:
          hash: The key, a non-empty text.
        """
        ...

    async def set(self, hash: str, value: T, ttl: float, *, tags: Iterable[str] = ()) -> None:
        """Store a value in the place of what the key held before, its tags included.

        Args:
          hash: The key, a non-empty text.
          value: Anything but None.
          ttl: Seconds to live. Greater than 0: the entry is good while less than this has passed; 0: it never
            expires; less than 0: it has expired at once (what the key held before is gone).
          tags: Non-empty texts under which :meth:`invalidate_tag` finds the entry; a repeated one counts once.

        Raises:
          TypeError: The value is None, or an argument has the wrong type.
          ValueError: ``hash`` or a tag is empty, or ``ttl`` is NaN or infinite.
          StoreError: The value is too large or cannot be encoded; what the key held before is gone then.
        """
        ...

    async def delete(self, hash: str) -> None:
        """Forget what the key holds; no error when it holds nothing."""
        ...

    async def clear(self, scope: str | None = None) -> None:
        """Forget every entry, or those whose key starts with exactly ``scope``."""
        ...

    async def invalidate_tag(self, tag: str) -> int:
        """Forget the entries that carry this tag; says how many live ones there were."""
        ...

    async def invalidate_tags(self, tags: Iterable[str]) -> int:
        """Forget the entries that carry any of these tags; each live one counts once."""
        ...


@attrs.frozen
class Registration:
    """What :meth:`DedupeStore.register_or_join` answers.

    Attributes:
      job_id: The id of the job that is in progress; the owner's proof (fencing), the joiner's claim to the outcome.
      is_owner: Whether the caller is to do the work; otherwise somebody else does, and the caller waits.
    """

    job_id: str
    is_owner: bool


@runtime_checkable
class DedupeStore(Protocol[T]):
    """Jobs that run once, whoever asks for them: one owner works, the others wait for its outcome.

    A job is a lease. Its owner keeps it by calling :meth:`extend` before the lease has run out; an owner that does
    not (it died, it hangs) loses the job at that instant, whether or not somebody takes it over. Whoever comes
    afterwards registers anew, and exactly one becomes the new owner. What a former owner still settles is ignored.

    A settled job is no cache: its outcome goes to those who wait, and is kept for one lease from settling for those
    who joined and ask with their job id.

    A store may have an attribute ``lease``: the seconds that a job lives without :meth:`extend`. One without it is
    taken to have 10 seconds.

    Example::

        job = await dedupe.register_or_join(key)
        if job.is_owner:
            try:
                value = await work()  # with a heartbeat: extend(key, job.job_id) at least 3 times per lease
            except Exception as error:
                await dedupe.fail(key, error, job_id=job.job_id)
                raise
            await dedupe.complete(key, value, job_id=job.job_id)
        else:
            value = (await dedupe.wait_outcome(key, job_id=job.job_id)).unwrap()
    """

    async def register(self, hash: str) -> str:
        """Do what :meth:`register_or_join` does, and give the job's id.

        The store object remembers a job that it came to own in this way: :meth:`complete` and :meth:`fail` without
        an id settle such a job, and no other.
        """
        ...

    async def register_or_join(self, hash: str) -> Registration:
        """Become the owner of a new job for this key, or join the one in progress. Atomic."""
        ...

    async def wait_for(self, hash: str, *, job_id: str | None = None) -> T | None:
        """Wait for the job's value.

        Cancelling it takes only this caller away.

        Args:
          hash: The key.
          job_id: The job that was joined; None: the one in progress now.

        Returns:
          The value; None also when the owner failed, when it was lost, and when there is no such job.
        """
        ...

    async def wait_outcome(self, hash: str, *, job_id: str | None = None) -> outcome.Outcome[T]:
        """Wait for what became of the job.

        Cancelling it takes only this caller away.

        Args:
          hash: The key.
          job_id: The job that was joined; None: the one in progress now.

        Returns:
          A ``Value``, or an ``Error``: with the owner's exception (itself from the store object that it was given
          to, a :class:`~trio_renew.RemoteFetchError` elsewhere), or with :class:`~trio_renew.JobLost` when the owner
          was lost, the job is unknown, or its outcome is no longer kept. Each call gives an outcome of its own.
        """
        ...

    async def complete(self, hash: str, value: T, *, job_id: str | None = None) -> None:
        """Settle the job with a value, if it is still this owner's; otherwise nothing happens.

        Args:
          hash: The key.
          value: The value for those who wait; None is one.
          job_id: The owner's proof; None: the job that this store object came to own by :meth:`register`.

        Raises:
          StoreError: The value cannot be encoded; the job stays the owner's.
        """
        ...

    async def fail(self, hash: str, error: BaseException, *, job_id: str | None = None) -> None:
        """Settle the job with an error, if it is still this owner's; otherwise nothing happens."""
        ...

    async def is_in_progress(self, hash: str) -> bool:
        """Say whether a job for this key has an owner at this moment."""
        ...

    async def extend(self, hash: str, job_id: str) -> bool:
        """Let the job live for one whole lease from now.

        Returns:
          False when it is no longer the owner's: settled, lost, or taken over. Then it must not settle or write.
        """
        ...


@attrs.frozen
class RateLimitStatus:
    """How much of a limit is left.

    Attributes:
      remaining: How many requests may start now; never negative.
      reset_at: The instant at which the oldest counted request leaves the window; now, when nothing is counted.
      limit: How many requests fit into the window.
    """

    remaining: int
    reset_at: float
    limit: int


@runtime_checkable
class RateLimitStore(Protocol):
    """How often something may happen: at most ``limit`` times in each (sliding) window, per resource.

    A request counts for exactly one window: from the instant at which it is recorded, while less than the window
    has passed.

    Example::

        while not await limits.acquire("api.example.com"):
            await trio.sleep(await limits.get_wait_time("api.example.com"))
    """

    async def acquire(self, resource: str) -> bool:
        """Count one request if it may proceed. Atomic: never more than the limit get True.

        Returns:
          False when it may not proceed; then nothing is counted.
        """
        ...

    async def can_proceed(self, resource: str) -> bool:
        """Say whether a request may proceed now, without counting one."""
        ...

    async def record(self, resource: str) -> None:
        """Count one request, whether it may proceed or not."""
        ...

    async def get_status(self, resource: str) -> RateLimitStatus:
        """Give what is left of the limit."""
        ...

    async def reset(self, resource: str) -> None:
        """Forget the counted requests of the resource."""
        ...

    async def get_wait_time(self, resource: str) -> float:
        """Give the seconds until one request may proceed if nobody else's does; 0.0: now.

        With a limit of 0 it is the length of the window.
        """
        ...


@attrs.frozen
class AdaptiveRateLimitStatus:
    """How much of an adaptive limit is left, and how it is divided.

    Attributes:
      remaining: How many requests may start now; never negative.
      reset_at: The instant at which the oldest counted request leaves the window; now, when nothing is counted.
      limit: How many requests fit into the window.
      user_reserved: The users' share of the limit.
      background_max: The rest: how many background requests fit into the window.
      background_paused: Whether background requests are refused altogether.
      recent_user_activity: How many user requests there were in the monitoring window.
      reason: Why the limit is divided so, for people.
    """

    remaining: int
    reset_at: float
    limit: int
    user_reserved: int
    background_max: int
    background_paused: bool
    recent_user_activity: int
    reason: str


@runtime_checkable
class AdaptiveRateLimitStore(Protocol):
    """A rate limit that is divided between users, who wait, and background work, which can.

    The division follows the users' recent activity. A user may proceed while fewer than ``limit`` requests of either
    kind are in the window (users borrow what the background does not use); background work while, besides, it is not
    paused and has fewer than ``background_max`` in it.

    Example::

        if not await limits.acquire("api.example.com", "background"):
            await trio.sleep(await limits.get_wait_time("api.example.com", "background"))
    """

    async def acquire(self, resource: str, priority: Priority = "background") -> bool:
        """Count one request if it may proceed. Atomic: never more than the limit get True.

        Returns:
          False when it may not proceed; then nothing is counted.
        """
        ...

    async def can_proceed(self, resource: str, priority: Priority = "background") -> bool:
        """Say whether a request may proceed now, without counting one."""
        ...

    async def record(self, resource: str, priority: Priority = "background") -> None:
        """Count one request, whether it may proceed or not."""
        ...

    async def get_status(self, resource: str) -> AdaptiveRateLimitStatus:
        """Give what is left of the limit, and how it is divided."""
        ...

    async def reset(self, resource: str) -> None:
        """Forget the counted requests of the resource, its activity and its division."""
        ...

    async def get_wait_time(self, resource: str, priority: Priority = "background") -> float:
        """Give the seconds until one request may proceed if nobody else's does; 0.0: now.

        For background work that is paused or without a share it is the time until the next recalculation of the
        division; with a limit of 0 it is the length of the window.
        """
        ...

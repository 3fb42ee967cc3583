"""The dedupe store of the memory engine.

Invariants:

* ``_jobs`` holds the pending jobs, one per key; a job is in it exactly while its status is "pending".
* ``_kept`` holds settled jobs by id, in the order in which they were settled, for one lease from then.
* A job leaves "pending" once: settled by its owner before its deadline, or lost. Whoever waits holds the job itself,
  so what happens to the tables afterwards cannot take the outcome away.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import outcome
import trio
from trio.lowlevel import checkpoint, enable_ki_protection

from .._errors import JobLost
from ..abc import Registration
from ._common import DedupeStats, JobInfo, check_error, check_hash, check_page, check_scope, check_text, in_page

if TYPE_CHECKING:
    from ._common import Options
    from ._memory_life import Life

__all__ = ("MemoryDedupeStore",)

T = TypeVar("T")


class _Job:
    __slots__ = ("created", "deadline", "hash", "job_id", "number", "registered", "result", "settled", "status")

    def __init__(self, hash: str, number: int, job_id: str, created: float, deadline: float, registered: bool) -> None:
        self.hash = hash
        self.number = number
        self.job_id = job_id
        self.created = created
        self.deadline = deadline
        #: Whether its owner came to it by ``register``, and so may settle it without an id.
        self.registered = registered
        self.status: Literal["pending", "completed", "failed", "lost"] = "pending"
        self.result: Any = None
        self.settled = trio.Event()


class MemoryDedupeStore(Generic[T]):
    """Jobs of this process that run once, whoever asks. Belongs to the bundle of :func:`open_memory_stores`.

    Attributes:
      lease: The seconds that a job lives without :meth:`extend`.
    """

    __slots__ = ("_jobs", "_kept", "_life", "_prefix", "_total", "lease")

    def __init__(self, life: Life, options: Options) -> None:
        self._life = life
        self.lease: float = options.lease
        self._jobs: dict[str, _Job] = {}
        self._kept: OrderedDict[str, _Job] = OrderedDict()
        self._total = 0
        # An id of another store object is never one of ours.
        self._prefix = os.urandom(6).hex()

    # ---------------------------------------------------------------------------------------------- the protocol

    async def register(self, hash: str) -> str:
        """Do what :meth:`register_or_join` does, and give the job's id. One checkpoint.

        This store object remembers that it came to own the job in this way: then :meth:`complete` and :meth:`fail`
        settle it without an id.
        """
        check_hash(hash)
        await self._life.step()
        return self._register(hash, registered=True).job_id

    async def register_or_join(self, hash: str) -> Registration:
        """Become the owner of a new job for this key, or join the one in progress. One checkpoint."""
        check_hash(hash)
        await self._life.step()
        return self._register(hash, registered=False)

    async def wait_for(self, hash: str, *, job_id: str | None = None) -> T | None:
        """Wait for the job's value; None also when the owner failed or was lost, and when there is no such job."""
        result = await self.wait_outcome(hash, job_id=job_id)
        return result.value if isinstance(result, outcome.Value) else None

    async def wait_outcome(self, hash: str, *, job_id: str | None = None) -> outcome.Outcome[T]:
        """Wait for what became of the job: its value, its error itself, or an ``Error`` with ``JobLost``.

        One checkpoint when that is known; otherwise it returns at once when it becomes known.

        Args:
          hash: The key.
          job_id: The job that was joined; None: the one in progress now.

        Raises:
          trio.ClosedResourceError: The bundle closed before it became known.
        """
        check_hash(hash)
        if job_id is not None:
            check_text("job_id", job_id)
        self._life.check()
        # Looked up before any checkpoint: who has begun to wait must not miss what happens next.
        job = self._find(hash, job_id)
        if job is None or job.status != "pending":
            await checkpoint()
        else:
            await self._until_settled(job)
        if job is not None and job.status == "completed":
            return outcome.Value(job.result)
        if job is not None and job.status == "failed":
            return outcome.Error(job.result)
        self._life.check()
        return outcome.Error(JobLost(f"the job for {hash!r} has no owner, or its outcome is no longer kept"))

    async def complete(self, hash: str, value: T, *, job_id: str | None = None) -> None:
        """Settle the job with a value, if it is still this owner's; otherwise nothing happens. One checkpoint."""
        await self._settle(hash, job_id, "completed", value)

    async def fail(self, hash: str, error: BaseException, *, job_id: str | None = None) -> None:
        """Settle the job with an error, if it is still this owner's; otherwise nothing happens. One checkpoint."""
        await self._settle(hash, job_id, "failed", check_error(error))

    async def is_in_progress(self, hash: str) -> bool:
        """Say whether a job for this key has an owner at this moment. One checkpoint."""
        check_hash(hash)
        await self._life.step()
        return self._current(hash) is not None

    async def extend(self, hash: str, job_id: str) -> bool:
        """Let the job live for one whole lease from now; False: it is no longer the owner's. One checkpoint."""
        check_hash(hash)
        check_text("job_id", job_id)
        await self._life.step()
        return self._extend(hash, job_id)

    # ------------------------------------------------------------------------------------------------- for people

    async def list_jobs(self, offset: int = 0, limit: int = 50) -> list[JobInfo]:
        """List the jobs in progress and the outcomes that are kept, the oldest job first. One checkpoint."""
        page = check_page(offset, limit)
        await self._life.step()
        now, instant = self._life.now(), self._life.instant
        jobs = [job for table in (self._jobs, self._kept) for job in table.values() if now < job.deadline]
        jobs.sort(key=lambda job: job.number)
        return [
            JobInfo(job.hash, job.job_id, job.status, instant(job.created), instant(job.deadline))
            for job in in_page(jobs, *page)
        ]

    async def get_stats(self) -> DedupeStats:
        """Count the jobs. One checkpoint."""
        await self._life.step()
        now = self._life.now()
        active = [job for job in self._jobs.values() if now < job.deadline]
        return DedupeStats(
            active_jobs=len(active),
            total_jobs_processed=self._total,
            expired_jobs=len(self._jobs) - len(active),
            oldest_job_age=max((now - job.created for job in active), default=0.0),
        )

    async def cleanup(self) -> int:
        """Remove jobs that have lost their owner and outcomes no longer kept; says how many. One checkpoint."""
        await self._life.step()
        return self.sweep(self.sweepable())[0]

    async def clear(self, scope: str | None = None) -> None:
        """Drop every job, or those whose key starts with exactly ``scope``; who waits finds it lost. One checkpoint."""
        prefix = check_scope(scope)
        await self._life.step()
        self._clear(prefix)

    # --------------------------------------------------------------------------------------------------- our steps

    def _current(self, hash: str) -> _Job | None:
        """Give the job in progress; one past its deadline is lost here at the latest."""
        job = self._jobs.get(hash)
        if job is not None and self._life.now() >= job.deadline:
            self._lose(job)
            return None
        return job

    @enable_ki_protection
    def _lose(self, job: _Job) -> None:
        del self._jobs[job.hash]
        job.status = "lost"
        job.settled.set()

    @enable_ki_protection
    def _register(self, hash: str, *, registered: bool) -> Registration:
        job = self._current(hash)
        if job is not None:
            return Registration(job.job_id, is_owner=False)
        now = self._life.now()
        job_id = f"{self._prefix}-{self._total}"
        self._total += 1
        self._jobs[hash] = _Job(hash, self._total, job_id, now, now + self.lease, registered)
        if self._life.asleep:
            self._life.wake()
        return Registration(job_id, is_owner=True)

    def _find(self, hash: str, job_id: str | None) -> _Job | None:
        job = self._current(hash)
        if job_id is None or (job is not None and job.job_id == job_id):
            return job
        self._prune(self._life.now())
        kept = self._kept.get(job_id)
        return kept if kept is not None and kept.hash == hash else None

    async def _until_settled(self, job: _Job) -> None:  # noqa: ASYNC910 - whoever calls it makes the checkpoint
        while job.status == "pending":
            self._life.check()
            left = job.deadline - self._life.now()
            if left > 0:
                # The owner may extend it meanwhile: then there is another deadline to wait for.
                with trio.move_on_after(left):
                    await job.settled.wait()
            else:
                self._lose(job)

    async def _settle(
        self, hash: str, job_id: str | None, status: Literal["completed", "failed"], result: T | BaseException
    ) -> None:
        check_hash(hash)
        if job_id is not None:
            check_text("job_id", job_id)
        await self._life.step()
        self._settle_now(hash, job_id, status, result)

    @enable_ki_protection
    def _settle_now(
        self, hash: str, job_id: str | None, status: Literal["completed", "failed"], result: T | BaseException
    ) -> None:
        job = self._current(hash)
        if job is None or (not job.registered if job_id is None else job.job_id != job_id):
            return
        now = self._life.now()
        self._prune(now)
        del self._jobs[hash]
        job.result = result
        job.status = status
        job.deadline = now + self.lease
        self._kept[job.job_id] = job
        job.settled.set()

    @enable_ki_protection
    def _extend(self, hash: str, job_id: str) -> bool:
        job = self._current(hash)
        if job is None or job.job_id != job_id:
            return False
        job.deadline = self._life.now() + self.lease
        return True

    @enable_ki_protection
    def _prune(self, now: float) -> int:
        removed = 0
        while self._kept and now >= next(iter(self._kept.values())).deadline:
            self._kept.popitem(last=False)
            removed += 1
        return removed

    @enable_ki_protection
    def _clear(self, prefix: str) -> None:
        for job in [job for job in self._jobs.values() if job.hash.startswith(prefix)]:
            self._lose(job)
        for job in [job for job in self._kept.values() if job.hash.startswith(prefix)]:
            del self._kept[job.job_id]

    def sweepable(self) -> list[str]:
        """Give the keys of the jobs in progress, and one for all outcomes that are kept."""
        return [*self._jobs, ""]

    @enable_ki_protection
    def sweep(self, keys: list[str]) -> tuple[int, bool]:
        """Remove the jobs among these keys that have lost their owner, and all outcomes no longer kept."""
        removed = self._prune(self._life.now())
        for key in keys:
            if key in self._jobs and self._current(key) is None:
                removed += 1
        return removed, bool(self._kept or self._jobs)

    def redate(self, now: float) -> None:
        """Date now what seems to come from the future."""
        for table in (self._jobs, self._kept):
            for job in table.values():
                job.created = min(job.created, now)
                job.deadline = min(job.deadline, now + self.lease)

    @enable_ki_protection
    def close(self) -> None:
        """Drop everything, and wake whoever waits."""
        for job in list(self._jobs.values()):
            job.settled.set()
        self._jobs.clear()
        self._kept.clear()

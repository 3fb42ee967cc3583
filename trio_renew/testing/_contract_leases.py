"""What a job of a dedupe store has to do with time: it is a lease, and so is what is kept of its outcome."""

from __future__ import annotations

from typing import Any

import outcome
import trio

from .._errors import JobLost, RemoteFetchError
from ._contracts import Contract, all_at_once, cancelled_call, expect, expect_equal

__all__ = ("LeaseContract", "Planned", "expect_lost", "expect_planned")


class Planned(Exception):
    """The error that an owner fails with."""


class LeaseContract(Contract):
    """The part of `DedupeStoreContract` that is about time."""

    async def test_an_outcome_is_kept_for_one_lease(self) -> None:
        """After that it is as if there had been no job."""
        async with self.open_store() as dedupe:
            job = await dedupe.register_or_join("a")
            await dedupe.register_or_join("a")
            if self.exact:
                await trio.sleep(self.lease * 0.75)
            await dedupe.complete("a", self.make_value(1), job_id=job.job_id)
            if self.exact:
                await trio.sleep(self.lease * 0.75)
                found = await dedupe.wait_for("a", job_id=job.job_id)
                expect_equal(found, self.make_value(1), "an outcome is kept for one lease")
                await trio.sleep(self.lease * 0.25)
            else:
                await self.pass_by(self.lease)
            expect_equal(await dedupe.wait_for("a", job_id=job.job_id), None, "an outcome is kept for one lease only")
            expect_lost(await dedupe.wait_outcome("a", job_id=job.job_id), "an outcome no longer kept")

    async def test_an_owner_that_stops_extending_loses_its_job(self) -> None:
        """At its deadline: who waits is told, and what the former owner does is ignored."""
        async with self.open_store() as dedupe:
            started = trio.current_time()
            job = await dedupe.register_or_join("a")
            registered = trio.current_time()
            await self._expect_lost_between(dedupe, job, started + self.lease, registered + self.lease)
            await self.pass_by(0.0)
            expect_equal(await dedupe.is_in_progress("a"), False, "a lost job is not in progress")
            expect_equal(await dedupe.extend("a", job.job_id), False, "extend() of a lost job is False")
            await dedupe.complete("a", self.make_value(1), job_id=job.job_id)
            await dedupe.fail("a", Planned("the reason"), job_id=job.job_id)
            expect_equal(await dedupe.wait_for("a", job_id=job.job_id), None, "a late complete() is ignored")
            expect_lost(await dedupe.wait_outcome("a", job_id=job.job_id), "a late complete()")

    async def test_a_lost_job_has_one_successor(self) -> None:
        """Exactly one of those who waited takes over; what the former owner still does is ignored."""
        async with self.open_store() as dedupe:
            dead = await dedupe.register_or_join("a")
            owners: list[str] = []
            found: list[Any] = []

            async def joiner(_: int) -> None:
                job = dead
                for _ in range(5):
                    result = await dedupe.wait_outcome("a", job_id=job.job_id)
                    if isinstance(result, outcome.Value):
                        found.append(result.unwrap())
                        return
                    job = await dedupe.register_or_join("a")
                    if job.is_owner:
                        owners.append(job.job_id)
                        await dedupe.complete("a", self.make_value(1), job_id=dead.job_id)
                        await dedupe.fail("a", Planned("the reason"), job_id=dead.job_id)
                        expect_equal(await dedupe.is_in_progress("a"), True, "the former owner settles nothing")
                        await trio.sleep(self.lease * 0.25)
                        await dedupe.complete("a", self.make_value(2), job_id=job.job_id)
                raise AssertionError("who joins the successor gets its value")

            with self.in_time("one of those who waited takes over", 2 * self.lease + self.slack + self.patience):
                await all_at_once(joiner, 8)
            expect_equal(len(owners), 1, "a lost job has exactly one successor")
            expect(owners != [dead.job_id], "the successor's job has an id of its own")
            expect_equal(found, [self.make_value(2)] * 8, "all who waited get the successor's value")

    async def test_an_owner_that_extends_keeps_its_job(self) -> None:
        """Each extension is one whole lease from then."""
        async with self.open_store() as dedupe:
            job = await dedupe.register_or_join("a")
            found: list[Any] = []

            async def wait() -> None:
                found.append(await dedupe.wait_for("a", job_id=job.job_id))

            extended, slow = trio.current_time(), False
            with self.in_time("complete() wakes those who wait", 3 * self.lease + self.patience):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    for _ in range(4):
                        await trio.sleep(self.lease * 0.6)
                        before = trio.current_time()
                        kept = await dedupe.extend("a", job.job_id)
                        # On a machine that is too slow for the lease nothing is shown.
                        slow = slow or trio.current_time() - extended >= self.lease
                        expect(kept is True or slow, "extend() in time keeps the job")
                        extended = before
                    await dedupe.complete("a", self.make_value(1), job_id=job.job_id)
                    slow = slow or trio.current_time() - extended >= self.lease
            expect(
                found == [self.make_value(1)] or slow,
                f"who waits, waits as long as the owner extends, and gets the value, not {found!r}",
            )

    async def test_a_cancelled_registration_blocks_nobody_for_long(self) -> None:
        """It happened wholly or not at all: within a lease the key is free."""
        async with self.open_store() as dedupe:
            await cancelled_call(lambda: dedupe.register_or_join("a"))
            await self.pass_by(self.lease)
            job = await dedupe.register_or_join("a")
            expect_equal(job.is_owner, True, "a cancelled registration is over after a lease")

    async def test_an_extension_is_one_lease_from_then(self) -> None:
        """It does not add up with what was left."""
        async with self.open_store() as dedupe:
            job = await dedupe.register_or_join("a")
            await trio.sleep(self.lease * 0.25)
            before = trio.current_time()
            kept = await dedupe.extend("a", job.job_id)
            after = trio.current_time()
            # On a machine that is too slow for the lease it was lost before.
            earliest = before + self.lease if kept else 0.0
            await self._expect_lost_between(dedupe, job, earliest, after + self.lease)

    async def test_joining_prolongs_nothing(self) -> None:
        """Whoever joins, the lease is its owner's."""
        async with self.open_store() as dedupe:
            before = trio.current_time()
            job = await dedupe.register_or_join("a")
            after = trio.current_time()
            await trio.sleep(self.lease * 0.5)
            joined = await dedupe.register_or_join("a")
            if not joined.is_owner:
                await self._expect_lost_between(dedupe, job, before + self.lease, after + self.lease)

    async def _expect_lost_between(self, dedupe: Any, job: Any, earliest: float, latest: float) -> None:
        with self.in_time("who waits is told that the owner is lost", self.lease + self.slack + self.patience):
            expect_lost(await dedupe.wait_outcome("a", job_id=job.job_id), "an owner that stops extending")
        early, late = (1e-6, 1e-6) if self.exact else (0.05, 1.0)
        now = trio.current_time()
        expect(now > earliest - early, "an owner has its job for a whole lease")
        expect(now < latest + late, "who waits is told when the lease is over")


def expect_lost(result: Any, what: str) -> None:
    expect(
        isinstance(result, outcome.Error) and isinstance(result.error, JobLost),
        f"{what} is an Error(JobLost), not {result!r}",
    )


def expect_planned(result: Any, promise: str) -> None:
    error = result.error if isinstance(result, outcome.Error) else None
    name = f"{Planned.__module__}.{Planned.__qualname__}"
    holds = isinstance(error, Planned) or (isinstance(error, RemoteFetchError) and error.type_name == name)
    expect(holds and "the reason" in str(error), f"{promise}, not {result!r}")

"""The contract of a dedupe store."""

from __future__ import annotations

from typing import Any

import outcome
import trio
import trio.testing

from ._contract_leases import LeaseContract, Planned, expect_lost, expect_planned
from ._contracts import all_at_once, cancelled_call, expect, expect_equal, refuses

__all__ = ("DedupeStoreContract",)


class DedupeStoreContract(LeaseContract):
    """What a :class:`~trio_renew.abc.DedupeStore` must do. Each ``open_store`` opens an empty one.

    ``lease`` must be the lease of the store that is opened. Set ``virtual = True`` when it lives by Trio's clock:
    then deadlines are checked to the instant. Otherwise open it with a short lease (say half a second), because some
    tests wait for its end. Define ``make_value(self, number)`` for a store that cannot hold dicts.

    Example::

        class TestMyDedupe(DedupeStoreContract):
            lease = 0.5

            @asynccontextmanager
            async def open_store(self):
                yield MyDedupe(lease=self.lease)

        check_contract(TestMyDedupe)  # or let pytest run the class
    """

    async def test_the_first_owns_and_the_others_join(self) -> None:
        """One job per key, and one owner."""

        async def scenario(dedupe: Any) -> None:
            first = await dedupe.register_or_join("a")
            second = await dedupe.register_or_join("a")
            other = await dedupe.register_or_join("b")
            expect(isinstance(first.job_id, str) and first.job_id, "a job id is a non-empty text")
            expect_equal(first.is_owner, True, "who registers first is the owner")
            expect_equal(second.is_owner, False, "who comes while a job is in progress joins")
            expect_equal(second.job_id, first.job_id, "the joiner gets the id of the job in progress")
            expect_equal(other.is_owner, True, "another key is another job")
            expect(other.job_id != first.job_id, "each job has an id of its own")
            expect_equal(await dedupe.register("a"), first.job_id, "register() joins as well")

        await self.unless_slow(self.lease, scenario)

    async def test_exactly_one_of_many_owns(self) -> None:
        """Registration is atomic."""

        async def scenario(dedupe: Any) -> None:
            jobs = await all_at_once(lambda _: dedupe.register_or_join("a"), 30)
            expect_equal(sum(job.is_owner for job in jobs), 1, "exactly one of those who come at once is the owner")
            expect_equal(len({job.job_id for job in jobs}), 1, "all of them get the same id")

        await self.unless_slow(self.lease, scenario)

    async def test_in_progress_is_what_has_an_owner(self) -> None:
        """From registration to settling."""

        async def scenario(dedupe: Any) -> None:
            expect_equal(await dedupe.is_in_progress("a"), False, "an unknown key is not in progress")
            for settle, result in ((dedupe.complete, self.make_value(1)), (dedupe.fail, Planned("the reason"))):
                job = await dedupe.register_or_join("a")
                expect_equal(await dedupe.is_in_progress("a"), True, "a registered job is in progress")
                await settle("a", result, job_id=job.job_id)
                expect_equal(await dedupe.is_in_progress("a"), False, "a settled job is not in progress")

        await self.unless_slow(self.lease, scenario)

    async def test_without_a_job_there_is_nothing_to_wait_for(self) -> None:
        """No such job: None, or JobLost, at once; and nothing to settle."""
        async with self.open_store() as dedupe:
            with self.in_time("waiting for a job that is not there returns at once"):
                for job_id in (None, "unknown"):
                    found = await dedupe.wait_for("a", job_id=job_id)
                    expect_equal(found, None, "wait_for() without a job gives None")
                    expect_lost(await dedupe.wait_outcome("a", job_id=job_id), "wait_outcome() without a job")
                    await dedupe.complete("a", self.make_value(1), job_id=job_id)
                    await dedupe.fail("a", Planned("the reason"), job_id=job_id)
            expect_equal(await dedupe.extend("a", "unknown"), False, "extend() of an unknown job is False")
            expect_equal(await dedupe.is_in_progress("a"), False, "settling an unknown job makes none")

    async def test_a_value_wakes_all_who_wait(self) -> None:
        """Every waiter gets the value, in each way of asking."""

        async def scenario(dedupe: Any) -> None:
            job = await dedupe.register_or_join("a")
            found: list[Any] = []

            async def wait(job_id: str | None) -> None:
                found.append(await dedupe.wait_for("a", job_id=job_id))
                found.append((await dedupe.wait_outcome("a", job_id=job.job_id)).unwrap())

            with self.in_time("complete() wakes those who wait"):
                async with trio.open_nursery() as nursery:
                    for job_id in (None, job.job_id, None):
                        nursery.start_soon(wait, job_id)
                    await self._settle_down()
                    expect_equal(found, [], "who waits, waits until the job is settled")
                    await dedupe.complete("a", self.make_value(7), job_id=job.job_id)
            expect_equal(found, [self.make_value(7)] * 6, "every waiter gets the value")

        await self.unless_slow(self.lease, scenario)

    async def test_an_error_reaches_all_who_wait(self) -> None:
        """None for wait_for, the error for wait_outcome: itself, or as it travels."""

        async def scenario(dedupe: Any) -> None:
            job = await dedupe.register_or_join("a")
            values: list[Any] = []
            outcomes: list[Any] = []

            async def wait() -> None:
                values.append(await dedupe.wait_for("a", job_id=job.job_id))

            async def wait_outcome() -> None:
                outcomes.append(await dedupe.wait_outcome("a", job_id=job.job_id))

            with self.in_time("fail() wakes those who wait"):
                async with trio.open_nursery() as nursery:
                    for waiter in (wait, wait_outcome, wait_outcome):
                        nursery.start_soon(waiter)
                    await self._settle_down()
                    await dedupe.fail("a", Planned("the reason"), job_id=job.job_id)
            expect_equal(values, [None], "wait_for() gives None when the owner failed")
            for result in outcomes:
                expect_planned(result, "wait_outcome() gives the owner's error")

        await self.unless_slow(self.lease, scenario)

    async def test_joiners_may_ask_later_and_often(self) -> None:
        """A joiner that comes late to its wait gets the outcome, with its id, for one lease."""

        async def scenario(dedupe: Any) -> None:
            for error in (None, Planned("the reason")):
                job = await dedupe.register_or_join("a")
                joined = await dedupe.register_or_join("a")
                if error is None:
                    await dedupe.complete("a", self.make_value(1), job_id=job.job_id)
                else:
                    await dedupe.fail("a", error, job_id=job.job_id)
                for _ in range(3):
                    with self.in_time("the outcome of a settled job is there at once"):
                        value = await dedupe.wait_for("a", job_id=joined.job_id)
                        result = await dedupe.wait_outcome("a", job_id=joined.job_id)
                    if error is None:
                        expect_equal(value, self.make_value(1), "a joiner that asks later gets the value")
                        expect_equal(result.unwrap(), self.make_value(1), "and its outcome, each time anew")
                    else:
                        expect_equal(value, None, "wait_for() gives None when the owner failed")
                        expect_planned(result, "a joiner that asks later gets the error")

        await self.unless_slow(self.lease, scenario)

    async def test_a_settled_job_is_no_cache(self) -> None:
        """Whoever comes after it starts anew, however it was settled."""

        async def scenario(dedupe: Any) -> None:
            ids: set[str] = set()
            for settle, result in ((dedupe.complete, self.make_value(1)), (dedupe.fail, Planned("the reason"))):
                job = await dedupe.register_or_join("a")
                expect_equal(job.is_owner, True, "who comes after a settled job owns a new one")
                ids.add(job.job_id)
                await settle("a", result, job_id=job.job_id)
                with self.in_time("a settled job is not waited for"):
                    expect_equal(await dedupe.wait_for("a"), None, "a settled job is no cache")
                    expect_lost(await dedupe.wait_outcome("a"), "a settled job is no cache")
            ids.add((await dedupe.register_or_join("a")).job_id)
            expect_equal(len(ids), 3, "each job has an id of its own")

        await self.unless_slow(self.lease, scenario)

    async def test_a_job_settles_once(self) -> None:
        """The first outcome stays."""

        async def scenario(dedupe: Any) -> None:
            job = await dedupe.register_or_join("a")
            await dedupe.complete("a", self.make_value(1), job_id=job.job_id)
            await dedupe.complete("a", self.make_value(2), job_id=job.job_id)
            await dedupe.fail("a", Planned("the reason"), job_id=job.job_id)
            expect_equal(await dedupe.wait_for("a", job_id=job.job_id), self.make_value(1), "the first outcome stays")

        await self.unless_slow(self.lease, scenario)

    async def test_only_the_owner_settles(self) -> None:
        """Fencing: another id changes nothing, for settling and for extending."""

        async def scenario(dedupe: Any) -> None:
            old = await dedupe.register_or_join("a")
            await dedupe.complete("a", self.make_value(1), job_id=old.job_id)
            job = await dedupe.register_or_join("a")
            for job_id in (old.job_id, "unknown"):
                await dedupe.complete("a", self.make_value(2), job_id=job_id)
                await dedupe.fail("a", Planned("the reason"), job_id=job_id)
                expect_equal(await dedupe.extend("a", job_id), False, "extend() with another id is False")
                expect_equal(await dedupe.is_in_progress("a"), True, "another id does not settle the job")
            await dedupe.complete("b", self.make_value(2), job_id=job.job_id)
            expect_equal(await dedupe.extend("a", job.job_id), True, "the owner still has its job")
            await dedupe.complete("a", self.make_value(3), job_id=job.job_id)
            expect_equal(await dedupe.wait_for("a", job_id=job.job_id), self.make_value(3), "the owner settles it")

        await self.unless_slow(self.lease, scenario)

    async def test_without_an_id_only_what_was_registered_settles(self) -> None:
        """complete() and fail() without an id are for jobs owned by register()."""

        async def scenario(dedupe: Any) -> None:
            joined = await dedupe.register_or_join("a")
            await dedupe.register("a")
            await dedupe.complete("a", self.make_value(1))
            await dedupe.fail("a", Planned("the reason"))
            expect_equal(await dedupe.is_in_progress("a"), True, "a job owned by register_or_join() needs its id")
            await dedupe.complete("a", self.make_value(1), job_id=joined.job_id)
            job_id = await dedupe.register("a")
            await dedupe.register_or_join("a")
            await dedupe.complete("a", self.make_value(2))
            found = await dedupe.wait_for("a", job_id=job_id)
            expect_equal(found, self.make_value(2), "a job owned by register() is settled without an id")
            job_id = await dedupe.register("a")
            await dedupe.fail("a", Planned("the reason"))
            expect_planned(await dedupe.wait_outcome("a", job_id=job_id), "so it is failed without an id")

        await self.unless_slow(self.lease, scenario)

    async def test_a_waiter_that_leaves_harms_nobody(self) -> None:
        """A cancelled wait takes only that waiter away."""

        async def scenario(dedupe: Any) -> None:
            job = await dedupe.register_or_join("a")
            found: list[Any] = []

            async def wait() -> None:
                found.append(await dedupe.wait_for("a", job_id=job.job_id))

            with self.in_time("those who stay are woken"):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    async with trio.open_nursery() as leaving:
                        leaving.start_soon(wait)
                        leaving.start_soon(wait)
                        await self._settle_down()
                        leaving.cancel_scope.cancel()
                    expect_equal(await dedupe.is_in_progress("a"), True, "a waiter that leaves does not end the job")
                    await dedupe.complete("a", self.make_value(1), job_id=job.job_id)
            expect_equal(found, [self.make_value(1)], "those who stay get the value, those who left do not")

        await self.unless_slow(self.lease, scenario)

    async def test_none_is_a_result(self) -> None:
        """A None that was completed is a value, and no lost job."""

        async def scenario(dedupe: Any) -> None:
            job = await dedupe.register_or_join("a")
            await dedupe.complete("a", None, job_id=job.job_id)
            result = await dedupe.wait_outcome("a", job_id=job.job_id)
            expect(isinstance(result, outcome.Value), f"a None that was completed is a value, not {result!r}")
            expect_equal(result.unwrap(), None, "a None that was completed comes back")

        await self.unless_slow(self.lease, scenario)

    async def test_keys_are_independent(self) -> None:
        """Any text is a key of its own."""

        async def scenario(dedupe: Any) -> None:  # noqa: ASYNC910 - there are keys
            keys = ["a", "A", "漢字", "🎉", "a b", "a" * 300]
            jobs = {key: await dedupe.register_or_join(key) for key in keys}
            for number, key in enumerate(keys):
                await dedupe.complete(key, self.make_value(number), job_id=jobs[key].job_id)
            for number, key in enumerate(keys):
                found = await dedupe.wait_for(key, job_id=jobs[key].job_id)
                expect_equal(found, self.make_value(number), f"{key!r} is a key of its own")

        await self.unless_slow(self.lease, scenario)

    async def test_a_cancelled_settling_happened_wholly_or_not_at_all(self) -> None:
        """Cancelled, the job is settled with that outcome, or its owner can still settle it."""

        async def scenario(dedupe: Any) -> None:
            for settle, result in ((dedupe.complete, self.make_value(1)), (dedupe.fail, Planned("the reason"))):
                job = await dedupe.register_or_join("a")
                done = await cancelled_call(lambda: settle("a", result, job_id=job.job_id))  # noqa: B023 - awaited here
                if await dedupe.is_in_progress("a"):
                    expect(not done, "a settled job is not in progress")
                    await settle("a", result, job_id=job.job_id)
                found = await dedupe.wait_outcome("a", job_id=job.job_id)
                if settle == dedupe.fail:
                    expect_planned(found, "a fail() that was cancelled happened wholly or not at all")
                else:
                    expect(isinstance(found, outcome.Value), f"a cancelled complete() leaves no {found!r}")
                    expect_equal(found.unwrap(), result, "a cancelled complete() happened wholly or not at all")

        await self.unless_slow(self.lease, scenario)

    async def test_what_cannot_be_stored_leaves_the_job_to_its_owner(self) -> None:
        """A value that the store refuses as a StoreError settles nothing."""

        async def scenario(dedupe: Any) -> None:
            job = await dedupe.register_or_join("a")
            if await refuses(lambda: dedupe.complete("a", object(), job_id=job.job_id)):
                expect_equal(await dedupe.is_in_progress("a"), True, "a refused value leaves the job to its owner")
                await dedupe.complete("a", self.make_value(1), job_id=job.job_id)
                found = await dedupe.wait_for("a", job_id=job.job_id)
                expect_equal(found, self.make_value(1), "the owner settles it with another value")

        await self.unless_slow(self.lease, scenario)

    async def _settle_down(self) -> None:
        """Let those who are about to wait begin to."""
        if self.exact:
            await trio.testing.wait_all_tasks_blocked()
        else:
            # A store may look around every few milliseconds: its tasks are never all blocked for long.
            await trio.sleep(min(0.15, self.lease / 4))

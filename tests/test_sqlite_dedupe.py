"""The dedupe store of the SQLite engine beyond the contract: several store objects, errors, clocks, trouble."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import outcome
import pytest
import trio
from hypothesis import given, settings, strategies as st
from trio.testing import wait_all_tasks_blocked

from trio_renew._errors import JobLost, RemoteFetchError, StoreError
from trio_renew.stores._common import DedupeStats, JobInfo
from trio_renew.stores.sqlite import open_sqlite_stores
from trio_renew.testing import cancel_at_every_checkpoint, victim

if TYPE_CHECKING:
    from pathlib import Path


class Hands:
    """A clock that stands still until it is set."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def raw(path: Path, *statements: str) -> list[Any]:
    rows: list[Any] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


def error_of(result: Any) -> BaseException:
    assert isinstance(result, outcome.Error)
    return result.error


# ------------------------------------------------------------------------------------------------ several store objects


async def test_a_joiner_elsewhere_gets_the_value_soon(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as one, open_sqlite_stores(path) as two:
        job = await one.dedupe.register_or_join("j")
        joined = await two.dedupe.register_or_join("j")
        assert (joined.job_id, joined.is_owner) == (job.job_id, False)
        found: list[Any] = []

        async def wait(job_id: str | None) -> None:
            found.append(await two.dedupe.wait_for("j", job_id=job_id))

        async with trio.open_nursery() as nursery:
            for job_id in (None, job.job_id):
                nursery.start_soon(wait, job_id)
            await trio.sleep(0.3)
            with trio.fail_after(5):
                await one.dedupe.complete("j", {"x": 1}, job_id=job.job_id)
        assert found == [{"x": 1}] * 2
        assert await two.dedupe.wait_for("j", job_id=job.job_id) == {"x": 1}


async def test_join_latency_across_connections(tmp_path: Path) -> None:
    """Half of those who wait hear much sooner than the 100 ms after which they would ask anyway."""
    path = tmp_path / "s.db"
    latencies: list[float] = []
    async with open_sqlite_stores(path) as one, open_sqlite_stores(path) as two:
        for number in range(15):
            job = await one.dedupe.register_or_join(f"j{number}")
            completed = 0.0

            async def wait(number: int, job_id: str) -> None:
                await two.dedupe.wait_for(f"j{number}", job_id=job_id)
                latencies.append(trio.current_time() - completed)  # noqa: B023 - of this round

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, number, job.job_id)
                await trio.sleep(0.03)
                await one.dedupe.complete(f"j{number}", 1, job_id=job.job_id)
                completed = trio.current_time()
    assert sorted(latencies)[7] < 0.05


async def test_an_error_is_itself_where_it_was_given_and_remote_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    error = ValueError("the reason")
    async with open_sqlite_stores(path) as one, open_sqlite_stores(path) as two, open_sqlite_stores(path) as three:
        job = await one.dedupe.register_or_join("j")
        await one.dedupe.fail("j", error, job_id=job.job_id)
        await one.dedupe.fail("j", TypeError("too late"), job_id=job.job_id)
        for _ in range(2):
            assert error_of(await one.dedupe.wait_outcome("j", job_id=job.job_id)) is error
            remote = error_of(await two.dedupe.wait_outcome("j", job_id=job.job_id))
            assert isinstance(remote, RemoteFetchError)
            assert (remote.type_name, remote.message) == ("builtins.ValueError", "the reason")
        assert await two.dedupe.wait_for("j", job_id=job.job_id) is None
        passed_on = await two.dedupe.register_or_join("k")
        await two.dedupe.fail("k", remote, job_id=passed_on.job_id)
        again = error_of(await three.dedupe.wait_outcome("k", job_id=passed_on.job_id))
        assert isinstance(again, RemoteFetchError)
        assert (again.type_name, again.message) == ("builtins.ValueError", "the reason")


async def test_an_error_without_a_text_travels_all_the_same(tmp_path: Path) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as one, open_sqlite_stores(path) as two:
        job = await one.dedupe.register_or_join("j")
        await one.dedupe.fail("j", Mute(), job_id=job.job_id)
        remote = error_of(await two.dedupe.wait_outcome("j", job_id=job.job_id))
        assert isinstance(remote, RemoteFetchError)
        assert remote.message == ""
        assert remote.type_name.endswith("Mute")


async def test_a_failed_try_to_fail_leaves_no_error_behind(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        job = await stores.dedupe.register_or_join("j")
        with trio.CancelScope() as scope:
            scope.cancel()
            await stores.dedupe.fail("j", ValueError("cancelled"), job_id=job.job_id)
        real = ValueError("real")
        await stores.dedupe.fail("j", real, job_id=job.job_id)
        assert error_of(await stores.dedupe.wait_outcome("j", job_id=job.job_id)) is real


async def test_fail_wants_an_exception(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        await stores.dedupe.register("j")
        with pytest.raises(TypeError, match="error"):
            await stores.dedupe.fail("j", "text")  # type: ignore[arg-type]
        assert await stores.dedupe.is_in_progress("j")


async def test_a_value_that_cannot_be_encoded_leaves_the_job_to_its_owner(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        job_id = await stores.dedupe.register("j")
        with pytest.raises(StoreError, match="cannot encode"):
            await stores.dedupe.complete("j", object())
        assert await stores.dedupe.extend("j", job_id)
        await stores.dedupe.complete("j", 1)
        assert await stores.dedupe.wait_for("j", job_id=job_id) == 1


async def test_a_value_that_cannot_be_decoded(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        job_id = await stores.dedupe.register("j")
        await stores.dedupe.complete("j", 1)
        raw(path, "UPDATE renew_jobs SET value = x'00ff'")
        for wait in (stores.dedupe.wait_for, stores.dedupe.wait_outcome):
            with pytest.raises(StoreError, match="cannot decode") as caught:
                await wait("j", job_id=job_id)
            assert caught.value.__cause__ is not None


async def test_what_register_came_to_own_is_settled_without_an_id_once(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as one, open_sqlite_stores(path) as two:
        job_id = await one.dedupe.register("j")
        assert await two.dedupe.register("j") == job_id
        await two.dedupe.complete("j", "not mine")
        assert await one.dedupe.is_in_progress("j")
        await one.dedupe.complete("j", "mine")
        second = await two.dedupe.register("j")
        await one.dedupe.complete("j", "not mine any more")
        assert await two.dedupe.is_in_progress("j")
        await two.dedupe.fail("j", ValueError())
        assert error_of(await two.dedupe.wait_outcome("j", job_id=second)).args == ()


async def test_an_id_belongs_to_its_key(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        job = await stores.dedupe.register_or_join("j")
        await stores.dedupe.complete("other", 1, job_id=job.job_id)
        assert not await stores.dedupe.extend("other", job.job_id)
        assert isinstance(error_of(await stores.dedupe.wait_outcome("other", job_id=job.job_id)), JobLost)
        assert await stores.dedupe.extend("j", job.job_id)


async def test_somebody_else_may_register_between_the_look_and_the_lock(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        await stores.dedupe.register("other")
        insert = "INSERT INTO renew_jobs SELECT 99, 'theirs', ns, 'j', 0, lease, created_at, dated_at, until"

        def be_faster(statement: str) -> None:
            if statement.startswith("BEGIN"):
                raw(path, f"{insert}, NULL, NULL, NULL FROM renew_jobs")

        database = stores.cache._database
        await database.run(lambda connection, _: connection.set_trace_callback(be_faster))
        registration = await stores.dedupe.register_or_join("j")
        await database.run(lambda connection, _: connection.set_trace_callback(None))
        assert (registration.job_id, registration.is_owner) == ("theirs", False)
        assert (await stores.dedupe.get_stats()).total_jobs_processed == 1


# --------------------------------------------------------------------------------------------------------------- clocks


async def test_leases_are_exact(tmp_path: Path) -> None:
    clock = Hands()
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock) as stores:
        dedupe = stores.dedupe
        job = await dedupe.register_or_join("j")
        clock.now = 1009.999
        assert await dedupe.extend("j", job.job_id)
        clock.now = 1019.998
        assert await dedupe.is_in_progress("j")
        clock.now = 1019.999
        assert not await dedupe.is_in_progress("j")
        assert not await dedupe.extend("j", job.job_id)
        await dedupe.complete("j", 1, job_id=job.job_id)
        assert isinstance(error_of(await dedupe.wait_outcome("j", job_id=job.job_id)), JobLost)
        successor = await dedupe.register_or_join("j")
        assert successor.is_owner
        await dedupe.fail("j", ValueError("late"), job_id=job.job_id)
        await dedupe.complete("j", 2, job_id=successor.job_id)
        clock.now += 9.999
        assert await dedupe.wait_for("j", job_id=successor.job_id) == 2
        clock.now += 0.001
        assert await dedupe.wait_for("j", job_id=successor.job_id) is None


async def test_a_clock_that_goes_back_prolongs_no_lease(tmp_path: Path) -> None:
    clock = Hands(5000.0)
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock) as stores:
        dedupe = stores.dedupe
        job = await dedupe.register_or_join("j")
        clock.now = 1000.0
        assert await dedupe.is_in_progress("j")
        assert await dedupe.list_jobs() == [JobInfo("j", job.job_id, "pending", 1000.0, 1010.0)]
        clock.now = 1010.0
        assert not await dedupe.is_in_progress("j")
        clock.now = 9000.0
        settled = await dedupe.register_or_join("k")
        await dedupe.complete("k", 1, job_id=settled.job_id)
        clock.now = 1000.0
        assert await dedupe.wait_for("k", job_id=settled.job_id) == 1
        clock.now = 1010.0
        assert await dedupe.wait_for("k", job_id=settled.job_id) is None


async def test_who_waits_hears_of_the_end_of_a_lease_at_once(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_sqlite_stores(tmp_path / "s.db", lease=10) as stores:
        await trio.sleep(0.123)
        job = await stores.dedupe.register_or_join("j")
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def extend() -> None:
                await trio.sleep(7)
                assert await stores.dedupe.extend("j", job.job_id)

            nursery.start_soon(extend)
            assert isinstance(error_of(await stores.dedupe.wait_outcome("j")), JobLost)
            assert trio.current_time() - started == pytest.approx(17, abs=1e-5)


async def test_leases_of_several_lengths(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path, lease=2) as short, open_sqlite_stores(path, lease=20) as long:
        assert (short.dedupe.lease, long.dedupe.lease) == (2, 20)
        one, two = await short.dedupe.register_or_join("s"), await long.dedupe.register_or_join("l")
        await trio.sleep(3)
        assert not await long.dedupe.extend("s", one.job_id)
        assert await short.dedupe.extend("l", two.job_id)
        await trio.sleep(19)
        assert await short.dedupe.is_in_progress("l")


# -------------------------------------------------------------------------------------------------------------- waiting


async def test_many_wait_for_many(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path, lease=100) as one, open_sqlite_stores(path, lease=100) as two:
        jobs = [await one.dedupe.register_or_join(f"j{number}") for number in range(600)]
        found: list[Any] = []

        async def wait(number: int) -> None:
            found.append(await two.dedupe.wait_for(f"j{number}", job_id=jobs[number].job_id))

        async with trio.open_nursery() as nursery:
            for number in range(600):
                nursery.start_soon(wait, number)
            await trio.sleep(1)
            for number in range(600):
                await one.dedupe.complete(f"j{number}", number, job_id=jobs[number].job_id)
        assert sorted(found) == list(range(600))
        assert two.dedupe._watch.waited_for() == []


async def test_clear_tells_who_waits(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as one, open_sqlite_stores(path) as two:
        await one.dedupe.register("a:1")
        await one.dedupe.register("b:1")
        lost: list[Any] = []

        async def wait(dedupe: Any) -> None:
            lost.append(error_of(await dedupe.wait_outcome("a:1")))

        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, one.dedupe)
            nursery.start_soon(wait, two.dedupe)
            await wait_all_tasks_blocked()
            await one.dedupe.clear("a:")
        assert [type(error) for error in lost] == [JobLost, JobLost]
        assert trio.current_time() - started < 0.5
        assert await one.dedupe.is_in_progress("b:1")
        await one.dedupe.complete("a:1", 1)
        assert not await one.dedupe.is_in_progress("a:1")


async def test_trouble_with_the_file_reaches_who_waits(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        await stores.dedupe.register("j")
        async with trio.open_nursery() as nursery:
            errors: list[StoreError] = []

            async def wait() -> None:
                with pytest.raises(StoreError, match="no such table") as caught:
                    await stores.dedupe.wait_for("j")
                errors.append(caught.value)

            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            raw(path, "ALTER TABLE renew_jobs RENAME TO away")
        assert errors[0] is not errors[1]
        raw(path, "ALTER TABLE away RENAME TO renew_jobs")
        assert await stores.dedupe.is_in_progress("j")


async def test_closing_tells_who_waits(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    closed: list[Any] = []

    async def wait(dedupe: Any) -> None:
        with pytest.raises(trio.ClosedResourceError) as caught:
            await dedupe.wait_for("j")
        closed.append(caught.value)

    async with trio.open_nursery() as nursery:
        async with open_sqlite_stores(path) as stores:
            await stores.dedupe.register("j")
            for _ in range(3):
                nursery.start_soon(wait, stores.dedupe)
            await trio.sleep(0.05)
    assert len(closed) == 3


async def test_closing_while_the_watch_asks(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            async with open_sqlite_stores(tmp_path / "s.db") as stores:
                await stores.dedupe.register("j")

                async def wait(dedupe: Any) -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await dedupe.wait_for("j")

                nursery.start_soon(wait, stores.dedupe)
                while not stores.dedupe._watch.waited_for():
                    await trio.sleep(0)


async def test_closing_in_the_step_in_which_the_watch_gets_its_turn(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        await stores.dedupe.register("j")
        database = stores.cache._database

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stores.dedupe._watch.wait("j")

        async with trio.open_nursery() as nursery:
            database._turn.acquire_on_behalf_of_nowait("somebody")
            nursery.start_soon(wait)
            while not database._turn.statistics().tasks_waiting:
                await trio.sleep(0)
            database._turn.release_on_behalf_of("somebody")
            database.owner.close()


async def test_a_wait_that_finds_the_owner_closed(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        await stores.dedupe.register("j")
        stores.cache._database.owner.close()
        with pytest.raises(trio.ClosedResourceError):
            await stores.dedupe._watch.wait("j")


async def test_the_watch_sleeps_when_nobody_waits(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        for _ in range(2):
            await stores.dedupe.register("j")
            with trio.move_on_after(3):
                await stores.dedupe.wait_for("j")
            await trio.sleep(1)
            assert not stores.dedupe._watch._running


def test_a_waiter_that_is_cancelled_anywhere_harms_nobody() -> None:
    async def scenario() -> None:
        with TemporaryDirectory() as folder:
            async with open_sqlite_stores(f"{folder}/s.db", lease=1) as stores:
                job = await stores.dedupe.register_or_join("j")
                found: list[Any] = []

                async def wait() -> None:
                    found.append(await stores.dedupe.wait_for("j", job_id=job.job_id))

                async def settle() -> None:
                    await trio.sleep(0.05)
                    await stores.dedupe.complete("j", 7, job_id=job.job_id)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    nursery.start_soon(settle)
                    with victim():
                        await stores.dedupe.wait_for("j", job_id=job.job_id)
                assert found == [7]
                assert stores.dedupe._watch.waited_for() == []

    assert cancel_at_every_checkpoint(scenario).steps >= 3


# ----------------------------------------------------------------------------------------------------------- for people


async def test_listing_and_counting(tmp_path: Path) -> None:
    clock = Hands()
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, lease=30) as stores:
        dedupe = stores.dedupe
        assert await dedupe.list_jobs() == []
        assert await dedupe.get_stats() == DedupeStats(0, 0, 0, 0.0)
        ids = [await dedupe.register(f"j{number}") for number in range(5)]
        await dedupe.complete("j1", 1)
        await dedupe.fail("j3", ValueError())
        clock.now += 20
        listed = await dedupe.list_jobs()
        assert [(job.hash, job.status) for job in listed] == [
            ("j0", "pending"),
            ("j1", "completed"),
            ("j2", "pending"),
            ("j3", "failed"),
            ("j4", "pending"),
        ]
        assert listed[0] == JobInfo("j0", ids[0], "pending", 1000.0, 1030.0)
        assert [[job.hash for job in await dedupe.list_jobs(start, 2)] for start in (0, 4)] == [["j0", "j1"], ["j4"]]
        assert await dedupe.get_stats() == DedupeStats(3, 5, 0, 20.0)
        await dedupe.extend("j4", ids[4])
        clock.now += 10
        assert await dedupe.get_stats() == DedupeStats(1, 5, 2, 30.0)
        assert [job.hash for job in await dedupe.list_jobs()] == ["j4"]
        assert await dedupe.cleanup() == 4
        assert await dedupe.cleanup() == 0
        assert await dedupe.get_stats() == DedupeStats(1, 5, 0, 30.0)
        assert dedupe._owned == {"j4": ids[4]}
        assert dedupe._errors == {}


# ---------------------------------------------------------------------------------------------------------------- model

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, 1), st.sampled_from("ab")),
        st.tuples(st.sampled_from(["complete", "fail", "extend", "outcome"]), st.integers(0, 1), st.integers(0, 5)),
        st.tuples(st.just("sleep"), st.sampled_from([1.0, 4.0, 6.0, 10.0])),
        st.tuples(st.just("cleanup"), st.integers(0, 1)),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_jobs_are_leases_with_fencing(steps: list[Any]) -> None:
    """Two store objects on one file against a model: [key, state, deadline, by whom] per job, in order of their ids."""

    async def main() -> None:
        with TemporaryDirectory() as folder:
            path = f"{folder}/s.db"
            async with open_sqlite_stores(path, lease=10) as one, open_sqlite_stores(path, lease=10) as two:
                await check((one.dedupe, two.dedupe))

    async def check(stores: tuple[Any, Any]) -> None:
        jobs: dict[str, list[Any]] = {}
        now = 0.0
        for action, *args in steps:
            if action == "sleep":
                await trio.sleep(args[0])
                now += args[0]
            elif action == "cleanup":
                await stores[args[0]].cleanup()
            elif action == "join":
                registration = await stores[args[0]].register_or_join(args[1])
                live = [i for i, job in jobs.items() if job[0] == args[1] and job[1] == "pending" and now < job[2]]
                assert registration.is_owner == (not live)
                if live:
                    assert [registration.job_id] == live
                else:
                    assert registration.job_id not in jobs
                    jobs[registration.job_id] = [args[1], "pending", now + 10, 0]
            elif args[1] < len(jobs):
                store, (job_id, job) = stores[args[0]], list(jobs.items())[args[1]]
                pending = job[1] == "pending" and now < job[2]
                if action == "extend":
                    assert await store.extend(job[0], job_id) == pending
                    job[2] = now + 10 if pending else job[2]
                elif action == "outcome":
                    if pending:
                        assert await store.is_in_progress(job[0])
                        continue
                    kept = job[1] if now < job[2] else "lost"
                    result = await store.wait_outcome(job[0], job_id=job_id)
                    kind = {"complete": outcome.Value, "fail": outcome.Error, "pending": outcome.Error}.get(kept)
                    assert isinstance(result, kind or outcome.Error)
                    if kept == "fail":
                        assert isinstance(error_of(result), ValueError if job[3] is store else RemoteFetchError)
                    elif kept != "complete":
                        assert isinstance(error_of(result), JobLost)
                else:
                    value = 1 if action == "complete" else ValueError("x")
                    await getattr(store, action)(job[0], value, job_id=job_id)
                    if pending:
                        job[1:] = [action, now + 10, store]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

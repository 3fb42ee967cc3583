"""What every engine's dedupe store promises beyond the contract suite: late joiners, fencing, how errors travel."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import outcome
import pytest
import trio

from trio_renew import JobLost, RemoteFetchError, StoreError

if TYPE_CHECKING:
    from .conftest import Engine


class Planned(Exception):
    pass


def is_lost(result: Any) -> bool:
    return isinstance(result, outcome.Error) and type(result.error) is JobLost


@pytest.mark.parametrize("value", [None, 0, "", False, [], {}, 0.0])
def test_falsy_results_come_back(engine: Engine, value: Any) -> None:
    """To who waits and to who asks later, as exactly what they were."""

    async def scenario(stores: Any) -> None:
        dedupe = stores.dedupe
        job = await dedupe.register_or_join("a")
        found: list[Any] = []

        async def wait(job_id: str | None) -> None:
            found.append((await dedupe.wait_outcome("a", job_id=job_id)).unwrap())

        async with trio.open_nursery() as nursery:
            for job_id in (None, job.job_id):
                nursery.start_soon(wait, job_id)
            await trio.sleep(0.02)
            await dedupe.complete("a", value, job_id=job.job_id)
        found.append(await dedupe.wait_for("a", job_id=job.job_id))
        found.append((await dedupe.wait_outcome("a", job_id=job.job_id)).unwrap())
        assert [(type(each), each) for each in found] == [(type(value), value)] * 4

    engine.run(scenario, lease=60.0)


def test_who_comes_late_without_an_id_gets_nothing(engine: Engine) -> None:
    """Nor with the id of another key, of a former job, or of nobody."""

    async def scenario(stores: Any) -> None:
        dedupe = stores.dedupe
        job = await dedupe.register_or_join("a")
        await dedupe.complete("a", 1, job_id=job.job_id)
        assert await dedupe.wait_for("a") is None
        assert is_lost(await dedupe.wait_outcome("a"))
        for key, job_id in (("b", job.job_id), ("a", "f" * 32), ("a", job.job_id + "x"), ("a", job.job_id[:-1])):
            assert await dedupe.wait_for(key, job_id=job_id) is None
            assert is_lost(await dedupe.wait_outcome(key, job_id=job_id))
        # The next job's outcome is not the last one's, and both are kept.
        second = await dedupe.register_or_join("a")
        await dedupe.complete("a", 2, job_id=second.job_id)
        assert await dedupe.wait_for("a", job_id=job.job_id) == 1
        assert await dedupe.wait_for("a", job_id=second.job_id) == 2
        # A third in progress is what who has no id waits for, and nobody else.
        third = await dedupe.register_or_join("a")
        assert await dedupe.wait_for("a", job_id=second.job_id) == 2
        with trio.move_on_after(0.05) as scope:
            await dedupe.wait_for("a")
        assert scope.cancelled_caught
        assert await dedupe.extend("a", third.job_id)

    engine.run(scenario, lease=60.0)


def test_a_key_and_an_id_are_not_mixed_up(engine: Engine) -> None:
    """Whatever stands in a key."""

    async def scenario(stores: Any) -> None:
        dedupe = stores.dedupe
        job = await dedupe.register_or_join("a:b")
        await dedupe.complete("a:b", 1, job_id=job.job_id)
        assert is_lost(await dedupe.wait_outcome("a", job_id=f"b:{job.job_id}"))
        assert [info.hash for info in await dedupe.list_jobs()] == ["a:b"]

    engine.run(scenario, lease=60.0)


def test_settling_without_an_id_is_for_the_last_registration_only(engine: Engine) -> None:
    """A job that was lost is not remembered for the one that took over with an id."""

    async def scenario(stores: Any) -> None:
        dedupe = stores.dedupe
        await dedupe.register("a")
        await engine.pass_by(engine.unit)
        job = await dedupe.register_or_join("a")
        assert job.is_owner
        await dedupe.complete("a", 1)
        await dedupe.fail("a", Planned())
        assert await dedupe.is_in_progress("a")
        await dedupe.complete("a", 2, job_id=job.job_id)
        assert await dedupe.wait_for("a", job_id=job.job_id) == 2
        # Settled once, the memory is used up.
        first = await dedupe.register("a")
        await dedupe.complete("a", 3)
        other = await dedupe.register_or_join("a")
        await dedupe.complete("a", 4)
        assert await dedupe.is_in_progress("a")
        assert await dedupe.wait_for("a", job_id=first) == 3
        assert await dedupe.extend("a", other.job_id)

    engine.run(scenario, lease=engine.unit)


def test_a_registration_of_another_store_object_is_not_ours(sharing: Engine) -> None:
    """Who joined by register cannot settle without the id."""

    async def main() -> None:
        async with sharing.open(lease=60.0) as one, sharing.open(lease=60.0) as other:
            job_id = await one.dedupe.register("a")
            assert await other.dedupe.register("a") == job_id
            await other.dedupe.complete("a", 1)
            await other.dedupe.fail("a", Planned())
            assert await one.dedupe.is_in_progress("a")
            await one.dedupe.complete("a", 2)
            assert await other.dedupe.wait_for("a", job_id=job_id) == 2

    sharing.run_alone(main)


def test_who_extends_in_time_keeps_the_job_without_an_id_too(engine: Engine) -> None:
    """The registration is remembered as long as it is extended."""

    async def scenario(stores: Any) -> None:
        job_id = await stores.dedupe.register("a")
        for _ in range(3):
            await trio.sleep(engine.unit / 2)
            assert await stores.dedupe.extend("a", job_id)
        await stores.dedupe.complete("a", 1)
        assert await stores.dedupe.wait_for("a", job_id=job_id) == 1

    engine.run(scenario, lease=engine.unit)


def test_a_job_that_was_lost_and_taken_over(engine: Engine) -> None:
    """Its former owner can neither extend, settle nor fail it; its waiters do not get the successor's outcome."""

    async def scenario(stores: Any) -> None:
        dedupe = stores.dedupe
        old = await dedupe.register_or_join("a")
        results: list[Any] = []

        async def wait() -> None:
            results.append(await dedupe.wait_outcome("a", job_id=old.job_id))
            results.append(await dedupe.wait_for("a", job_id=old.job_id))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await engine.pass_by(engine.unit)
            assert not await dedupe.is_in_progress("a")
            assert not await dedupe.extend("a", old.job_id)
            new = await dedupe.register_or_join("a")
            assert new.is_owner
            assert new.job_id != old.job_id
            assert not await dedupe.extend("a", old.job_id)
            await dedupe.complete("a", "old", job_id=old.job_id)
            await dedupe.fail("a", Planned(), job_id=old.job_id)
            await dedupe.complete("a", "new", job_id=new.job_id)
        assert is_lost(results[0])
        assert results[1] is None
        assert is_lost(await dedupe.wait_outcome("a", job_id=old.job_id))
        assert await dedupe.wait_for("a", job_id=new.job_id) == "new"
        assert not await dedupe.extend("a", new.job_id)

    engine.run(scenario, lease=engine.unit)


def test_an_error_is_itself_however_often_it_is_asked_for(engine: Engine) -> None:
    """From the store object that it was given to; each outcome is unwrapped on its own."""

    async def scenario(stores: Any) -> None:
        for error in (Planned("the reason"), KeyError("k"), KeyboardInterrupt(), RemoteFetchError("m.Q", "x")):
            job = await stores.dedupe.register_or_join("a")
            await stores.dedupe.fail("a", error, job_id=job.job_id)
            await stores.dedupe.fail("a", Planned("a second one"), job_id=job.job_id)
            for _ in range(3):
                result = await stores.dedupe.wait_outcome("a", job_id=job.job_id)
                with pytest.raises(type(error)) as caught:
                    result.unwrap()
                assert caught.value is error
            assert await stores.dedupe.wait_for("a", job_id=job.job_id) is None

    engine.run(scenario, lease=60.0)


def test_an_error_travels_without_its_secrets_and_keeps_its_name(sharing: Engine) -> None:
    """However it looks, and however often it is passed on."""
    texts = ["plain", "", "Bearer abc.def", "token=hunter2 x", "\ud800", "\0", "é☃🎉", "x" * 10_000, "key=a " * 200]

    async def main() -> None:
        async with sharing.open(lease=60.0) as one, sharing.open(lease=60.0) as two, sharing.open(lease=60.0) as three:
            for text in texts:
                job = await one.dedupe.register_or_join("a")
                await one.dedupe.fail("a", Planned(text), job_id=job.job_id)
                there = (await two.dedupe.wait_outcome("a", job_id=job.job_id)).error
                assert type(there) is RemoteFetchError
                assert there.type_name == f"{Planned.__module__}.Planned"
                assert RemoteFetchError("x.Y", text).message.startswith(there.message) or text == "\ud800"
                assert "hunter2" not in str(there)
                assert "abc.def" not in str(there)
                job = await two.dedupe.register_or_join("a")
                await two.dedupe.fail("a", there, job_id=job.job_id)
                assert (await two.dedupe.wait_outcome("a", job_id=job.job_id)).error is there
                further = (await three.dedupe.wait_outcome("a", job_id=job.job_id)).error
                assert further.type_name == there.type_name

    sharing.run_alone(main)


def test_the_error_that_settled_is_the_one_that_is_told(sharing: Engine) -> None:
    """Not the one of who came too late with it."""

    async def main() -> None:
        async with sharing.open(lease=60.0) as one, sharing.open(lease=60.0) as two:
            job = await one.dedupe.register_or_join("a")
            await two.dedupe.fail("a", Planned("first"), job_id=job.job_id)
            await one.dedupe.fail("a", Planned("second"), job_id=job.job_id)
            result = await one.dedupe.wait_outcome("a", job_id=job.job_id)
            assert isinstance(result.error, RemoteFetchError)
            assert result.error.message == "first"

    sharing.run_alone(main)


def test_an_error_is_let_go_after_its_lease(engine: Engine) -> None:
    """Within a minute, without being touched: it holds on to tracebacks, and so to much else."""

    async def scenario(stores: Any) -> None:
        for _ in range(2):
            job = await stores.dedupe.register_or_join("a")
            error = Planned()
            gone = weakref.ref(error)
            await stores.dedupe.fail("a", error, job_id=job.job_id)
            del error
            await trio.sleep(200.0 if engine.virtual else 1.5 * engine.unit)
            gc.collect()
            assert gone() is None

    engine.run(scenario, lease=engine.unit / 2)


def test_bad_arguments_settle_nothing(engine: Engine) -> None:
    """They are named."""

    async def scenario(stores: Any) -> None:
        dedupe = stores.dedupe
        job_id = await dedupe.register("a")
        for error in (None, "text", Planned, 5):
            with pytest.raises(TypeError, match=r"^error"):
                await dedupe.fail("a", error)
        bad: Any
        for bad in ("", 5, b"x", [], "\ud800"):
            for call in (
                dedupe.wait_for,
                dedupe.wait_outcome,
                lambda key, job_id: dedupe.complete(key, 1, job_id=job_id),
                lambda key, job_id: dedupe.fail(key, Planned(), job_id=job_id),
                dedupe.extend,
            ):
                with pytest.raises((TypeError, ValueError), match=r"^job_id"):
                    await call("a", job_id=bad)
                with pytest.raises((TypeError, ValueError), match=r"^hash"):
                    await call(bad, job_id=job_id)
            for one in (dedupe.register, dedupe.register_or_join, dedupe.is_in_progress):
                with pytest.raises((TypeError, ValueError), match=r"^hash"):
                    await one(bad)
        assert await dedupe.extend("a", job_id)

    engine.run(scenario, lease=60.0)


@pytest.mark.parametrize(
    "lease", [0, -1, float("nan"), float("inf"), True, "10", None, 10**400], ids=lambda given: str(given)[:5]
)
def test_a_lease_is_finite_and_greater_than_zero(engine: Engine, lease: Any) -> None:
    """0 does not mean for ever."""

    async def main() -> None:
        with pytest.raises((TypeError, ValueError), match=r"^lease"):
            async with engine.open(lease=lease):
                pass

    engine.run_alone(main)


def test_a_value_that_cannot_be_decoded_is_a_store_error(sharing: Engine) -> None:
    """The store cannot do its work: that is neither a lost owner nor an absent value."""

    class Broken:
        def encode(self, value: Any, /) -> bytes:
            return b"x"

        def decode(self, data: bytes, /) -> Any:
            raise ValueError("no")

    async def scenario(stores: Any) -> None:
        job = await stores.dedupe.register_or_join("a")
        await stores.dedupe.complete("a", 1, job_id=job.job_id)
        for wait in (stores.dedupe.wait_for, stores.dedupe.wait_outcome):
            with pytest.raises(StoreError, match="cannot decode"):
                await wait("a", job_id=job.job_id)

    sharing.run(scenario, codec=Broken(), lease=60.0)


def test_jobs_are_listed_in_their_order(engine: Engine) -> None:
    """Pending, completed and failed, in pages, with their instants."""

    async def scenario(stores: Any) -> None:
        dedupe = stores.dedupe
        for key in "cab":
            await dedupe.register(key)
        await dedupe.complete("a", 1)
        await dedupe.fail("c", Planned())
        jobs = await dedupe.list_jobs()
        assert [(job.hash, job.status) for job in jobs] == [("c", "failed"), ("a", "completed"), ("b", "pending")]
        assert [job.hash for offset in (0, 2, 4) for job in await dedupe.list_jobs(offset, 2)] == ["c", "a", "b"]
        assert all(59 < job.expires_at - job.created_at <= 61 for job in jobs)
        stats = await dedupe.get_stats()
        assert (stats.active_jobs, stats.total_jobs_processed, stats.expired_jobs) == (1, 3, 0)
        assert 0 <= stats.oldest_job_age < 5
        await dedupe.clear("b")
        assert [job.hash for job in await dedupe.list_jobs()] == ["c", "a"]

    engine.run(scenario, lease=60.0)

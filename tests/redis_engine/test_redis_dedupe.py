"""Jobs on a server: outcomes between store objects, losing and taking over, waiting through outages."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import outcome
import pytest
import trio

from trio_renew import JobLost, RemoteFetchError, StoreError
from trio_renew.stores import _redis_dedupe
from trio_renew.stores._redis_link import _Connection
from trio_renew.stores.redis import open_redis_stores

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .conftest import Server


class Broken(Exception):
    """What the owners of these tests fail with."""

    def __str__(self) -> str:
        return self.args[0] if self.args else str(1 // 0)


async def in_task(nursery: trio.Nursery, call: Callable[[], Awaitable[Any]], into: list[Any]) -> None:
    """Begin to wait for something, and give it the time to reach the server."""

    async def wait() -> None:
        into.append(await call())

    nursery.start_soon(wait)
    await trio.sleep(0.02)


def lost(result: outcome.Outcome[Any]) -> bool:
    return isinstance(result, outcome.Error) and isinstance(result.error, JobLost)


@pytest.mark.parametrize("size", [1, _redis_dedupe._MOST_PUBLISHED])
async def test_a_value_reaches_another_store_object(server: Server, prefix: str, size: int) -> None:
    found: list[Any] = []
    async with (
        open_redis_stores(server.url, prefix=prefix) as one,
        open_redis_stores(server.url, prefix=prefix) as other,
    ):
        job = await one.dedupe.register_or_join("a")
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for job_id in (job.job_id, None):
                    await in_task(nursery, lambda job_id=job_id: other.dedupe.wait_for("a", job_id=job_id), found)
                await one.dedupe.complete("a", "x" * size, job_id=job.job_id)
        assert found == ["x" * size] * 2
        # For who joined it is kept, for nobody else.
        assert await other.dedupe.wait_for("a", job_id=job.job_id) == "x" * size
        assert await other.dedupe.wait_for("a") is None
        assert lost(await other.dedupe.wait_outcome("b", job_id=job.job_id))


async def test_an_error_is_itself_here_and_remote_elsewhere(server: Server, prefix: str) -> None:
    error = Broken("no luck, token=abc")
    found: list[Any] = []
    async with (
        open_redis_stores(server.url, prefix=prefix) as one,
        open_redis_stores(server.url, prefix=prefix) as other,
    ):
        job_id = await one.dedupe.register("a")
        async with trio.open_nursery() as nursery:
            await in_task(nursery, lambda: one.dedupe.wait_outcome("a"), found)
            await in_task(nursery, lambda: other.dedupe.wait_outcome("a"), found)
            await one.dedupe.fail("a", error)
            # A second word on it changes nothing.
            await one.dedupe.fail("a", Broken("another"), job_id=job_id)
        found.sort(key=lambda result: type(result.error).__name__)
        assert found[0].error is error
        remote = found[1].error
        assert isinstance(remote, RemoteFetchError)
        assert remote.type_name == f"{Broken.__module__}.Broken"
        assert "no luck" in remote.message
        assert "abc" not in remote.message
        # It keeps its name when it is passed on, and an error without a text is told without one.
        for passed, name in ((remote, remote.type_name), (Broken(), remote.type_name)):
            job_id = await one.dedupe.register("b")
            await one.dedupe.fail("b", passed)
            again = await other.dedupe.wait_outcome("b", job_id=job_id)
            assert isinstance(again, outcome.Error)
            assert isinstance(again.error, RemoteFetchError)
            assert again.error.type_name == name
        assert again.error.message == ""
        assert await other.dedupe.wait_for("b", job_id=job_id) is None


async def test_errors_are_kept_as_long_as_they_can_be_asked_for(
    server: Server, prefix: str, mock_clock: trio.testing.MockClock
) -> None:
    async with open_redis_stores(server.url, prefix=prefix, lease=1.0) as stores:
        for number in range(3):
            job_id = await stores.dedupe.register("a")
            await stores.dedupe.fail("a", Broken(str(number)))
            found = await stores.dedupe.wait_outcome("a", job_id=job_id)
            assert isinstance(found, outcome.Error)
            assert isinstance(found.error, Broken)
            assert len(stores.dedupe._errors) == 1
            mock_clock.jump(2.5)


async def test_registrations_that_have_run_out_are_forgotten(
    server: Server, prefix: str, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_redis_dedupe, "_MANY", 2)
    async with open_redis_stores(server.url, prefix=prefix, lease=5.0) as stores:
        kept = await stores.dedupe.register("kept")
        for number in range(4):
            await stores.dedupe.register(f"k{number}")
        assert len(stores.dedupe._registered) == 5
        mock_clock.jump(4)
        assert await stores.dedupe.extend("kept", kept) is True
        mock_clock.jump(2)
        await stores.dedupe.register("last")
        # As many as may be are not looked at.
        assert list(stores.dedupe._registered) == ["k3", "kept", "last"]
        # One that somebody else owns is none of ours.
        job = await stores.dedupe.register_or_join("theirs")
        assert await stores.dedupe.register("theirs") == job.job_id
        await stores.dedupe.complete("theirs", 1)
        assert await stores.dedupe.is_in_progress("theirs") is True
        assert await stores.dedupe.extend("theirs", job.job_id) is True
        assert await stores.dedupe.extend("theirs", "another") is False


async def test_what_the_codec_cannot_carry(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        job = await stores.dedupe.register_or_join("a")
        with pytest.raises(StoreError, match="cannot encode"):
            await stores.dedupe.complete("a", object(), job_id=job.job_id)
        assert await stores.dedupe.is_in_progress("a") is True
        await stores.dedupe.complete("a", None, job_id=job.job_id)
        assert (await stores.dedupe.wait_outcome("a", job_id=job.job_id)).unwrap() is None
        server.ask("SET", f"{prefix}o:b:x", "0" * 16 + "Vnot json")
        with pytest.raises(StoreError, match="cannot decode"):
            await stores.dedupe.wait_for("b", job_id="x")


async def test_a_cancelled_registration_leaves_no_job(own_server: Server) -> None:
    async with open_redis_stores(own_server.url) as stores:
        await stores.cache.get("a")
        own_server.pause()
        with trio.move_on_after(0.02) as scope:
            await stores.dedupe.register_or_join("a")
        assert scope.cancelled_caught
        own_server.resume()
        assert (await stores.dedupe.register_or_join("a")).is_owner


async def test_a_cancelled_waiter_leaves_nothing(server: Server, prefix: str) -> None:
    found: list[Any] = []
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        job_id = await stores.dedupe.register("a")
        async with trio.open_nursery() as nursery:
            await in_task(nursery, lambda: stores.dedupe.wait_for("a"), found)
            with trio.move_on_after(0.02) as scope:
                await stores.dedupe.wait_for("a")
            assert scope.cancelled_caught
            assert len(stores.dedupe._waiters) == 1
            await stores.dedupe.complete("a", 1, job_id=job_id)
        assert found == [1]
        assert not stores.dedupe._waiters
        with trio.fail_after(5):
            while f"{prefix}d:a".encode() in server.ask("PUBSUB", "CHANNELS", f"{prefix}*"):
                await trio.sleep(0.002)


async def test_a_waiter_outlives_the_loss_of_its_connection(server: Server, prefix: str) -> None:
    found: list[Any] = []
    async with (
        open_redis_stores(server.url, prefix=prefix) as one,
        open_redis_stores(server.url, prefix=prefix) as other,
    ):
        job = await one.dedupe.register_or_join("a")
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                await in_task(nursery, lambda: other.dedupe.wait_for("a", job_id=job.job_id), found)
                for _ in range(2):
                    server.ask("CLIENT", "KILL", "TYPE", "pubsub")
                    await trio.sleep(0.02)
                await one.dedupe.complete("a", 1, job_id=job.job_id)
        assert found == [1]


@pytest.mark.parametrize("losses", [1, 2])
async def test_a_connection_that_is_lost_under_a_look_is_looked_over_again_once(
    own_server: Server, monkeypatch: pytest.MonkeyPatch, losses: int
) -> None:
    request = _Connection.request
    left = 0

    def lose(connection: _Connection, command: Any, patience: float | None = None) -> Any:
        nonlocal left
        answer = request(connection, command, patience)
        if left and command[0] in (b"EVAL", b"EVALSHA"):
            left -= 1
            own_server.ask("CLIENT", "KILL", "SKIPME", "yes")
        return answer

    monkeypatch.setattr(_Connection, "request", lose)
    async with open_redis_stores(own_server.url) as stores:
        job = await stores.dedupe.register_or_join("a")
        await stores.dedupe.complete("a", 1, job_id=job.job_id)
        left = losses
        with trio.fail_after(5):
            if losses == 1:
                assert await stores.dedupe.wait_for("a", job_id=job.job_id) == 1
            else:
                with pytest.raises(StoreError):
                    await stores.dedupe.wait_for("a", job_id=job.job_id)


async def test_who_is_cancelled_while_looking_again_leaves_the_rest_in_order(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = _Connection.request
    looks = 0

    def lose(connection: _Connection, command: Any, patience: float | None = None) -> Any:
        nonlocal looks
        answer = request(connection, command, patience)
        if armed and command[0] in (b"EVAL", b"EVALSHA"):
            looks += 1
            if looks == 1:
                own_server.ask("CLIENT", "KILL", "SKIPME", "yes")
                own_server.pause()
        return answer

    armed = False
    monkeypatch.setattr(_Connection, "request", lose)
    async with open_redis_stores(own_server.url) as stores:
        job = await stores.dedupe.register_or_join("a")
        await stores.dedupe.complete("a", 1, job_id=job.job_id)
        armed = True
        with trio.move_on_after(0.1) as scope:
            await stores.dedupe.wait_for("a", job_id=job.job_id)
        assert scope.cancelled_caught
        assert looks == 1  # it was waiting for another connection
        own_server.resume()
        with trio.fail_after(5):
            assert await stores.dedupe.wait_for("a", job_id=job.job_id) == 1


async def test_a_waiter_whose_server_dies_gets_a_store_error(own_server: Server) -> None:
    async with open_redis_stores(own_server.url) as stores:
        await stores.dedupe.register("a")
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with pytest.raises(StoreError):
                        await stores.dedupe.wait_outcome("a")

                nursery.start_soon(wait)
                await trio.sleep(0.02)
                own_server.kill()
        own_server.start()
        assert lost(await stores.dedupe.wait_outcome("a"))


async def test_jobs_are_listed_cleared_and_counted(server: Server, prefix: str) -> None:
    found: list[Any] = []
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        dedupe = stores.dedupe
        ids = [await dedupe.register(hash) for hash in ("x:é:1", "x:2", "x:3", "y:1")]
        await dedupe.complete("x:2", 1)
        await dedupe.fail("x:3", Broken("no"))
        jobs = await dedupe.list_jobs()
        assert [(job.hash, job.job_id, job.status) for job in jobs] == [
            ("x:é:1", ids[0], "pending"),
            ("x:2", ids[1], "completed"),
            ("x:3", ids[2], "failed"),
            ("y:1", ids[3], "pending"),
        ]
        assert all(0 < job.expires_at - job.created_at < 11 for job in jobs)
        assert [job.job_id for job in await dedupe.list_jobs(1, 2)] == ids[1:3]
        stats = await dedupe.get_stats()
        assert (stats.active_jobs, stats.total_jobs_processed, stats.expired_jobs) == (2, 4, 0)
        assert 0 < stats.oldest_job_age < 5
        async with trio.open_nursery() as nursery:
            await in_task(nursery, lambda: dedupe.wait_outcome("x:é:1"), found)
            await dedupe.clear("x:")
        assert lost(found[0])
        assert [job.hash for job in await dedupe.list_jobs()] == ["y:1"]
        assert await dedupe.wait_for("x:2", job_id=ids[1]) is None
        await dedupe.clear()
        assert await dedupe.list_jobs() == []
        assert await dedupe.cleanup() == 0


async def test_what_ends_while_it_is_listed_is_left_out(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix, lease=0.03) as stores:
        for number in range(300):
            await stores.dedupe.register(f"a{number}")
            await stores.dedupe.complete(f"b{number}", 1, job_id=await stores.dedupe.register(f"b{number}"))
        with trio.move_on_after(0.2):
            while jobs := await stores.dedupe.list_jobs(limit=1000):
                assert all(job.created_at > 1e9 for job in jobs)
        assert await stores.dedupe.list_jobs() == []


async def test_the_owner_of_a_job_is_killed(own_server: Server, tmp_path: Path) -> None:
    """Another process owns the job and dies: the waiter finds it lost within a lease, and exactly one takes over."""
    code = (
        "import os, sys, trio\n"
        "from trio_renew.stores.redis import open_redis_stores\n"
        "async def main():\n"
        "    async with open_redis_stores(sys.argv[1], lease=0.6) as stores:\n"
        "        assert (await stores.dedupe.register_or_join('a')).is_owner\n"
        "        os.write(1, b'owner')\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    process = await trio.lowlevel.open_process([sys.executable, "-c", code, own_server.url], stdout=-1)
    assert process.stdout is not None
    async with process.stdout as output:
        assert await output.receive_some() == b"owner"
        async with open_redis_stores(own_server.url, lease=0.6) as stores:
            joined = await stores.dedupe.register_or_join("a")
            assert not joined.is_owner
            started = trio.current_time()
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
            owners: list[bool] = []

            async def take_over() -> None:
                assert await stores.dedupe.wait_for("a", job_id=joined.job_id) is None
                owners.append((await stores.dedupe.register_or_join("a")).is_owner)

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(take_over)
            assert trio.current_time() - started < 0.6 + 0.3
            assert sorted(owners) == [False] * 4 + [True]

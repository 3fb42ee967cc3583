"""The SQLite engine between real processes: killed writers and owners, shared limits, one owner, the bus."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

import trio_renew.stores
from trio_renew.stores.sqlite import open_sqlite_bus, open_sqlite_stores

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = """
import sys, trio
from trio_renew._policy.capacity import RateLimitConfig
from trio_renew.stores.sqlite import open_sqlite_bus, open_sqlite_stores

def say(*words):
    print(*words, flush=True)

path = sys.argv[1]
"""


@contextmanager
def child(script: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Run a script in another process, which is dead afterwards."""
    env = {**os.environ, "PYTHONPATH": str(Path(trio_renew.stores.__file__).parents[2])}
    command = [sys.executable, "-c", HEAD + script, *map(str, args)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with trio.fail_after(20):
        line: str = await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
    if not line:
        assert process.stderr is not None
        raise AssertionError(process.stderr.read())
    return line.strip()


WRITER = """
async def main():
    async with open_sqlite_stores(path, max_items=50) as stores:
        number = 0
        while True:
            text = f"{number}" * 200
            await stores.cache.set(f"k{number % 70}", [number, text], 60, tags=["all", f"n{number % 7}"])
            await stores.rate_limit.record("r")
            if number == 5:
                say("writing")
            number += 1

trio.run(main)
"""


async def test_killed_writers_leave_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    for _ in range(2):
        with child(WRITER, path) as one, child(WRITER, path) as two:
            await line_of(one)
            await line_of(two)
            await trio.sleep(0.1)
            one.send_signal(signal.SIGKILL)
            await trio.sleep(0.02)
            two.send_signal(signal.SIGKILL)
        async with open_sqlite_stores(path) as stores:
            entries = await stores.cache.list_entries(0, 1000)
            assert 0 < len(entries) <= 50
            for entry in entries:
                number, text = await stores.cache.get(entry.hash)
                assert entry.hash == f"k{number % 70}"
                assert text == f"{number}" * 200
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            counted = connection.execute("SELECT COUNT(*), SUM(size) FROM renew_cache").fetchone()
            assert connection.execute("SELECT items, bytes FROM renew_usage").fetchone() == counted
            tags = connection.execute("SELECT COUNT(*), COUNT(DISTINCT entry) FROM renew_tags").fetchone()
            assert tags == (2 * counted[0], counted[0])
            assert connection.execute(
                "SELECT COUNT(*) FROM renew_tags WHERE entry NOT IN (SELECT id FROM renew_cache)"
            ).fetchone() == (0,)


OWNER = """
async def main():
    async with open_sqlite_stores(path, lease=0.6) as stores:
        job = await stores.dedupe.register_or_join("j")
        say(job.is_owner)
        while await stores.dedupe.extend("j", job.job_id):
            await trio.sleep(0.1)

trio.run(main)
"""


async def test_a_killed_owner_is_replaced_once_within_a_lease(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    taken: list[tuple[int, float]] = []
    found: list[Any] = []

    async def join(dedupe: Any, number: int) -> None:
        while True:
            job = await dedupe.register_or_join("j")
            if job.is_owner:
                taken.append((number, time.monotonic()))
                await trio.sleep(0.2)
                await dedupe.complete("j", number, job_id=job.job_id)
                found.append(number)
                return
            result = await dedupe.wait_outcome("j", job_id=job.job_id)
            if type(result).__name__ == "Value":
                found.append(result.unwrap())
                return

    with child(OWNER, path) as owner:
        assert await line_of(owner) == "True"
        async with open_sqlite_stores(path, lease=0.6) as one, open_sqlite_stores(path, lease=0.6) as two:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    for number in range(10):
                        nursery.start_soon(join, (one, two)[number % 2].dedupe, number)
                    # Several leases: the owner keeps it as long as it lives.
                    await trio.sleep(1.5)
                    assert taken == []
                    killed = time.monotonic()
                    owner.send_signal(signal.SIGKILL)
    assert len(taken) == 1
    assert taken[0][1] - killed < 0.6 + 1.0  # what a busy machine needs
    assert found == [taken[0][0]] * 10


FLEET = """
async def main():
    granted = owned = 0
    limit = RateLimitConfig(limit=40, window=600.0)
    async with open_sqlite_stores(path, default_config=limit) as stores:
        say("ready")
        sys.stdin.readline()
        async def acquire():
            nonlocal granted
            for _ in range(4):
                got = await stores.rate_limit.acquire("r")
                granted += got
        async def own():
            nonlocal owned
            for number in range(10):
                job = await stores.dedupe.register_or_join(f"j{number}")
                owned += job.is_owner
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(acquire)
            nursery.start_soon(own)
        say(granted, owned)

trio.run(main)
"""


async def test_limits_and_jobs_are_atomic_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with child(FLEET, path) as one, child(FLEET, path) as two, child(FLEET, path) as three:
        fleet = (one, two, three)
        for process in fleet:
            assert await line_of(process) == "ready"
        for process in fleet:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        results = [[int(word) for word in (await line_of(process)).split()] for process in fleet]
    assert sum(granted for granted, _ in results) == 40
    assert sum(owned for _, owned in results) == 10


COMPLETER = """
async def main():
    async with open_sqlite_stores(path) as stores:
        job = await stores.dedupe.register_or_join("j")
        failing = await stores.dedupe.register_or_join("k")
        say(job.job_id, failing.job_id)
        sys.stdin.readline()
        await stores.dedupe.complete("j", {"x": 1}, job_id=job.job_id)
        await stores.dedupe.fail("k", LookupError("gone"), job_id=failing.job_id)
        say("done")
        sys.stdin.readline()

trio.run(main)
"""


async def test_an_outcome_comes_from_another_process(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with child(COMPLETER, path) as process:
        job_id, failing = (await line_of(process)).split()
        async with open_sqlite_stores(path) as stores:
            found: list[Any] = []

            async def wait() -> None:
                found.append(await stores.dedupe.wait_for("j", job_id=job_id))
                found.append(await stores.dedupe.wait_outcome("k", job_id=failing))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0.1)
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
                assert await line_of(process) == "done"
            assert found[0] == {"x": 1}
            assert (found[1].error.type_name, found[1].error.message) == ("builtins.LookupError", "gone")


SPEAKER = """
class Ear:
    name = "n"

    def invalidated(self, what, key):
        say(what, repr(key))

    def missed(self):
        say("missed")

    def failed(self, error):
        say("failed")

async def main():
    async with open_sqlite_bus(path) as bus:
        ear = Ear()
        bus.attach(ear)
        say("ready")
        while True:
            line = await trio.to_thread.run_sync(sys.stdin.readline)
            if not line:
                return
            bus.publish(ear, "key", (line.strip(), 1))

trio.run(main)
"""


async def test_the_bus_spans_processes(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    heard: list[Any] = []
    send, receive = trio.open_memory_channel[Any](10)

    class Ear:
        name = "n"

        def invalidated(self, what: str, key: object) -> None:
            send.send_nowait((what, key))

        def missed(self) -> None:
            heard.append("missed")

        def failed(self, error: Exception) -> None:
            heard.append(error)

    with child(SPEAKER, path) as process:
        assert await line_of(process) == "ready"
        async with open_sqlite_bus(path) as bus:
            ear = Ear()
            bus.attach(ear)
            assert process.stdin is not None
            process.stdin.write("hello\n")
            process.stdin.flush()
            with trio.fail_after(5):
                assert await receive.receive() == ("key", ("hello", 1))
            bus.publish(ear, "tag", "t")
            assert await line_of(process) == "tag 't'"
            process.send_signal(signal.SIGKILL)
            await trio.sleep(0.1)
    assert heard == []

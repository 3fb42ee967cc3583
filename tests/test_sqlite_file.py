"""The file of the SQLite engine: made, opened, locked, damaged, full, gone; and the end of a bundle."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_renew.stores
from trio_renew._errors import StoreError
from trio_renew._owner import Owner
from trio_renew.stores import _sqlite_db
from trio_renew.stores._sqlite_db import PATIENCE, Database
from trio_renew.stores._sqlite_schema import MIGRATIONS, connect, migrate
from trio_renew.stores.sqlite import open_sqlite_bus, open_sqlite_stores
from trio_renew.testing import cancel_at_every_checkpoint, victim

if TYPE_CHECKING:
    from collections.abc import Iterator


def raw(path: Path, *statements: str) -> list[Any]:
    """Do something to the file behind the store's back; gives what the last statement gives."""
    rows: list[Any] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the write lock of the file, as another process would."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


async def test_opening_touches_no_file(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        assert not path.exists()
        await stores.cache.get("a")
        assert path.exists()


async def test_the_file_is_for_its_user_only(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    old = os.umask(0)
    try:
        async with open_sqlite_stores(path) as stores:
            await stores.cache.set("a", 1, 0)
            assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {
                "s.db": 0o600,
                "s.db-wal": 0o600,
                "s.db-shm": 0o600,
            }
    finally:
        os.umask(old)
    assert [file.name for file in tmp_path.iterdir()] == ["s.db"]


async def test_what_was_stored_outlives_the_bundle(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        await stores.cache.set("a", {"x": [1]}, 60, tags=["t"])
        await stores.rate_limit.acquire("r")
        await stores.adaptive.record("r", "user")
        job = await stores.dedupe.register_or_join("j")
    async with open_sqlite_stores(str(path)) as stores:
        assert await stores.cache.get("a") == {"x": [1]}
        assert await stores.cache.invalidate_tag("t") == 1
        assert (await stores.rate_limit.get_status("r")).remaining == 59
        assert (await stores.adaptive.get_status("r")).recent_user_activity == 1
        assert await stores.dedupe.register_or_join("j") == type(job)(job.job_id, is_owner=False)


async def test_a_relative_path_means_the_same_file_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_sqlite_stores("s.db") as stores:
        monkeypatch.chdir("/")
        await stores.cache.set("a", 1, 0)
    assert (tmp_path / "s.db").exists()


async def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must be what a file can be called, not .*ud800"):
        async with open_sqlite_stores(tmp_path / "\ud800.db"):
            raise AssertionError
    # This is how names that are not UTF-8 look.
    async with open_sqlite_stores(tmp_path / "\udcff.db") as stores:
        await stores.cache.set("a", 1, 0)
        assert await stores.cache.get("a") == 1


async def test_a_database_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_sqlite_stores(":memory:") as stores, open_sqlite_stores(":memory:") as others:
        await stores.cache.set("a", 1, 0)
        assert await stores.cache.get("a") == 1
        assert await others.cache.get("a") is None
        job = await stores.dedupe.register_or_join("j")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stores.dedupe.wait_for, "j")
            await wait_all_tasks_blocked()
            await stores.dedupe.complete("j", 1, job_id=job.job_id)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "error"), [(b"x", TypeError), (7, TypeError), (None, TypeError), ("", ValueError), ("a\0b", ValueError)]
)
async def test_a_bad_path_is_refused(path: Any, error: type[Exception]) -> None:
    for opener in (open_sqlite_stores, open_sqlite_bus):
        with pytest.raises(error, match="path"):
            async with opener(path):
                raise AssertionError("it must not open")


async def test_a_path_of_bytes_is_refused() -> None:
    class BytesPath:
        def __fspath__(self) -> bytes:
            return b"x"

    with pytest.raises(TypeError, match="path"):
        async with open_sqlite_stores(BytesPath()):  # type: ignore[arg-type]
            raise AssertionError("it must not open")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("prefix", 7, TypeError),
        ("prefix", "\ud800", ValueError),
        ("lease", 0, ValueError),
        ("max_items", 0, ValueError),
        ("codec", object(), TypeError),
        ("clock", 7, TypeError),
    ],
)
async def test_a_bad_option_is_refused(tmp_path: Path, name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        async with open_sqlite_stores(tmp_path / "s.db", **{name: value}):
            raise AssertionError("it must not open")


# ----------------------------------------------------------------------------------------------- files that are no good


async def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        await stores.cache.set("a", 1, 0)
    raw(path, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    async with open_sqlite_stores(path) as stores:
        with pytest.raises(StoreError, match=r"s\.db.*newer release"):
            await stores.cache.get("a")
        with pytest.raises(StoreError, match="newer release"):
            await stores.rate_limit.acquire("a")
        assert path.read_bytes() == before
        raw(path, f"PRAGMA user_version = {len(MIGRATIONS)}")
        assert await stores.cache.get("a") == 1


async def test_a_newer_file_keeps_its_journal_mode(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    raw(path, "CREATE TABLE t (x)", "PRAGMA user_version = 99")
    before = path.read_bytes()
    async with open_sqlite_stores(path) as stores:
        with pytest.raises(StoreError, match="version 99"):
            await stores.cache.set("a", 1, 0)
    assert path.read_bytes() == before


async def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    raw(path, "CREATE TABLE t (x)", "PRAGMA user_version = 1")
    before = path.read_bytes()
    async with open_sqlite_stores(path) as stores:
        with pytest.raises(StoreError, match="another program"):
            await stores.cache.set("a", 1, 0)
    assert path.read_bytes() == before


async def test_an_unversioned_database_of_the_user_may_be_shared(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    raw(path, "CREATE TABLE mine (x)", "INSERT INTO mine VALUES (7)")
    async with open_sqlite_stores(path) as stores:
        await stores.cache.set("a", 1, 0)
        await stores.cache.clear()
    assert raw(path, "SELECT x FROM mine") == [(7,)]


async def test_a_database_with_tables_of_our_names_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    raw(path, "CREATE TABLE renew_jobs (mine)")
    async with open_sqlite_stores(path) as stores:
        with pytest.raises(StoreError, match="renew_jobs already exists"):
            await stores.cache.set("a", 1, 0)
    assert raw(path, "SELECT name FROM sqlite_master") == [("renew_jobs",)]
    assert raw(path, "PRAGMA user_version") == [(0,)]


async def test_a_corrupt_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    before = path.read_bytes()
    async with open_sqlite_stores(path) as stores:
        for _ in range(2):
            with pytest.raises(StoreError, match="not a database"):
                await stores.cache.get("a")
        assert path.read_bytes() == before
        path.unlink()
        assert await stores.cache.get("a") is None


async def test_a_damaged_page_is_an_error_of_the_call(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        for number in range(200):
            await stores.cache.set(f"k{number}", "x" * 500, 0)
    data = bytearray(path.read_bytes())
    for page in range(20, len(data) // 4096):
        data[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(data)
    async with open_sqlite_stores(path) as stores:
        with pytest.raises(StoreError, match="malformed"):
            for number in range(200):
                await stores.cache.get(f"k{number}")


async def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "later" / "s.db"
    async with open_sqlite_stores(path) as stores:
        with pytest.raises(StoreError, match="No such file"):
            await stores.dedupe.register("a")
        path.parent.mkdir()
        assert await stores.dedupe.register("a")


async def test_a_read_only_folder() -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "s.db"
        async with open_sqlite_stores(path) as stores:
            await stores.cache.set("a", 1, 0)
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        user = os.geteuid()
        if user == 0:
            # No permission stops root.
            os.seteuid(65534)
        try:
            async with open_sqlite_stores(path) as stores:
                for call in (lambda: stores.cache.set("b", 1, 0), lambda: stores.cache.get("a")):
                    with pytest.raises(StoreError, match=r"s\.db cannot be used"):
                        await call()
                os.seteuid(user)
                Path(folder).chmod(0o755)
                path.chmod(0o600)
                assert await stores.cache.get("a") == 1
                await stores.cache.set("b", 2, 0)
        finally:
            os.seteuid(user)


async def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        await stores.cache.set("a", "old", 0, tags=["t"])
        database = stores.cache._database
        await database.run(lambda connection, _: connection.execute("PRAGMA max_page_count = 1"))
        with pytest.raises(StoreError, match="full"):
            for number in range(1000):
                await stores.cache.set(f"b{number}", "x" * 10_000, 0)
        with pytest.raises(StoreError, match="full"):
            await stores.cache.set("a", "x" * 100_000, 0)
        assert await stores.cache.get("a") == "old"
        await database.run(lambda connection, _: connection.execute("PRAGMA max_page_count = 1000000"))
        await stores.cache.set("a", "x" * 100_000, 0)
        assert await stores.cache.invalidate_tag("t") == 0


FULL = """
import resource, signal, sys, trio
from trio_renew._errors import StoreError
from trio_renew.stores.sqlite import open_sqlite_stores

async def main():
    async with open_sqlite_stores(sys.argv[1]) as stores:
        await stores.cache.set("a", 1, 0)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            for number in range(100):
                await stores.cache.set(f"k{number}", "x" * 10_000, 0)
        except StoreError as exc:
            print("StoreError", number > 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert await stores.cache.get("a") == 1
        assert await stores.cache.get("k0") == "x" * 10_000
        await stores.cache.set("b", 2, 0)

trio.run(main)
"""


def test_a_write_that_the_system_refuses_loses_nothing(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(trio_renew.stores.__file__).parents[2])}
    command = [sys.executable, "-c", FULL, str(tmp_path / "s.db")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=env)
    assert (result.stdout, result.stderr) == ("StoreError True\n", "")


async def test_a_file_that_is_removed_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        await stores.cache.set("a", 1, 0)
        for file in tmp_path.iterdir():
            file.unlink()
        await trio.sleep(0.06)
        assert await stores.cache.get("a") is None
        await stores.cache.set("a", 2, 0)
        assert raw(path, "SELECT value FROM renew_cache") == [(b"2",)]


async def test_an_older_file_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        await stores.cache.set("a", 1, 0)
    steps = (*MIGRATIONS, ("CREATE TABLE renew_more (x)", "INSERT INTO renew_more VALUES (7)"))
    with closing(connect(str(path))) as connection:
        broken = (*MIGRATIONS, ("CREATE TABLE renew_more (x)", "NONSENSE"))
        with pytest.raises(sqlite3.OperationalError, match="NONSENSE"):
            migrate(connection, broken)
        connection.execute("ROLLBACK")
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        migrate(connection, steps)
        migrate(connection, steps)
        assert connection.execute("SELECT x FROM renew_more").fetchall() == [(7,)]
        assert connection.execute("SELECT hash FROM renew_cache").fetchall() == [("a",)]
        with pytest.raises(StoreError, match="newer release"):
            migrate(connection)


def test_several_may_make_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s.db"

    async def main(number: int) -> None:
        async with open_sqlite_stores(path) as stores:
            await stores.cache.set(f"k{number}", number, 0)

    threads = [threading.Thread(target=trio.run, args=(main, number)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raw(path, "SELECT COUNT(*) FROM renew_cache") == [(12,)]
    assert raw(path, "SELECT items, bytes FROM renew_usage") == [(12, 14)]


async def test_prefixes_see_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path, prefix="a:") as one, open_sqlite_stores(path, prefix="b:") as two:
        await one.cache.set("k", 1, 0, tags=["t"])
        await one.rate_limit.acquire("r")
        await one.adaptive.acquire("r", "user")
        job = await one.dedupe.register_or_join("j")
        assert await two.cache.get("k") is None
        assert await two.cache.invalidate_tag("t") == 0
        assert await two.rate_limit.list_resources() == []
        assert (await two.adaptive.get_status("r")).remaining == 60
        assert (await two.dedupe.register_or_join("j")).is_owner
        assert await two.dedupe.wait_for("j", job_id=job.job_id) is None
        for store in (two.cache, two.dedupe, two.rate_limit, two.adaptive):
            await store.clear()
        assert await one.cache.get("k") == 1
        assert (await one.rate_limit.get_status("r")).remaining == 59
        assert (await one.adaptive.get_status("r")).remaining == 59
        assert await one.dedupe.is_in_progress("j")


# ---------------------------------------------------------------------------------------------------------------- locks


async def test_waiting_for_a_lock_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        await stores.cache.set("a", 1, 0)
        with locked(path) as connection:
            started = time.monotonic()
            with trio.move_on_after(0.2) as scope:
                await stores.cache.set("a", 2, 0)
            assert scope.cancelled_caught
            assert time.monotonic() - started < 2.0
            assert await stores.cache.get("a") == 1
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stores.cache.set, "a", 3, 0)
                await trio.sleep(0.1)
                connection.execute("COMMIT")
        assert await stores.cache.get("a") == 3


async def test_a_lock_that_is_never_released_is_an_error(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        await stores.cache.set("a", 1, 0)
        with locked(path):
            started = trio.current_time()
            with pytest.raises(StoreError, match="locked for 5 s"):
                await stores.cache.set("a", 2, 0)
            assert PATIENCE <= trio.current_time() - started < PATIENCE + 0.1
        await stores.cache.set("a", 3, 0)
        assert await stores.cache.get("a") == 3


async def test_a_locked_file_can_be_made_ready_later(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    raw(path, "CREATE TABLE mine (x)")
    async with open_sqlite_stores(path) as stores:
        with locked(path) as connection:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stores.cache.set, "a", 1, 0)
                await trio.sleep(0.15)
                connection.execute("COMMIT")
        assert await stores.cache.get("a") == 1


async def test_waiting_for_a_turn_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sqlite_db, "PATIENCE", 0.05)
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        turn = stores.cache._database._turn
        turn.acquire_on_behalf_of_nowait("somebody")
        with pytest.raises(StoreError, match="busy with other calls"):
            await stores.cache.set("a", 1, 0)
        turn.release_on_behalf_of("somebody")
        assert await stores.cache.get("a") is None


async def test_closing_does_not_wait_for_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    results: list[BaseException] = []

    async def call(method: Any, *args: Any) -> None:
        with pytest.raises(trio.ClosedResourceError) as caught:
            await method(*args)
        results.append(caught.value)

    async with trio.open_nursery() as nursery:
        async with open_sqlite_stores(path) as stores:
            await stores.cache.set("a", 1, 0)
            with locked(path):
                for _ in range(3):
                    nursery.start_soon(call, stores.cache.set, "a", 2, 0)
                await trio.sleep(0.02)
                started = time.monotonic()
                stores.cache._database.owner.close()
                await wait_all_tasks_blocked(0.1)
    assert len(results) == 3
    assert time.monotonic() - started < 2.0
    assert raw(path, "SELECT value FROM renew_cache") == [(b"1",)]


# -------------------------------------------------------------------------------------------------------------- the end


async def test_after_closing_every_method_says_so(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        await stores.cache.set("a", 1, 0)
    cache, dedupe = stores.cache, stores.dedupe
    calls: list[Any] = [
        lambda: cache.get("a"),
        lambda: cache.set("a", 1, 0),
        lambda: cache.set("a", object(), 0),
        lambda: cache.delete("a"),
        lambda: cache.clear(),
        lambda: cache.invalidate_tag("a"),
        lambda: cache.invalidate_tags(["a"]),
        lambda: cache.list_entries(),
        lambda: cache.get_stats(),
        lambda: cache.cleanup(),
        lambda: dedupe.register("a"),
        lambda: dedupe.register_or_join("a"),
        lambda: dedupe.wait_for("a"),
        lambda: dedupe.wait_outcome("a"),
        lambda: dedupe.complete("a", 1),
        lambda: dedupe.complete("a", object()),
        lambda: dedupe.fail("a", ValueError()),
        lambda: dedupe.is_in_progress("a"),
        lambda: dedupe.extend("a", "b"),
        lambda: dedupe.list_jobs(),
        lambda: dedupe.get_stats(),
        lambda: dedupe.cleanup(),
        lambda: dedupe.clear(),
    ]
    for limits in (stores.rate_limit, stores.adaptive):
        calls += [
            lambda limits=limits: limits.acquire("a"),
            lambda limits=limits: limits.can_proceed("a"),
            lambda limits=limits: limits.record("a"),
            lambda limits=limits: limits.get_status("a"),
            lambda limits=limits: limits.reset("a"),
            lambda limits=limits: limits.get_wait_time("a"),
            lambda limits=limits: limits.set_cooldown("a", 1e10),
            lambda limits=limits: limits.get_cooldown("a"),
            lambda limits=limits: limits.clear_cooldown("a"),
            lambda limits=limits: limits.set_resource_config("a", limits._default),
            lambda limits=limits: limits.get_resource_config("a"),
            lambda limits=limits: limits.list_resources(),
            lambda limits=limits: limits.get_stats(),
            lambda limits=limits: limits.cleanup(),
            lambda limits=limits: limits.clear(),
        ]
    for call in calls:
        with pytest.raises(trio.ClosedResourceError):
            await call()


async def test_every_method_is_a_checkpoint(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        for call in (
            lambda: stores.cache.get("a"),
            lambda: stores.cache.set("a", 1, 0),
            lambda: stores.dedupe.complete("a", 1),
            lambda: stores.dedupe.wait_for("a"),
            lambda: stores.rate_limit.acquire("a"),
            lambda: stores.adaptive.get_resource_config("a"),
        ):
            with trio.testing.assert_checkpoints():
                await call()
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught


async def test_an_exception_of_the_body_leaves_as_itself(tmp_path: Path) -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with open_sqlite_stores(tmp_path / "s.db") as stores:
            await stores.cache.set("a", 1, 0)
            raise error
    assert caught.value is error
    assert [file.name for file in tmp_path.iterdir()] == ["s.db"]


async def test_a_cancelled_body_closes_all_the_same(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_sqlite_stores(tmp_path / "s.db") as stores:
            await stores.cache.set("a", 1, 0)
            scope.cancel()
    with pytest.raises(trio.ClosedResourceError):
        await stores.cache.get("a")
    assert [file.name for file in tmp_path.iterdir()] == ["s.db"]


async def test_a_bundle_belongs_to_its_run(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        with pytest.raises(RuntimeError, match="another thread"):
            await trio.to_thread.run_sync(trio.run, stores.cache.get, "a")


async def test_a_call_that_is_cancelled_while_it_waits_for_its_turn(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        running, go_on = threading.Event(), threading.Event()

        def hold(connection: Any, look: Any) -> None:
            running.set()
            go_on.wait(10)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stores.cache._database.run, hold)
            await trio.to_thread.run_sync(running.wait)
            with trio.move_on_after(0.01) as scope:
                await stores.cache.set("a", 1, 0)
            go_on.set()
        assert scope.cancelled_caught
        assert await stores.cache.get("a") is None


async def test_a_call_that_is_cancelled_in_the_worker_has_happened(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        await stores.cache.get("a")
        async with trio.open_nursery() as nursery:
            done = []

            async def register() -> None:
                done.append(await stores.dedupe.register_or_join("j"))

            nursery.start_soon(register)
            while not stores.cache._database._turn.borrowed_tokens:
                await trio.sleep(0)
            nursery.cancel_scope.cancel()
        # Whoever came to own the job knows it.
        assert [job.is_owner for job in done] == [True]
        assert await stores.dedupe.is_in_progress("j")


def test_cancelled_anywhere_it_happened_wholly_or_not_at_all() -> None:
    async def scenario() -> None:
        with TemporaryDirectory() as folder:
            async with open_sqlite_stores(f"{folder}/s.db") as stores:
                await stores.cache.set("a", 1, 0, tags=["old"])
                with victim():
                    await stores.cache.set("a", 2, 0, tags=["new"])
                    await stores.rate_limit.acquire("r")
                    await stores.dedupe.register("j")
                    await stores.dedupe.complete("j", 1)
                    await stores.cache.set("a", object(), 0)
                with trio.fail_after(1):
                    found = await stores.cache.get("a")
                    tags = [await stores.cache.invalidate_tag(tag) for tag in ("old", "new")]
                    assert (found, tags) in [(1, [1, 0]), (2, [0, 1])]
                    await stores.dedupe.register("j")
                    assert (await stores.rate_limit.get_status("r")).remaining in (59, 60)

    async def without_the_last_error() -> None:
        try:
            await scenario()
        except StoreError as exc:
            assert "cannot encode" in str(exc)

    assert cancel_at_every_checkpoint(without_the_last_error).steps >= 5


async def test_an_unexpected_error_leaves_no_transaction_behind(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        database = stores.cache._database

        def crash(connection: sqlite3.Connection, look: Any) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO renew_usage VALUES ('x', 1, 1)")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await database.run(crash)
        assert raw(tmp_path / "s.db", "SELECT * FROM renew_usage") == []

        def close(connection: sqlite3.Connection, look: Any) -> None:
            connection.execute("BEGIN")
            connection.close()
            raise ZeroDivisionError

        with pytest.raises((ZeroDivisionError, StoreError)):
            await database.run(close)
        await stores.cache.set("a", 1, 0)


async def test_a_given_clock_is_read_in_its_own_thread(tmp_path: Path) -> None:
    threads: set[int] = set()

    def clock() -> float:
        threads.add(threading.get_ident())
        return 1000.0

    async with open_sqlite_stores(tmp_path / "s.db", clock=clock) as stores:
        await stores.cache.set("a", 1, 60)
        assert (await stores.cache.list_entries())[0].expires_at == 1060.0
        job = await stores.dedupe.register_or_join("j")
        assert (await stores.dedupe.list_jobs())[0].expires_at == 1010.0
        assert await stores.dedupe.extend("j", job.job_id)
    assert threads == {threading.get_ident()}


async def test_the_mark_of_a_log_that_is_not_there(tmp_path: Path) -> None:
    owner = Owner("x", None, None)
    assert Database(owner, str(tmp_path / "s.db")).wal_mark() is None

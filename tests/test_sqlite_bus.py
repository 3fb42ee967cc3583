"""The bus of the SQLite engine: who hears what, from where, how soon, and what an outage does."""

from __future__ import annotations

import logging
import math
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_renew._errors import StoreError
from trio_renew.abc import Bus
from trio_renew.stores import _bus_audience, _sqlite_bus
from trio_renew.stores.sqlite import open_sqlite_bus

if TYPE_CHECKING:
    from pathlib import Path


class Ear:
    """A listener that writes down what it hears."""

    def __init__(self, name: str = "n") -> None:
        self.name = name
        self.heard: list[Any] = []
        self.news = trio.Event()

    def invalidated(self, what: str, key: object) -> None:
        self._write_down((what, key))

    def missed(self) -> None:
        self._write_down("missed")

    def failed(self, error: Exception) -> None:
        assert isinstance(error, StoreError)
        self._write_down("failed")

    def _write_down(self, what: Any) -> None:
        self.heard.append(what)
        self.news.set()
        self.news = trio.Event()

    async def until(self, *wanted: Any) -> None:
        with trio.fail_after(5):
            while len(self.heard) < len(wanted):
                await self.news.wait()
        assert self.heard == list(wanted)
        self.heard.clear()


def raw(path: Path, *statements: str) -> list[Any]:
    rows: list[Any] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


async def test_a_message_reaches_other_buses_soon_and_its_sender_never(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as one, open_sqlite_bus(path) as two:
        assert isinstance(one, Bus)
        sender, sibling, other, stranger = Ear(), Ear(), Ear(), Ear("another name")
        for bus, ear in ((one, sender), (one, sibling), (two, other), (two, stranger), (two, other)):
            bus.attach(ear)
        with trio.fail_after(5):
            one.publish(sender, "key", "k")
            assert sibling.heard == [("key", "k")]
            await other.until(("key", "k"))
        two.publish(other, "tag", "t")
        await sender.until(("tag", "t"))
        one.publish(sender, "all", None)
        await other.until(("all", None))
        assert stranger.heard == []
        assert sibling.heard == [("key", "k"), ("tag", "t"), ("all", None)]
        two.detach(other)
        two.detach(other)
        one.publish(sender, "key", "k")
        two.publish(stranger, "key", "k")
        await trio.sleep(0.2)
        assert other.heard == sender.heard == []


async def test_keys_arrive_exactly(tmp_path: Path) -> None:
    keys = [7, "7", 7.0, True, None, b"7", (), -0.0, math.inf, 10**30, "\ud800", "\0"]
    keys.append((7, ("7", b"\xff", (None, False))))
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as one, open_sqlite_bus(path) as two:
        sender, other = Ear(), Ear()
        one.attach(sender)
        two.attach(other)
        for key in keys:
            one.publish(sender, "key", key)
        with trio.fail_after(5):
            while len(other.heard) < len(keys):
                await other.news.wait()
        assert [repr(heard) for heard in other.heard] == [repr(("key", key)) for key in keys]
        other.heard.clear()
        for key in (frozenset({1}), (1, [2]), object(), 10**5000):
            one.publish(sender, "key", key)
            await other.until(("all", None))


async def test_what_was_published_before_attaching_or_opening_is_not_heard(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as one:
        sender = Ear()
        one.attach(sender)
        one.publish(sender, "key", 1)
        await trio.sleep(0.1)
        async with open_sqlite_bus(path) as two:
            other = Ear()
            two.attach(other)
            await trio.sleep(0.1)
            assert other.heard == []


async def test_publishing_from_another_thread(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as one, open_sqlite_bus(path) as two:
        sender, sibling, other = Ear(), Ear(), Ear()
        one.attach(sender)
        one.attach(sibling)
        two.attach(other)
        await trio.to_thread.run_sync(one.publish, sender, "key", 1)
        await other.until(("key", 1))
        await sibling.until(("key", 1))


async def test_a_listener_that_is_interrupted_meanwhile_ends_the_bus(tmp_path: Path) -> None:
    class Interrupted(Ear):
        def invalidated(self, what: str, key: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with open_sqlite_bus(tmp_path / "b.db") as bus:
            bus.attach(Interrupted())
            await trio.to_thread.run_sync(bus.publish, Ear(), "key", 1)
            await trio.sleep_forever()


def test_publishing_when_the_run_is_over(tmp_path: Path) -> None:
    kept: list[Any] = []

    async def main() -> None:
        async with open_sqlite_bus(tmp_path / "b.db") as bus:
            kept.append(bus)
        with pytest.raises(trio.ClosedResourceError):
            bus.attach(Ear())
        bus.publish(Ear(), "key", 1)
        bus.detach(Ear())
        assert "closed" in repr(bus)

    trio.run(main)

    async def other_run() -> None:
        await trio.to_thread.run_sync(kept[0].publish, Ear(), "key", 1)

    trio.run(other_run)


async def test_the_last_messages_are_written_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as two:
        other = Ear()
        two.attach(other)
        with trio.CancelScope() as scope:
            async with open_sqlite_bus(path) as one:
                sender = Ear()
                one.attach(sender)
                one.publish(sender, "key", 1)
                scope.cancel()
        await other.until(("key", 1))


async def test_last_messages_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as one:
        sender = Ear()
        one.attach(sender)
        raw(path, "ALTER TABLE renew_bus RENAME TO away")
        one.publish(sender, "key", 1)
    assert "could not send its last invalidations" in caplog.text


async def test_the_last_messages_are_written_though_the_file_was_locked_when_they_were_sent(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as two:
        other = Ear()
        two.attach(other)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            async with trio.open_nursery() as nursery, open_sqlite_bus(path) as one:
                connection.execute("BEGIN IMMEDIATE")
                one.publish(Ear(), "key", 1)
                with trio.fail_after(5):
                    while not one._exchanging.locked():
                        await trio.sleep(0.01)
                nursery.start_soon(let_go_soon, connection)
        await other.until(("key", 1))


async def let_go_soon(connection: sqlite3.Connection) -> None:
    await trio.sleep(0.2)
    connection.execute("ROLLBACK")


async def test_a_lock_that_is_held_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    with trio.fail_after(10):
        async with open_sqlite_bus(path) as one:
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                one.publish(Ear(), "key", 1)
                await one.flush()


async def test_a_listener_that_raises_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Rude(Ear):
        def invalidated(self, what: str, key: object) -> None:
            raise ZeroDivisionError

    async with open_sqlite_bus(tmp_path / "b.db") as bus:
        sender, rude, other = Ear(), Rude(), Ear()
        for ear in (sender, rude, other):
            bus.attach(ear)
        with caplog.at_level(logging.ERROR, "trio_renew"):
            bus.publish(sender, "key", 1)
        assert other.heard == [("key", 1)]
        assert "a listener" in caplog.text


async def test_a_message_that_cannot_be_read_means_something_was_missed(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as bus:
        ear = Ear()
        bus.attach(ear)
        raw(path, "INSERT INTO renew_bus (sent_at, sender, message) VALUES (0, 'x', x'00ff')")
        await ear.until("missed")


# -------------------------------------------------------------------------------------------------------------- outages


async def test_a_file_that_cannot_be_used_is_reported_once_to_each(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "later" / "b.db"
    started = trio.current_time()
    async with open_sqlite_bus(path) as one:
        assert trio.current_time() - started < 5
        sender, late = Ear(), Ear()
        one.attach(sender)
        assert sender.heard == ["failed"]
        await trio.sleep(10)
        one.attach(late)
        one.attach(late)
        await trio.sleep(10.5)
        assert late.heard == sender.heard == ["failed"]
        one.publish(sender, "key", 1)
        assert late.heard == ["failed", ("key", 1)]
        path.parent.mkdir()
        async with open_sqlite_bus(path) as two:
            other = Ear()
            two.attach(other)
            await trio.sleep(2.5)
            # What was sent meanwhile is sent now; what came before the first connection may have been missed.
            assert other.heard == [("key", 1)]
            assert sender.heard == ["failed", "missed"]
            assert late.heard == ["failed", ("key", 1), "missed"]


async def test_what_was_missed_during_an_outage_is_replayed(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as one, open_sqlite_bus(path) as two:
        sender, other = Ear(), Ear()
        one.attach(sender)
        two.attach(other)
        await two._exchange()
        raw(path, "ALTER TABLE renew_bus RENAME TO away")
        await trio.sleep(35)
        assert (sender.heard, other.heard) == (["failed"], ["failed"])
        one.publish(sender, "key", 1)
        await trio.sleep(5)
        raw(path, "ALTER TABLE away RENAME TO renew_bus")
        await trio.sleep(5)
        assert (sender.heard, other.heard) == (["failed"], ["failed", ("key", 1)])
        raw(path, "ALTER TABLE renew_bus RENAME TO away")
        await trio.sleep(35)
        assert (sender.heard, other.heard) == (["failed"] * 2, ["failed", ("key", 1), "failed"])


async def test_another_file_in_its_place(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as bus:
        ear = Ear()
        bus.attach(ear)
        for file in tmp_path.iterdir():
            file.unlink()
        await trio.sleep(35)
        assert ear.heard == ["missed"]
        await trio.sleep(100)
        assert ear.heard == ["missed"]


async def test_a_file_that_does_not_say_which_it_is_any_more(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as bus:
        ear = Ear()
        bus.attach(ear)
        raw(path, "DELETE FROM renew_file")
        await trio.sleep(60)
        assert ear.heard == ["failed"]
        bus.publish(Ear(), "key", 1)
        for each in tmp_path.iterdir():
            each.unlink()
        async with open_sqlite_bus(path) as two:
            other = Ear()
            two.attach(other)
            await other.until(("key", 1))
        assert ear.heard == ["failed", ("key", 1), "missed"]


async def test_a_gap_means_something_was_missed(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as bus:
        ear = Ear()
        bus.attach(ear)
        message = '["x", [["n", "key", "1"]]]'
        insert = f"INSERT INTO renew_bus (sent_at, sender, message) VALUES (0, 'x', '{message}')"
        raw(path, insert, insert, "DELETE FROM renew_bus WHERE id = 1")
        await trio.sleep(2)
        assert ear.heard == [("key", 1), "missed"]
        raw(path, insert, "DELETE FROM renew_bus")
        await trio.sleep(2)
        assert ear.heard == [("key", 1), "missed", "missed"]


async def test_an_outbox_that_grows_too_long_says_all(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bus_audience, "UNSENT", 10)
    path = tmp_path / "later" / "b.db"
    async with open_sqlite_bus(path) as one:
        sender = Ear()
        one.attach(sender)
        for number in range(100):
            one.publish(sender, "key", number)
        assert len(one._outbox) <= 10
        path.parent.mkdir()
        async with open_sqlite_bus(path) as two:
            other = Ear()
            two.attach(other)
            await trio.sleep(3)
            assert other.heard[0] == ("all", None)
            assert other.heard[-1] == ("key", 99)


async def test_messages_do_not_pile_up(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "b.db"
    async with open_sqlite_bus(path) as bus:
        sender = Ear()
        for number in range(250):
            bus.publish(sender, "key", number)
        await trio.sleep(1)
        assert raw(path, "SELECT COUNT(*) FROM renew_bus") == [(250,)]
        await trio.sleep(_sqlite_bus.KEPT)
        for number in range(3):
            bus.publish(sender, "key", number)
            await trio.sleep(1)
        assert raw(path, "SELECT COUNT(*) FROM renew_bus") == [(3,)]


async def test_opening_waits_five_seconds_at_most(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "b.db"
    raw(path, "CREATE TABLE mine (x)")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        started = trio.current_time()
        async with open_sqlite_bus(path) as bus:
            assert 4.9 <= trio.current_time() - started <= 5.1
            ear = Ear()
            bus.attach(ear)
            await trio.sleep(3)
            assert ear.heard == ["failed"]
            connection.execute("COMMIT")
            await trio.sleep(3)
            assert ear.heard == ["failed", "missed"]


async def test_an_exception_of_the_body_leaves_as_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with open_sqlite_bus(tmp_path / "b.db"):
            raise ValueError("mine")
    assert [file.name for file in tmp_path.iterdir()] == ["b.db"]


async def test_closing_before_the_first_step(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_sqlite_bus(tmp_path / "b.db"):
            raise AssertionError("it must not open")
    assert scope.cancelled_caught

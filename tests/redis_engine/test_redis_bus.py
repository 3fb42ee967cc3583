"""The bus over a server: who hears what, exactly; outages and what happens on return."""

from __future__ import annotations

import json
import threading
from math import inf, nan
from typing import TYPE_CHECKING, Any

import coredis
import pytest
import trio

from trio_renew import StoreError
from trio_renew.stores import _bus_audience, _redis_bus
from trio_renew.stores._bus_messages import item_of, read_items, write_items
from trio_renew.stores.redis import open_redis_bus

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Server


class Ear:
    """A listener that writes down what it is told."""

    def __init__(self, name: str = "cache") -> None:
        self.name = name
        self.heard: list[Any] = []
        self.failures: list[Exception] = []
        self.misses = 0

    def invalidated(self, what: str, key: object) -> None:
        self.heard.append((what, key))

    def missed(self) -> None:
        self.misses += 1

    def failed(self, error: Exception) -> None:
        self.failures.append(error)


class Grump(Ear):
    """A listener that is not as it should be."""

    def invalidated(self, what: str, key: object) -> None:
        super().invalidated(what, key)
        raise RuntimeError("leave me alone")


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait for something that comes from the server."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.002)


# Messages


@pytest.mark.parametrize(
    "key",
    [
        *(
            "",
            "7",
            "é🎉",
            "\ud800",
            "\ud83d\ude00",
            b"",
            b"\x00\xff",
            7,
            -(10**30),
            True,
            False,
            None,
            1.0,
            -0.0,
            1e308,
            inf,
        ),
        *((), (1,), (1, (True, "x", b"y", (None, 2.5))), ("b",), ("s", "\udfff")),
    ],
    ids=repr,
)
def test_a_key_arrives_exactly(key: object) -> None:
    name, what, text = item_of("é", "key", key)
    sender, [(found_name, found_what, found)] = read_items(write_items("me", [(name, what, text)]))
    assert (sender, found_name, found_what) == ("me", "é", "key")
    assert repr(found) == repr(key)
    assert found == key


def test_not_a_number_arrives_too() -> None:
    _, [(_, _, found)] = read_items(write_items("me", [item_of("a", "key", nan)]))
    assert repr(found) == "nan"


class Text(str):
    """Equal to a str, but not one."""

    __slots__ = ()


def deep() -> object:
    key: object = ()
    for _ in range(5000):
        key = (key,)
    return key


@pytest.mark.parametrize(
    "key",
    [[1], {"a": 1}, object(), Text("a"), (1, [2]), frozenset(), 10**5000, deep()],
    ids=lambda key: type(key).__name__,
)
def test_any_other_key_becomes_everything(key: object) -> None:
    assert item_of("a", "key", key) == ("a", "all", "null")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"7",
        b"[]",
        b'["a"]',
        b"[1, []]",
        b'["a", 7]',
        b'["a", [["name", "key"]]]',
        b'["a", [["name", "other", "1"]]]',
        b'["a", [["name", "key", "nonsense"]]]',
        b'["a", [["name", "key", "{}"]]]',
        b'["a", [["name", "key", "{\\"b\\": \\"*\\"}"]]]',
        b'["a", [["name", "key", "{\\"b\\": 1}"]]]',
        json.dumps(["a", [["name", "key", "[" * 100_000]]]).encode(),
        b"\xff",
    ],
)
def test_what_is_no_message_is_a_value_error(message: bytes) -> None:
    with pytest.raises(ValueError):
        read_items(message)


# Who hears what


async def test_all_of_a_name_hear_it_but_the_sender(server: Server, prefix: str) -> None:
    async with open_redis_bus(server.url, channel=prefix) as one, open_redis_bus(server.url, channel=prefix) as other:
        sender, sibling, stranger = Ear(), Ear(), Ear("another")
        here = [sender, sibling, stranger]
        there = [Ear(), Ear(), Ear("another")]
        for ear in here:
            one.attach(ear)
            one.attach(ear)
        for ear in there:
            other.attach(ear)
        one.publish(sender, "key", (7, "a"))
        # Siblings hear at once.
        assert sibling.heard == [("key", (7, "a"))]
        one.publish(sender, "tag", "t")
        one.publish(sender, "all", None)
        one.publish(sender, "key", ["not exact"])
        await until(lambda: len(there[0].heard) == 3)
        assert there[0].heard == there[1].heard == [("key", (7, "a")), ("tag", "t"), ("all", None)]
        other.detach(there[0])
        other.detach(there[0])
        one.publish(sender, "key", 1)
        await until(lambda: len(there[1].heard) == 4)
        assert len(there[0].heard) == 3
        assert sender.heard == stranger.heard == there[2].heard == []
        assert sibling.heard[-2:] == [("key", ["not exact"]), ("key", 1)]
        assert all(ear.misses == 0 and not ear.failures for ear in (*here, *there))


async def test_other_channels_are_not_heard(server: Server, prefix: str) -> None:
    async with (
        open_redis_bus(server.url, channel=prefix) as one,
        open_redis_bus(server.url, channel=f"{prefix}2") as other,
    ):
        mine, theirs = Ear(), Ear()
        one.attach(mine)
        other.attach(theirs)
        one.publish(Ear(), "key", 1)
        await until(lambda: server.ask("PUBLISH", prefix, "nonsense") and mine.misses)
        assert (theirs.heard, theirs.misses) == ([], 0)


async def test_a_listener_that_raises_changes_nothing(
    server: Server, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_redis_bus(server.url, channel=prefix) as one, open_redis_bus(server.url, channel=prefix) as other:
        grump, ear = Grump(), Ear()
        one.attach(Grump())
        other.attach(grump)
        other.attach(ear)
        for number in range(2):
            one.publish(Ear(), "key", number)
        await until(lambda: len(ear.heard) == 2)
        assert len(grump.heard) == 2
    assert "leave me alone" in caplog.text


async def test_an_interrupted_listener_keeps_no_other_from_hearing_it(server: Server, prefix: str) -> None:
    class Interrupted(Ear):
        def invalidated(self, what: Any, key: object) -> None:
            raise KeyboardInterrupt

    async with open_redis_bus(server.url, channel=prefix) as bus:
        ear = Ear()
        bus.attach(Interrupted())
        bus.attach(ear)
        with pytest.raises(KeyboardInterrupt):
            bus.publish(Ear(), "key", 1)
        assert ear.heard == [("key", 1)]


async def test_what_was_published_before_closing_is_sent(server: Server, prefix: str) -> None:
    ear = Ear()
    async with open_redis_bus(server.url, channel=prefix) as other:
        other.attach(ear)
        async with open_redis_bus(server.url, channel=prefix) as one:
            for number in range(3 * _redis_bus._PACKET):
                one.publish(Ear(), "key", number)
        await until(lambda: len(ear.heard) == 3 * _redis_bus._PACKET)
        one.publish(Ear(), "key", -1)
        with pytest.raises(trio.ClosedResourceError):
            one.attach(ear)
        one.detach(ear)
    assert ("key", -1) not in ear.heard


async def test_closing_does_not_wait_for_a_server_that_hangs(
    own_server: Server, mock_clock: trio.testing.MockClock
) -> None:
    async with open_redis_bus(own_server.url) as bus:
        own_server.pause()
        bus.publish(Ear(), "key", 1)
        mock_clock.autojump_threshold = 0.02
        started = trio.current_time()
    assert trio.current_time() - started == pytest.approx(1.0)


async def test_any_thread_may_publish(server: Server, prefix: str) -> None:
    ear = Ear()
    async with open_redis_bus(server.url, channel=prefix) as one, open_redis_bus(server.url, channel=prefix) as other:
        other.attach(ear)
        await trio.to_thread.run_sync(one.publish, Ear(), "key", 1)
        await until(lambda: ear.heard == [("key", 1)])


async def test_a_listener_that_is_interrupted_meanwhile_ends_the_bus(server: Server, prefix: str) -> None:
    class Interrupted(Ear):
        def invalidated(self, what: Any, key: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with open_redis_bus(server.url, channel=prefix) as bus:
            bus.attach(Interrupted())
            await trio.to_thread.run_sync(bus.publish, Ear(), "key", 1)
            await trio.sleep_forever()


def test_publishing_after_the_run_is_over_does_nothing(server: Server) -> None:
    async def main() -> Any:
        async with open_redis_bus(server.url) as bus:
            return bus

    bus = trio.run(main)
    errors: list[BaseException] = []

    def publish() -> None:
        try:
            bus.publish(Ear(), "key", 1)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    thread.join()
    bus.publish(Ear(), "key", 1)
    assert not errors


async def test_an_exception_of_the_body_leaves_as_itself(server: Server) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_redis_bus(server.url):
            raise KeyError("mine")


# Outages


async def test_an_outage_is_told_once_and_missed_on_return(own_server: Server) -> None:
    async with open_redis_bus(own_server.url) as bus, open_redis_bus(own_server.url) as other:
        early, late, far = Ear(), Ear(), Ear()
        bus.attach(early)
        other.attach(far)
        own_server.kill()
        await until(lambda: early.failures and far.failures)
        bus.attach(late)
        assert len(late.failures) == 1
        assert isinstance(late.failures[0], StoreError)
        bus.publish(early, "key", 1)
        assert late.heard == [("key", 1)]
        await trio.sleep(0.05)
        own_server.start()
        started = trio.current_time()
        await until(lambda: early.misses and far.misses)
        assert trio.current_time() - started < 2.0
        # Sent then; whoever was not yet back has missed it, and knows.
        bus.publish(early, "key", 2)
        await until(lambda: ("key", 2) in far.heard)
        assert (len(early.failures), len(late.failures), len(far.failures)) == (1, 1, 1)
        assert (early.misses, late.misses, far.misses) == (1, 1, 1)


async def test_opening_needs_no_server(own_server: Server) -> None:
    own_server.kill()
    with trio.fail_after(5):
        async with open_redis_bus(own_server.url) as bus:
            ear = Ear()
            bus.attach(ear)
            assert len(ear.failures) == 1
            bus.publish(Ear(), "key", 1)
            own_server.start()
            await until(lambda: ear.misses == 1)
            async with open_redis_bus(own_server.url) as other:
                far = Ear()
                other.attach(far)
                bus.publish(ear, "key", 2)
                await until(lambda: far.heard == [("key", 2)])
                assert not far.failures


async def test_what_was_sent_meanwhile_is_sent_on_return(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bus_audience, "UNSENT", 3)
    async with open_redis_bus(f"redis://127.0.0.1:{own_server.port}") as bus:
        ear = Ear()
        bus.attach(ear)
        own_server.kill()
        await until(lambda: ear.failures)
        for number in range(5):
            bus.publish(Ear("numbers"), "key", number)
        for _ in range(5):
            bus.publish(Ear("letters"), "key", "a")
        # First it is back for us alone, then for the bus.
        port, own_server.port = own_server.port, 0
        own_server.start()
        async with (
            coredis.Redis.from_url(own_server.url) as client,
            client.pubsub(channels=["trio_renew"], ignore_subscribe_messages=True) as messages,
        ):
            await messages.get_message(timeout=0.05)
            own_server.ask("CONFIG", "SET", "port", str(port))
            with trio.fail_after(5):
                while (message := await messages.get_message(timeout=0.05)) is None:
                    pass
        # What did not fit has become everything of its name.
        assert read_items(message["data"])[1] == [("numbers", "all", None), ("letters", "key", "a")]


async def test_a_server_that_hangs_is_noticed(own_server: Server, mock_clock: trio.testing.MockClock) -> None:
    async with open_redis_bus(own_server.url) as bus:
        ear = Ear()
        bus.attach(ear)
        own_server.pause()
        mock_clock.autojump_threshold = 0.02
        await trio.sleep(_redis_bus._LOOK_EVERY + 5.1)
        assert len(ear.failures) == 1
        # Now it does not even let us in: tried again all the time, and told no more.
        await trio.sleep(10)
        assert (len(ear.failures), ear.misses) == (1, 0)
        mock_clock.autojump_threshold = inf
        own_server.resume()
        mock_clock.rate = 1.0
        await until(lambda: ear.misses == 1)


async def test_opening_does_not_wait_for_a_server_that_hangs(
    own_server: Server, mock_clock: trio.testing.MockClock
) -> None:
    own_server.pause()
    mock_clock.autojump_threshold = 0.02
    started = trio.current_time()
    async with open_redis_bus(own_server.url) as bus:
        assert trio.current_time() - started <= 5.0
        ear = Ear()
        bus.attach(ear)
        assert "no answer" in str(ear.failures[0])


async def test_a_lost_connection_is_noticed_at_once(server: Server, prefix: str) -> None:
    async with open_redis_bus(server.url, channel=prefix) as bus:
        ear = Ear()
        bus.attach(ear)
        await trio.sleep(0.01)
        server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: ear.misses == 1)
        assert len(ear.failures) == 1


async def test_who_may_not_subscribe_is_told(server: Server, prefix: str) -> None:
    server.ask("ACL", "SETUSER", "deaf", "reset", "on", ">x", "~*", "resetchannels", "+@all")
    async with open_redis_bus(f"unix://deaf:x@{server.socket}", channel=prefix) as bus:
        ear = Ear()
        bus.attach(ear)
        assert "channel" in str(ear.failures[0])
        server.ask("ACL", "SETUSER", "deaf", "allchannels")
        await until(lambda: ear.misses == 1)


async def test_who_may_not_publish_is_told_once(server: Server, prefix: str) -> None:
    server.ask("ACL", "SETUSER", "mute", "reset", "on", ">x", "~*", "&*", "+@all", "-publish")
    async with (
        open_redis_bus(f"unix://mute:x@{server.socket}", channel=prefix) as bus,
        open_redis_bus(server.url, channel=prefix) as other,
    ):
        ear, far = Ear(), Ear()
        bus.attach(ear)
        other.attach(far)
        bus.publish(ear, "key", 1)
        await until(lambda: ear.failures)
        # It hears all the same.
        other.publish(far, "key", 2)
        await until(lambda: ear.heard == [("key", 2)])
        await trio.sleep(0.2)
        assert (len(ear.failures), ear.misses) == (1, 0)
        server.ask("ACL", "SETUSER", "mute", "+publish")
        await until(lambda: far.heard == [("key", 1)] and ear.misses == 1)


async def test_cancelling_while_opening(own_server: Server) -> None:
    own_server.pause()
    with trio.move_on_after(0.05) as scope:
        async with open_redis_bus(own_server.url):
            raise AssertionError("opened")
    assert scope.cancelled_caught

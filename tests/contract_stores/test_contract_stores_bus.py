"""What the bus of every engine promises to who listens and who publishes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trio_renew import Bus
from trio_renew.stores.redis import open_redis_bus
from trio_renew.stores.sqlite import open_sqlite_bus

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from .conftest import Engine


class Ear:
    """A listener that remembers."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str = "n") -> None:
        self.name = name
        self.heard: list[tuple[str, Any]] = []
        self.others: list[str] = []

    def __eq__(self, other: object) -> bool:
        # Nobody may tell listeners apart by this.
        return True

    def invalidated(self, what: str, key: object) -> None:
        self.heard.append((what, key))

    def missed(self) -> None:
        self.others.append("missed")

    def failed(self, error: BaseException) -> None:
        self.others.append(type(error).__name__)


@asynccontextmanager
async def open_bus(sharing: Engine) -> AsyncGenerator[Any, None]:
    if sharing.kind == "sqlite":
        opening: Any = open_sqlite_bus(sharing.place)
    else:
        opening = open_redis_bus(sharing.place, channel=sharing.prefix)
    async with opening as bus:
        yield bus


async def heard_within_a_second(ear: Ear, count: int) -> list[tuple[str, Any]]:
    with trio.move_on_after(1.0):
        while len(ear.heard) < count:
            await trio.sleep(0.005)
    return ear.heard


def test_who_hears_what(sharing: Engine) -> None:
    """Siblings on the object at once, other objects within a second, the sender and other names never."""

    async def main() -> None:
        async with open_bus(sharing) as one, open_bus(sharing) as two:
            assert isinstance(one, Bus)
            sender, sibling, gone, other_name, far, far_other = (
                Ear(), Ear(), Ear(), Ear("m"), Ear(), Ear("m"),
            )  # fmt: skip
            for bus, ear in ((one, sender), (one, sibling), (one, gone), (one, other_name), (two, far)):
                bus.attach(ear)
                bus.attach(ear)
            two.attach(far_other)
            one.detach(gone)
            one.detach(gone)
            messages = [("key", 7), ("key", "7"), ("tag", "t"), ("all", None), ("key", (True, 1, 1.0, None, b"\0"))]
            for what, key in messages:
                one.publish(sender, what, key)
            assert sibling.heard == messages
            heard = await heard_within_a_second(far, len(messages))
            assert [(what, repr(key)) for what, key in heard] == [(what, repr(key)) for what, key in messages]
            # What went the other way round comes back to all of them.
            two.publish(far, "key", "back")
            assert await heard_within_a_second(sibling, len(messages) + 1) == [*messages, ("key", "back")]
            assert await heard_within_a_second(sender, 1) == [("key", "back")]
            assert sender.heard == [("key", "back")]
            assert far.heard == messages
            assert gone.heard == other_name.heard == far_other.heard == []
            assert {repr(ear.others) for ear in (sender, sibling, far)} == {"[]"}

    trio.run(main)


@pytest.mark.parametrize("key", [object(), [1], {1: 2}, ((1, [2]),), 10**5000, frozenset()], ids=lambda key: type(key))
def test_a_key_that_cannot_travel_means_everything(sharing: Engine, key: Any) -> None:
    """Elsewhere; on the same object it is what it is."""

    async def main() -> None:
        async with open_bus(sharing) as one, open_bus(sharing) as two:
            sender, sibling, far = Ear(), Ear(), Ear()
            one.attach(sender)
            one.attach(sibling)
            two.attach(far)
            one.publish(sender, "key", key)
            assert [what for what, _ in sibling.heard] == ["key"]
            assert sibling.heard[0][1] is key
            assert await heard_within_a_second(far, 1) == [("all", None)]

    trio.run(main)


def test_publishing_neither_waits_nor_raises(sharing: Engine) -> None:
    """Also of who is not attached, and after closing; attaching then is refused."""

    async def main() -> None:
        async with open_bus(sharing) as one, open_bus(sharing) as two:
            stranger, far = Ear(), Ear()
            two.attach(far)
            one.publish(stranger, "key", "a")
            assert await heard_within_a_second(far, 1) == [("key", "a")]
        for bus in (one, two):
            bus.publish(far, "all", None)
            bus.detach(far)
            with pytest.raises(trio.ClosedResourceError):
                bus.attach(far)
        assert far.heard == [("key", "a")]
        assert stranger.others == far.others == []

    trio.run(main)


def test_a_bus_of_its_own_channel_or_file(sharing: Engine) -> None:
    """A bus beside the stores in one place disturbs nobody."""

    async def main() -> None:
        async with sharing.open(lease=60.0) as stores, open_bus(sharing) as one, open_bus(sharing) as two:
            near, far = Ear(), Ear()
            one.attach(near)
            two.attach(far)
            await stores.cache.set("a", 1, 0)
            job = await stores.dedupe.register_or_join("a")
            await stores.dedupe.complete("a", 1, job_id=job.job_id)
            one.publish(near, "key", "a")
            assert await heard_within_a_second(far, 1) == [("key", "a")]
            await stores.cache.clear()
            await stores.dedupe.clear()
            two.publish(far, "key", "b")
            assert await heard_within_a_second(near, 1) == [("key", "b")]
            assert near.others == far.others == []

    trio.run(main)

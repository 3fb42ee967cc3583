"""Who fetches for the others: heartbeats, owners that die, leave, hang or are refused, and what follows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_renew._ask
import trio_renew._generation
import trio_renew._job
import trio_renew._share
from trio_renew import (
    AuthToken,
    Budget,
    Event,
    FetchAbandoned,
    FetchTimeout,
    MintedTokenAlreadyExpired,
    RefreshPolicy,
    Share,
    StorageFailed,
    StoreError,
    open_provider,
)
from trio_renew.stores.memory import open_memory_stores
from trio_renew.testing import (
    Block,
    ScriptedFetch,
    Sleep,
    Stubborn,
    Token,
    cancel_at_every_checkpoint,
    do_at_every_checkpoint,
    interrupt_at_every_line,
    victim,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PLAIN = partial(RefreshPolicy, jitter=0.0, leeway=0.0, min_interval=0.0, retry=None)


class Down(Exception):
    """What broken stores and sources raise."""


def text(token: AuthToken) -> str:
    return token.secret.reveal()


def share_of(stores: Any) -> Share:
    return Share(stores.cache, stores.dedupe, "key")


async def into(results: list[Any], call: Callable[[], Awaitable[Any]]) -> None:
    try:
        results.append(await call())
    except Exception as exc:
        results.append(exc)


def failures(events: list[Event]) -> list[str]:
    return [event.operation for event in events if isinstance(event, StorageFailed)]


# Alive


@pytest.mark.parametrize("lease", [10.0, 0.5])
async def test_heartbeats(autojump_clock: MockClock, between: Any, lease: float) -> None:
    async with open_memory_stores(lease=lease) as stores:
        dedupe = between(stores.dedupe)
        share = Share(stores.cache, dedupe, "key")
        async with open_provider(ScriptedFetch(Sleep(10 * lease, Token("a", 600.0))), share=share, fetch_timeout=None):
            pass
        # Four per lease, and one before it is written.
        assert dedupe.calls.count("extend") in (40, 41)
        assert dedupe.calls[-1] == "complete"


@pytest.mark.parametrize("lease", [None, -1.0, float("inf"), "long", True])
async def test_a_store_that_does_not_say(autojump_clock: MockClock, between: Any, lease: Any) -> None:
    class Plain:
        """A store of the user's own, with no more than the protocol, or with nonsense."""

        def __init__(self, store: Any) -> None:
            for name in ("register_or_join", "wait_outcome", "complete", "fail", "extend"):
                setattr(self, name, getattr(store, name))
            if lease is not None:
                self.lease = lease

    async with open_memory_stores() as stores:
        dedupe = between(stores.dedupe)
        share = Share(stores.cache, Plain(dedupe), "key")  # type: ignore[arg-type]
        async with open_provider(ScriptedFetch(Sleep(11.0, Token("a", 600.0))), share=share):
            assert dedupe.calls.count("extend") == 5


async def test_a_beat_that_is_lost(autojump_clock: MockClock, between: Any) -> None:
    """One call without an answer does not cost the job: there is time for another one within the lease."""
    async with open_memory_stores(lease=2.0) as stores:
        dedupe = between(stores.dedupe)

        async def once(*_: Any) -> None:
            dedupe.trouble.clear()
            await trio.sleep_forever()

        dedupe.trouble["extend"] = once
        fetch = ScriptedFetch(Sleep(4.2, Token("a", 600.0)))
        async with open_provider(fetch, share=Share(stores.cache, dedupe, "key")):
            assert await stores.cache.get("key:first") is not None


async def test_a_peer_waits_as_long_as_the_owner_lives(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Sleep(60.0, Token("a", 600.0)))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        open_lazy = partial(open_provider, fetch, share=share_of(stores), eager=False, fetch_timeout=None)
        async with open_lazy() as first, open_lazy() as second, trio.open_nursery() as nursery:
            for provider in (first, second):
                nursery.start_soon(into, results, provider.get)
    assert [text(token) for token in results] == ["a", "a"]
    assert fetch.calls == 1


async def test_waiting_for_a_peer_is_part_of_the_fetch(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Sleep(60.0, Token("a", 600.0)))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        async with (
            open_provider(fetch, share=share_of(stores), eager=False, fetch_timeout=100.0) as first,
            open_provider(fetch, share=share_of(stores), eager=False, fetch_timeout=20.0) as second,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(into, results, first.get)
            await wait_all_tasks_blocked()
            with pytest.raises(FetchTimeout):
                await second.get()
            assert trio.current_time() == 20.0


# Gone


async def test_a_dead_owner_is_replaced_within_a_lease(autojump_clock: MockClock, between: Any) -> None:
    """Its heart stops at 12 s; the lease of its last beat ends at 20 s."""
    fetch = ScriptedFetch(Block(Token("late", 600.0)), Token("a", 600.0))
    results: list[Any] = []
    events: list[Event] = []
    async with open_memory_stores() as stores:
        dedupe = between(stores.dedupe)
        cache = between(stores.cache)
        async with (
            open_provider(
                fetch,
                share=Share(cache, dedupe, "key"),
                eager=False,
                fetch_timeout=None,
                observe=events.append,
            ) as dead,
            open_provider(fetch, share=share_of(stores), eager=False) as first,
            open_provider(fetch, share=share_of(stores), eager=False) as second,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(into, results, dead.get)
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as peers:
                for provider in (first, second):
                    peers.start_soon(into, results, provider.get)
                await trio.sleep(12.0)
                dedupe.trouble["extend"] = "hang"
            assert trio.current_time() == 20.0
            assert [text(token) for token in results] == ["a", "a"]
            assert fetch.calls == 2
            # It comes back to life: it learns that the job is not its own any more, and writes nothing.
            dedupe.trouble.clear()
            await trio.sleep(10.0)
            fetch.release()
            await wait_all_tasks_blocked()
            assert text(results[2]) == "late"
            assert "set" not in cache.calls
            assert "complete" not in dedupe.calls
            assert text(dead.get_nowait()) == "late"
        # One report for the job, however many beats have failed.
        assert failures(events) == ["extend"]
        async with open_provider(fetch, share=share_of(stores)) as third:
            assert text(await third.get()) == "a"


async def test_an_owner_that_lost_its_job_does_not_write(autojump_clock: MockClock, between: Any) -> None:
    """It learns so only from the beat before it would write."""
    fetch = ScriptedFetch(Block(Token("late", 600.0)), Token("a", 600.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        dedupe = between(stores.dedupe)
        dedupe.trouble["extend"] = Down()
        cache = between(stores.cache)
        async with (
            open_provider(fetch, share=Share(cache, dedupe, "key"), eager=False) as slow,
            open_provider(fetch, share=share_of(stores), eager=False) as peer,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(into, results, slow.get)
            await wait_all_tasks_blocked()
            nursery.start_soon(into, results, peer.get)
            await trio.sleep(11.0)
            assert [text(token) for token in results] == ["a"]
            dedupe.trouble.clear()
            fetch.release()
            await wait_all_tasks_blocked()
            assert text(results[1]) == "late"
            assert "set" not in cache.calls
            assert "complete" not in dedupe.calls


async def test_who_may_not_own_the_job_for_sure_does_not_write(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Sleep(1.0, Token("a", 600.0)))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        dedupe = between(stores.dedupe)
        dedupe.trouble["extend"] = Down()
        cache = between(stores.cache)
        async with (
            open_provider(fetch, share=Share(cache, dedupe, "key"), eager=False) as first,
            open_provider(fetch, share=share_of(stores), eager=False) as peer,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, first.get)
                await wait_all_tasks_blocked()
                nursery.start_soon(into, results, peer.get)
            # The job was its own after all: those who waited have the value.
            assert [text(token) for token in results] == ["a", "a"]
            assert "set" not in cache.calls


@pytest.mark.parametrize("how", ["caller leaves", "closed", "timeout", "body raises"])
async def test_an_owner_that_leaves_is_replaced_at_once(autojump_clock: MockClock, how: str) -> None:
    fetch = ScriptedFetch(Block(), Token("a", 600.0))
    results: list[Any] = []

    async def owner(share: Share) -> None:
        with trio.move_on_after(3.0 if how != "timeout" else 100.0):
            async with open_provider(
                fetch,
                share=share,
                eager=False,
                when_abandoned="cancel",
                fetch_timeout=3.0 if how == "timeout" else 30.0,
            ) as provider:
                if how in ("caller leaves", "timeout"):
                    with trio.move_on_after(3.0):
                        await provider.get()
                    await trio.sleep(50.0)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(into, results, provider.get)
                    await trio.sleep(3.0)
                    if how == "body raises":
                        raise Down

    async with open_memory_stores() as stores:
        async with open_provider(fetch, share=share_of(stores), eager=False) as peer, trio.open_nursery() as nursery:
            nursery.start_soon(into, [], partial(owner, share_of(stores)))
            await wait_all_tasks_blocked()
            assert text(await peer.get()) == "a"
            assert trio.current_time() == 3.0
            assert fetch.calls == 2
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
async def test_an_owner_that_crashes_is_replaced_at_once(autojump_clock: MockClock, error: BaseException) -> None:
    fetch = ScriptedFetch(Sleep(3.0, error), Token("a", 600.0))
    outcomes: list[BaseException] = []

    async def owner(share: Share) -> None:
        try:
            async with open_provider(fetch, share=share):
                raise AssertionError("not reached")
        except (KeyboardInterrupt, SystemExit) as exc:
            outcomes.append(exc)

    async with open_memory_stores() as stores:
        async with open_provider(fetch, share=share_of(stores), eager=False) as peer, trio.open_nursery() as nursery:
            nursery.start_soon(owner, share_of(stores))
            await wait_all_tasks_blocked()
            assert text(await peer.get()) == "a"
            assert trio.current_time() == 3.0
    assert [type(exc) for exc in outcomes] == [type(error)]


async def test_a_fetch_that_does_not_unwind_holds_nobody_up(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(50.0, Token("late", 600.0)), Sleep(1.0, Token("a", 600.0)))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        async with (
            open_provider(fetch, share=share_of(stores), eager=False, fetch_timeout=4.0) as first,
            open_provider(fetch, share=share_of(stores), eager=False) as peer,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(into, results, first.get)
            await wait_all_tasks_blocked()
            assert text(await peer.get()) == "a"
            assert trio.current_time() == 5.0
            assert [type(result) for result in results] == [FetchTimeout]
            await trio.sleep(100.0)
            # What came late is kept here, and does not go where another has written meanwhile.
            assert text(first.get_nowait()) == "late"
            assert text(await peer.refresh(stale=AuthToken("x"))) == "a"


async def test_an_abandoned_fetch_that_does_not_unwind(autojump_clock: MockClock) -> None:
    """Nobody says when the last caller left: the next beat finds it out."""
    fetch = ScriptedFetch(Stubborn(50.0, None), Token("a", 600.0))
    async with open_memory_stores() as stores:
        async with (
            open_provider(fetch, share=share_of(stores), eager=False, when_abandoned="cancel") as first,
            open_provider(fetch, share=share_of(stores), eager=False) as peer,
            trio.open_nursery() as nursery,
        ):

            async def impatient() -> None:
                with trio.move_on_after(1.0):
                    await first.get()

            nursery.start_soon(impatient)
            await wait_all_tasks_blocked()
            assert text(await peer.get()) == "a"
            assert trio.current_time() == 2.5


async def test_what_could_not_be_used_is_a_failure_for_all(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Sleep(1.0, Token("a", 0.0)))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        async with (
            open_provider(fetch, share=share_of(stores), eager=False) as first,
            open_provider(fetch, share=share_of(stores), eager=False) as second,
            trio.open_nursery() as nursery,
        ):
            for provider in (first, second):
                nursery.start_soon(into, results, provider.get)
    assert [type(result) for result in results] == [MintedTokenAlreadyExpired] * 2
    assert fetch.calls == 1


# The store is down


@pytest.mark.parametrize("trouble", ["raise", "hang", "closed"])
@pytest.mark.parametrize("method", ["get", "register_or_join", "extend", "set", "complete"])
async def test_a_store_that_is_down(autojump_clock: MockClock, between: Any, method: str, trouble: str) -> None:
    how = {"raise": StoreError("down"), "hang": "hang", "closed": trio.ClosedResourceError()}[trouble]
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0), Token("c", 100.0))
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache, dedupe = between(stores.cache), between(stores.dedupe)
        broken = cache if method in ("get", "set") else dedupe
        broken.trouble[method] = how
        share = Share(cache, dedupe, "key")
        async with open_provider(fetch, share=share, policy=PLAIN(), observe=events.append) as provider:
            assert text(await provider.get()) == "a"
            await trio.sleep(10.0)
            assert failures(events) == [method]
            bound = 0.0 if trouble != "hang" or method == "complete" else 5.0
            lease = await provider.lease()
            assert lease.expires_at == lease.issued_at + 100.0
            assert trio.current_time() == 10.0 + bound
            error = next(event.error for event in events if isinstance(event, StorageFailed))
            assert isinstance(error, (StoreError, trio.ClosedResourceError))
            # It is back: the next fetch is for all.
            broken.trouble.clear()
            assert text(await provider.refresh()) == "b"
            async with open_provider(fetch, share=share_of(stores)) as peer:
                assert text(await peer.get()) == "b"


async def test_there_is_time_left_to_fetch(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Sleep(1.0, Token("a", 100.0)))
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        cache.trouble["get"] = "hang"
        async with open_provider(fetch, share=Share(cache, stores.dedupe, "key"), fetch_timeout=4.0) as provider:
            assert text(await provider.get()) == "a"
            assert trio.current_time() == 3.0


@pytest.mark.parametrize(("fetch_timeout", "until"), [(30.0, 11.0), (8.0, 7.0)])
async def test_there_is_time_left_to_fetch_without_two_stores(
    autojump_clock: MockClock, between: Any, fetch_timeout: float, until: float
) -> None:
    """The server of the share is that of the budget, and hangs: what the one has taken is not there for the other."""
    fetch = ScriptedFetch(Sleep(1.0, Token("a", 100.0)))
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache, limit = between(stores.cache), between(stores.adaptive)
        cache.trouble["get"] = limit.trouble["acquire"] = "hang"
        async with open_provider(
            fetch,
            share=Share(cache, stores.dedupe, "key"),
            budget=Budget(limit, "source"),
            fetch_timeout=fetch_timeout,
            observe=events.append,
        ):
            assert trio.current_time() == until
    assert failures(events) == ["get", "acquire"]


@pytest.mark.parametrize(("fetch_timeout", "until"), [(30.0, 10.0), (4.0, 2.0)])
async def test_an_end_that_is_still_being_told_leaves_time_to_fetch(
    autojump_clock: MockClock, between: Any, fetch_timeout: float, until: float
) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache, dedupe = between(stores.cache), between(stores.dedupe)
        dedupe.trouble["complete"] = "hang"
        share = Share(cache, dedupe, "key")
        async with open_provider(fetch, share=share, fetch_timeout=fetch_timeout, observe=events.append) as provider:
            cache.trouble["get"] = "hang"
            assert text(await provider.refresh()) == "b"
            assert trio.current_time() == until
            assert failures(events)[0] == "complete"


async def test_a_peers_value_is_used_although_the_store_hangs_then(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Sleep(3.0, Token("a", 100.0)))
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        async with (
            open_provider(fetch, share=share_of(stores), eager=False) as first,
            open_provider(
                fetch, share=Share(cache, stores.dedupe, "key"), eager=False, fetch_timeout=4.0, observe=events.append
            ) as peer,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(into, [], first.get)
            await wait_all_tasks_blocked()
            nursery.start_soon(into, [], peer.get)
            await trio.sleep(1.0)
            cache.trouble["get"] = "hang"
            assert text(await peer.get()) == "a"
            assert trio.current_time() == 3.5
    assert failures(events) == ["get"]
    assert fetch.calls == 1


@pytest.mark.parametrize("method", ["complete", "fail"])
async def test_a_job_whose_end_could_not_be_told_is_taken_up_again(
    autojump_clock: MockClock, between: Any, method: str
) -> None:
    """Who waits for it need not wait until its lease has run out, the own process least of all."""
    first: Any = Token("a", 100.0) if method == "complete" else Down()
    fetch = ScriptedFetch(first, Token("b", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        cache, dedupe = between(stores.cache), between(stores.dedupe)
        share = Share(cache, dedupe, "key")
        async with (
            open_provider(
                fetch, share=share, eager=False, fetch_timeout=5.0, policy=PLAIN(serve_expired_for=0.0)
            ) as provider,
            open_provider(fetch, share=share_of(stores), eager=False) as peer,
            trio.open_nursery() as nursery,
        ):
            # Nothing of it reaches the store.
            dedupe.trouble[method] = cache.trouble["set"] = StoreError("down")
            await into(results, provider.get)
            await wait_all_tasks_blocked()
            dedupe.trouble.clear()
            cache.trouble.clear()
            nursery.start_soon(into, results, peer.get)
            await wait_all_tasks_blocked()
            assert text(await provider.refresh()) == "b"
            await wait_all_tasks_blocked()
            assert text(results[1]) == "b"
            assert trio.current_time() == 0.0
            assert (await stores.dedupe.get_stats()).active_jobs == 0
    assert fetch.calls == 2


async def test_a_write_ends_within_the_lease(autojump_clock: MockClock, between: Any) -> None:
    """What arrives later might overwrite what the next owner has written."""
    async with open_memory_stores(lease=1.0) as stores:
        cache = between(stores.cache)
        cache.trouble["set"] = "hang"
        async with open_provider(ScriptedFetch(Token("a", 100.0)), share=Share(cache, stores.dedupe, "key")):
            assert trio.current_time() == 0.5


async def test_an_answer_that_does_not_come(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Sleep(60.0, Token("a", 100.0)), Token("b", 100.0))
    events: list[Event] = []
    async with open_memory_stores() as stores:
        dedupe = between(stores.dedupe)
        async with (
            open_provider(fetch, share=share_of(stores), eager=False) as first,
            open_provider(fetch, share=Share(stores.cache, dedupe, "key"), eager=False, observe=events.append) as peer,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(into, [], first.get)
            await wait_all_tasks_blocked()
            dedupe.trouble["wait_outcome"] = Down()
            assert text(await peer.get()) == "b"
            assert failures(events) == ["wait_outcome"]


async def test_down_for_its_owner_only(autojump_clock: MockClock, between: Any) -> None:
    """It owns the job, and then cannot read: it goes on as the owner, and does not write."""
    fetch = ScriptedFetch(Sleep(1.0, Token("a", 100.0)))
    events: list[Event] = []
    results: list[Any] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        dedupe = between(stores.dedupe)

        async def breaks(hash: str) -> None:
            cache.trouble["get"] = Down()

        dedupe.trouble["register_or_join"] = breaks
        async with (
            open_provider(fetch, share=Share(cache, dedupe, "key"), eager=False, observe=events.append) as first,
            open_provider(fetch, share=share_of(stores), eager=False) as peer,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, first.get)
                await wait_all_tasks_blocked()
                nursery.start_soon(into, results, peer.get)
            assert [text(token) for token in results] == ["a", "a"]
            assert failures(events) == ["get", "get"]
            assert "set" not in cache.calls


async def test_down_when_a_peer_has_answered(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Sleep(1.0, Token("a", 100.0)))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        async with (
            open_provider(fetch, share=share_of(stores), eager=False) as first,
            open_provider(fetch, share=Share(cache, stores.dedupe, "key"), eager=False) as peer,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(into, results, first.get)
            await wait_all_tasks_blocked()
            nursery.start_soon(into, results, peer.get)
            await wait_all_tasks_blocked()
            cache.trouble["get"] = Down()
        assert [text(token) for token in results] == ["a", "a"]


@pytest.mark.parametrize("trouble", ["hang", "raise"])
async def test_a_failure_that_cannot_be_told(autojump_clock: MockClock, between: Any, trouble: str) -> None:
    fetch = ScriptedFetch(Sleep(1.0, Down()), Token("b", 100.0))
    events: list[Event] = []
    results: list[Any] = []
    async with open_memory_stores() as stores:
        dedupe = between(stores.dedupe)
        dedupe.trouble["fail"] = "hang" if trouble == "hang" else StoreError("down")
        async with (
            open_provider(fetch, share=Share(stores.cache, dedupe, "key"), eager=False, observe=events.append) as first,
            open_provider(fetch, share=share_of(stores), eager=False) as peer,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, first.get)
                await wait_all_tasks_blocked()
                nursery.start_soon(into, results, peer.get)
            # The caller here knows at once; the peer takes over when the lease has run out.
            assert type(results[0]) is Down
            assert text(results[1]) == "b"
            assert trio.current_time() == 10.0
            assert failures(events) == ["fail"]


async def test_a_store_that_is_down_while_closing(autojump_clock: MockClock, between: Any) -> None:
    events: list[Event] = []
    async with open_memory_stores() as stores:
        dedupe = between(stores.dedupe)
        dedupe.trouble["fail"] = "hang"
        with trio.move_on_after(1.0):
            async with open_provider(
                ScriptedFetch(Block()), share=Share(stores.cache, dedupe, "key"), observe=events.append
            ):
                raise AssertionError("not reached")
        assert trio.current_time() == 6.0
    assert [type(event).__name__ for event in events] == [
        "FetchStarted",
        "FetchAbandoned",
        "StorageFailed",
        "OwnerClosed",
    ]


async def test_an_interrupt_in_the_store(autojump_clock: MockClock, between: Any) -> None:
    async with open_memory_stores() as stores:
        cache = between(stores.cache)

        async def interrupted(hash: str) -> None:
            raise KeyboardInterrupt

        cache.trouble["get"] = interrupted
        with pytest.raises(KeyboardInterrupt):
            async with open_provider(ScriptedFetch(), share=Share(cache, stores.dedupe, "key")):
                raise AssertionError("not reached")


async def test_an_interrupt_in_a_heartbeat(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Block(), Token("a", 600.0))
    async with open_memory_stores() as stores:
        dedupe = between(stores.dedupe)

        async def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        dedupe.trouble["extend"] = interrupted
        with pytest.raises(KeyboardInterrupt):
            async with open_provider(fetch, share=Share(stores.cache, dedupe, "key")):
                raise AssertionError("not reached")
        assert trio.current_time() == 2.5
        async with open_provider(fetch, share=share_of(stores)):
            # Nobody was told: the lease has to run out.
            assert trio.current_time() == 10.0


async def test_what_has_been_fetched_is_shared_although_the_owner_crashes(
    autojump_clock: MockClock, between: Any
) -> None:
    async with open_memory_stores(lease=4.0) as stores:
        cache, dedupe = between(stores.cache), between(stores.dedupe)
        cache.trouble["set"] = 1.5
        beats = 0

        async def interrupted(*_: Any) -> None:
            nonlocal beats
            beats += 1
            if beats == 2:
                raise KeyboardInterrupt

        dedupe.trouble["extend"] = interrupted
        with pytest.raises(KeyboardInterrupt):
            async with open_provider(ScriptedFetch(Token("a", 600.0)), share=Share(cache, dedupe, "key")):
                raise AssertionError("not reached")
        async with open_provider(ScriptedFetch(), share=share_of(stores)) as peer:
            assert text(await peer.get()) == "a"


# At every step


def test_an_owner_cancelled_at_any_step() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(then=Sleep(1.0, Token("a", 60.0)))
        async with open_memory_stores() as stores:
            async with open_provider(fetch, share=share_of(stores), eager=False) as peer:
                with victim():
                    async with open_provider(fetch, share=share_of(stores)):
                        pass
                with trio.fail_after(2.0):
                    assert text(await peer.get()) == "a"

    report = cancel_at_every_checkpoint(scenario)
    assert report.steps >= 10


def test_a_peer_cancelled_at_any_step() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(then=Sleep(1.0, Token("a", 60.0)))
        results: list[Any] = []
        async with open_memory_stores() as stores:
            async with open_provider(fetch, share=share_of(stores), eager=False) as owner:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(into, results, owner.get)
                    await wait_all_tasks_blocked()
                    with victim():
                        async with open_provider(fetch, share=share_of(stores)):
                            pass
                assert [text(token) for token in results] == ["a"]
                assert fetch.calls == 1

    report = cancel_at_every_checkpoint(scenario)
    assert report.steps >= 5


def test_closed_at_any_step() -> None:
    scopes: list[trio.CancelScope] = []

    async def scenario() -> None:
        fetch = ScriptedFetch(then=Sleep(1.0, Token("a", 60.0)))
        results: list[Any] = []
        async with open_memory_stores() as stores:
            async with open_provider(fetch, share=share_of(stores), eager=False) as peer:
                async with trio.open_nursery() as nursery:
                    with victim(), trio.CancelScope() as scope:
                        scopes.append(scope)
                        async with open_provider(fetch, share=share_of(stores), eager=False) as provider:
                            nursery.start_soon(into, results, peer.get)
                            await provider.get()
                with trio.fail_after(2.0):
                    assert text(await peer.get()) == "a"
                assert [text(token) for token in results] in (["a"], [])
                assert fetch.calls <= 2

    do_at_every_checkpoint(scenario, lambda: scopes[-1].cancel())


def test_interrupted_at_any_line() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(Token("a", 60.0), Token("b", 60.0))
        async with open_memory_stores() as stores:
            async with open_provider(fetch, share=share_of(stores)) as provider:
                await provider.clear()
                await provider.get()

    modules = (trio_renew._share, trio_renew._job, trio_renew._generation, trio_renew._ask)
    interrupt_at_every_line(scenario, within=modules)


async def test_abandoned_is_told_as_such(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    async with open_memory_stores() as stores:
        async with open_provider(
            ScriptedFetch(Block()),
            share=share_of(stores),
            eager=False,
            when_abandoned="cancel",
            observe=events.append,
        ) as provider:
            with trio.move_on_after(1.0):
                await provider.get()
            await wait_all_tasks_blocked()
            assert isinstance(events[-1], FetchAbandoned)

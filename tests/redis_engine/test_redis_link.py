"""The connection of the Redis engine: addresses, outages, cancellation, closing."""

from __future__ import annotations

import datetime
import gc
import ipaddress
import ssl
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import coredis
import pytest
import trio
from coredis.connection import TCPLocation
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from trio_renew import StoreError
from trio_renew.stores import _redis_link
from trio_renew.stores._redis_address import address_of
from trio_renew.stores._redis_link import Link
from trio_renew.stores.redis import open_redis_bus, open_redis_stores

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .conftest import Server


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.002)


# Addresses


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("localhost:6379", "'localhost:6379'"),
        ("http://user:hunter2@localhost", "'http'"),
        ("redis://user:hunter2@localhost:port", "ValueError"),
        ("redis://localhost:6379?max_connections=hunter2", "ValueError"),
        ("", "''"),
    ],
)
def test_a_bad_url_is_refused_without_showing_it(url: str, shown: str) -> None:
    with pytest.raises(ValueError, match="url_or_client") as caught:
        address_of(url)
    assert shown in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


def test_only_urls_and_clients_of_one_server_are_taken() -> None:
    with pytest.raises(TypeError, match=r"url_or_client must be a URL or a coredis\.Redis client, not 7"):
        address_of(7)
    primary = coredis.Sentinel([TCPLocation("localhost", 1)]).primary_for("it")
    with pytest.raises(TypeError, match="a client of one server"):
        address_of(primary)
    with pytest.raises(ValueError, match="a host or a socket"):
        address_of("redis://")


def test_the_settings_of_a_url_are_taken() -> None:
    address = address_of("valkey://us%40er:pa%2Fss@example.com:7000/3")
    assert repr(address.location) == "example.com:7000"
    assert address.tls is None
    assert address.settings["username"] == "us@er"
    assert address.settings["password"] == "pa/ss"
    assert address.settings["db"] == 3
    assert "pa/ss" not in repr(address)


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("rediss://localhost", True),
        ("valkeys://localhost?db=1", True),
        ("rediss://localhost?ssl_check_hostname=false", False),
        ("rediss://localhost?ssl_cert_reqs=none", False),
    ],
)
def test_tls_checks_the_host_unless_told_otherwise(url: str, checked: bool) -> None:
    assert address_of(url).tls.check_hostname is checked


async def test_bad_options_are_refused() -> None:
    for options, error in (
        ({"prefix": b"x"}, TypeError),
        ({"lease": 0}, ValueError),
        ({"max_entry_size_bytes": 0}, ValueError),
        ({"codec": object()}, TypeError),
    ):
        with pytest.raises(error, match=next(iter(options))):
            async with open_redis_stores("redis://localhost", **options):  # type: ignore[arg-type]
                raise AssertionError("opened")
    for channel, error in ((b"x", TypeError), ("", ValueError)):
        with pytest.raises(error, match="channel"):
            async with open_redis_bus("redis://localhost", channel=channel):  # type: ignore[arg-type]
                raise AssertionError("opened")


# Connecting


async def test_a_clients_settings_are_taken_and_it_is_not_closed(server: Server, prefix: str) -> None:
    async with coredis.Redis(unix_socket_path=str(server.socket), decode_responses=True, db=3) as client:
        async with open_redis_stores(client, prefix=prefix) as stores:
            await stores.cache.set("a", {"b": 1}, 60.0, tags=("t",))
            assert await stores.cache.get("a") == {"b": 1}
            job = await stores.dedupe.register_or_join("a")
            await stores.dedupe.complete("a", 1, job_id=job.job_id)
            assert await stores.dedupe.wait_for("a", job_id=job.job_id) == 1
            assert (await stores.adaptive.get_status("a")).reason.startswith("Initial")
        assert await client.exists([f"{prefix}c:a"]) == 1


async def test_credentials_and_database_come_from_the_url(server: Server, prefix: str) -> None:
    server.ask("ACL", "SETUSER", "me", "reset", "on", ">p@ss/word", "~*", "&*", "+@all")
    good = f"unix://me:p%40ss%2Fword@{server.socket}?db=5"
    async with open_redis_stores(good, prefix=prefix) as stores:
        await stores.cache.set("a", 1, 60.0)
    async with coredis.Redis.from_url(server.url, db=5) as client:
        assert await client.exists([f"{prefix}c:a"]) == 1
    async with open_redis_stores(f"unix://me:wrong-one@{server.socket}") as stores:
        with pytest.raises(StoreError) as caught:
            await stores.cache.get("a")
        assert "wrong-one" not in str(caught.value)


async def test_a_password_alone_is_enough(own_server: Server) -> None:
    own_server.ask("CONFIG", "SET", "requirepass", "s e/cret")
    async with open_redis_stores(f"redis://:s%20e%2Fcret@127.0.0.1:{own_server.port}/2") as stores:
        await stores.cache.set("a", 1, 60.0)
        assert await stores.cache.get("a") == 1


async def test_opening_needs_no_server_and_leaks_nothing(tmp_path: Path, prefix: str) -> None:
    async with (
        open_redis_stores(f"unix://{tmp_path}/none.sock") as stores,
        open_redis_stores("redis://127.0.0.1:1") as other,
    ):
        for call in (
            lambda: stores.cache.get("a"),
            lambda: other.cache.set("a", 1, 60.0),
            lambda: stores.cache.clear(),
            lambda: stores.dedupe.register_or_join("a"),
            lambda: stores.dedupe.wait_outcome("a"),
            lambda: stores.rate_limit.acquire("a"),
            lambda: stores.adaptive.get_status("a"),
        ):
            with pytest.raises(StoreError, match="redis at"):
                await call()
    gc.collect()


async def test_an_exception_of_the_body_leaves_as_itself(server: Server) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_redis_stores(server.url) as stores:
            await stores.cache.get("a")
            raise KeyError("mine")


async def test_those_who_come_at_once_share_one_connection(own_server: Server) -> None:
    async with open_redis_stores(own_server.url) as stores, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(stores.cache.get, f"k{number}")
        await stores.cache.get("one more")
        assert str(own_server.socket) in repr(stores.cache._room.link._connection)
    assert b"total_connections_received:3" in own_server.ask("INFO", "stats")


async def test_who_is_cancelled_while_connecting_takes_nobody_away(own_server: Server) -> None:
    own_server.pause()
    async with open_redis_stores(own_server.url) as stores, trio.open_nursery() as nursery:
        nursery.start_soon(stores.cache.get, "a")
        with trio.move_on_after(0.02) as scope:
            await stores.cache.get("a")
        assert scope.cancelled_caught
        own_server.resume()


async def test_whoever_hangs_up_during_the_handshake_is_no_server(prefix: str) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if seen:
            await stream.send_all(b"+PO")
            await trio.sleep(0.01)
            await stream.send_all(b"NG\r\n")
            await stream.receive_some()
        seen.append(True)

    seen: list[bool] = []
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1")
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        async with open_redis_stores(f"redis://127.0.0.1:{port}") as stores:
            for how in ("EndOfStream", "Connection lost"):
                with pytest.raises(StoreError, match=how):
                    await stores.cache.get("a")
        nursery.cancel_scope.cancel()


def ends_at_once(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Let the first connections be lost when they are made, before whoever waits for them has a turn."""
    made: list[int] = []
    established = Link._established

    def lose(link: Link, attempt: Any) -> None:
        established(link, attempt)
        made.append(1)
        if len(made) <= times:
            attempt.connection.invalidate("lost")

    monkeypatch.setattr(Link, "_established", lose)
    return made


async def test_a_connection_that_is_lost_before_its_first_use_is_made_again(
    server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ends_at_once(monkeypatch, 2)
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        assert await stores.cache.get("a") is None
    assert len(made) == 3


async def test_connections_that_are_always_lost_are_a_store_error(
    server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_at_once(monkeypatch, sys.maxsize)
    monkeypatch.setattr(_redis_link, "PATIENCE", 0.02)
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        with trio.fail_after(5), pytest.raises(StoreError, match="each connection was lost at once"):
            await stores.cache.get("a")


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate for 127.0.0.1 that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "cert.pem", folder / "key.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(public, private)
    return public, context


async def test_tls(server: Server, prefix: str, tmp_path: Path) -> None:
    public, context = certificate(tmp_path)

    async def forward(stream: trio.SSLStream[trio.SocketStream]) -> None:
        async def pump(source: Any, sink: Any) -> None:
            with trio.CancelScope():
                try:
                    async for data in source:
                        await sink.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
            pumps.cancel_scope.cancel()

        async with stream, await trio.open_unix_socket(server.socket) as inner, trio.open_nursery() as pumps:
            pumps.start_soon(pump, stream, inner)
            pumps.start_soon(pump, inner, stream)

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_ssl_over_tcp, forward, 0, context, host="127.0.0.1", https_compatible=True)
        listeners = await nursery.start(serve)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        async with open_redis_stores(f"rediss://127.0.0.1:{port}?ssl_ca_certs={public}", prefix=prefix) as stores:
            await stores.cache.set("a", 1, 60.0)
            assert await stores.cache.get("a") == 1
        async with open_redis_stores(f"rediss://127.0.0.1:{port}", prefix=prefix) as stores:
            with pytest.raises(StoreError, match="certificate"):
                await stores.cache.get("a")
        nursery.cancel_scope.cancel()


# Outages


async def test_a_server_that_comes_back_is_found_again(own_server: Server) -> None:
    for url in (own_server.url, f"redis://127.0.0.1:{own_server.port}"):
        async with open_redis_stores(url) as stores:
            await stores.cache.set("a", 1, 60.0)
            own_server.kill()
            with pytest.raises(StoreError):
                await stores.cache.get("a")
            with pytest.raises(StoreError):
                await stores.cache.get("a")
            own_server.start()
            assert await stores.cache.get("a") is None
            # Without a checkpoint in between: nobody has had the time to notice.
            own_server.kill()
            own_server.start()
            assert await stores.cache.get("a") is None


async def test_a_connection_that_was_reset_is_found_out_before_anything_is_sent(own_server: Server) -> None:
    async with open_redis_stores(f"redis://127.0.0.1:{own_server.port}") as stores:
        await stores.cache.set("a", 1, 60.0)
        own_server.pause()
        with trio.move_on_after(0.05):
            # The server dies with this unread, and its machine answers with a reset.
            await stores.cache.get("a")
        own_server.kill()
        own_server.start()
        assert await stores.cache.get("a") is None


async def test_a_server_that_dies_during_a_call(own_server: Server) -> None:
    async with open_redis_stores(own_server.url) as stores:
        await stores.cache.get("a")
        own_server.pause()
        errors: list[StoreError] = []

        async def get() -> None:
            with pytest.raises(StoreError) as caught:
                await stores.cache.get("a")
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(get)
            await trio.sleep(0.02)
            own_server.kill()
        assert len(errors) == 3
        own_server.start()
        assert await stores.cache.get("a") is None


async def test_no_answer_within_five_seconds_is_a_store_error(
    own_server: Server, mock_clock: trio.testing.MockClock
) -> None:
    async with open_redis_stores(own_server.url) as stores:
        await stores.cache.set("a", 1, 60.0)
        own_server.pause()
        mock_clock.autojump_threshold = 0.02

        async def get() -> None:
            started = trio.current_time()
            with pytest.raises(StoreError, match=r"no answer within 5 s|Connection lost"):
                await stores.cache.get("a")
            assert trio.current_time() - started == pytest.approx(5.0)

        for _ in range(2):
            # First over the open connection, which is given up, then without one.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(get)
                nursery.start_soon(get)
        own_server.resume()
        mock_clock.autojump_threshold = float("inf")
        assert await stores.cache.get("a") == 1


@pytest.mark.parametrize("steps", range(12))
async def test_connections_that_the_server_ends_are_made_again(server: Server, prefix: str, steps: int) -> None:
    """Whatever step the connection's own task has come to when somebody calls."""
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        await stores.cache.set("a", 1, 60.0)
        server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        assert await stores.cache.get("a") == 1


async def test_a_server_that_forgets_its_scripts_gets_them_again(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        await stores.cache.set("a", 1, 60.0)
        server.ask("SCRIPT", "FLUSH")
        await stores.cache.set("a", 2, 60.0)
        await stores.cache.set("a", 3, 60.0)
        assert await stores.cache.get("a") == 3


async def test_what_the_server_refuses_is_a_store_error(server: Server, prefix: str) -> None:
    server.ask("LPUSH", f"{prefix}c:a", "x")
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        with pytest.raises(StoreError, match=r"WRONGTYPE|wrong kind"):
            await stores.cache.get("a")
        await stores.cache.set("b", 1, 60.0)
        assert await stores.cache.get("b") == 1


async def test_who_may_not_subscribe_looks_every_now_and_then(server: Server, prefix: str) -> None:
    server.ask("ACL", "SETUSER", "deaf", "reset", "on", ">x", "~*", "resetchannels", "+@all")
    url = f"unix://deaf:x@{server.socket}"
    async with open_redis_stores(url, prefix=prefix) as stores, open_redis_stores(url, prefix=prefix) as other:
        job = await stores.dedupe.register_or_join("a")
        found: list[object] = []

        async def wait() -> None:
            found.append(await other.dedupe.wait_for("a", job_id=job.job_id))

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0.05)
                await stores.dedupe.complete("a", 1, job_id=job.job_id)
        assert found == [1]


async def test_who_may_do_nothing_gets_a_store_error(server: Server, prefix: str) -> None:
    server.ask("ACL", "SETUSER", "nobody", "reset", "on", ">x", "&*", "~*", "+hello", "+subscribe", "+client")
    async with open_redis_stores(f"unix://nobody:x@{server.socket}", prefix=prefix) as stores:
        for _ in range(2):
            with pytest.raises(StoreError):
                await stores.cache.get("a")
    server.ask("ACL", "SETUSER", "here", "reset", "on", ">x", "&*", "~*", "+@all", "-select")
    async with open_redis_stores(f"unix://here:x@{server.socket}?db=1", prefix=prefix) as stores:
        with pytest.raises(StoreError, match="select"):
            await stores.cache.get("a")


# Cancellation and closing


async def test_a_call_in_a_cancelled_scope_does_nothing(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        await stores.cache.get("a")
        with trio.CancelScope() as scope:
            scope.cancel()
            await stores.cache.set("a", 1, 60.0)
        assert scope.cancelled_caught
        assert await stores.cache.get("a") is None


async def test_a_cancelled_call_leaves_the_connection_in_order(own_server: Server) -> None:
    async with open_redis_stores(own_server.url) as stores:
        await stores.cache.set("a", 1, 60.0)
        await stores.cache.set("b", 2, 60.0)
        own_server.pause()
        with trio.move_on_after(0.02) as scope:
            await stores.cache.get("a")
        assert scope.cancelled_caught
        own_server.resume()
        assert await stores.cache.get("b") == 2


CALLS: dict[str, Callable[[Any], Awaitable[object]]] = {
    "get": lambda stores: stores.cache.get("a"),
    "set": lambda stores: stores.cache.set("a", 1, 60.0),
    "set nothing": lambda stores: stores.cache.set("a", 1, -1),
    "delete": lambda stores: stores.cache.delete("a"),
    "clear": lambda stores: stores.cache.clear(),
    "tag": lambda stores: stores.cache.invalidate_tag("a"),
    "entries": lambda stores: stores.cache.list_entries(),
    "cache stats": lambda stores: stores.cache.get_stats(),
    "cache cleanup": lambda stores: stores.cache.cleanup(),
    "register": lambda stores: stores.dedupe.register("a"),
    "join": lambda stores: stores.dedupe.register_or_join("a"),
    "wait": lambda stores: stores.dedupe.wait_for("a"),
    "complete": lambda stores: stores.dedupe.complete("a", 1, job_id="x"),
    "complete mine": lambda stores: stores.dedupe.complete("a", 1),
    "fail": lambda stores: stores.dedupe.fail("a", ValueError(), job_id="x"),
    "extend": lambda stores: stores.dedupe.extend("a", "x"),
    "in progress": lambda stores: stores.dedupe.is_in_progress("a"),
    "jobs": lambda stores: stores.dedupe.list_jobs(),
    "job stats": lambda stores: stores.dedupe.get_stats(),
    "job cleanup": lambda stores: stores.dedupe.cleanup(),
    "clear jobs": lambda stores: stores.dedupe.clear(),
    "acquire": lambda stores: stores.rate_limit.acquire("a"),
    "proceed": lambda stores: stores.rate_limit.can_proceed("a"),
    "record": lambda stores: stores.rate_limit.record("a"),
    "status": lambda stores: stores.rate_limit.get_status("a"),
    "reset": lambda stores: stores.rate_limit.reset("a"),
    "wait time": lambda stores: stores.rate_limit.get_wait_time("a"),
    "cool": lambda stores: stores.rate_limit.set_cooldown("a", 2e9),
    "cooldown": lambda stores: stores.rate_limit.get_cooldown("a"),
    "warm": lambda stores: stores.rate_limit.clear_cooldown("a"),
    "config": lambda stores: stores.rate_limit.get_resource_config("a"),
    "resources": lambda stores: stores.rate_limit.list_resources(),
    "limit stats": lambda stores: stores.rate_limit.get_stats(),
    "limit cleanup": lambda stores: stores.rate_limit.cleanup(),
    "clear limits": lambda stores: stores.rate_limit.clear(),
    "adaptive": lambda stores: stores.adaptive.acquire("a", "user"),
}


async def test_after_closing_every_method_says_so(own_server: Server) -> None:
    async with open_redis_stores(own_server.url) as stores:
        await stores.cache.get("a")
    for name, call in CALLS.items():
        with pytest.raises(trio.ClosedResourceError):
            await call(stores)
            raise AssertionError(name)


@pytest.mark.parametrize("name", CALLS)
async def test_every_method_is_a_checkpoint_and_can_be_cancelled(server: Server, prefix: str, name: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        with trio.testing.assert_checkpoints():
            await CALLS[name](stores)
        with trio.CancelScope() as scope:
            scope.cancel()
            await CALLS[name](stores)
        assert scope.cancelled_caught
        with trio.fail_after(5):
            await CALLS[name](stores)


async def test_whatever_is_cancelled_while_it_waits_leaves_the_rest_in_order(own_server: Server) -> None:
    async with open_redis_stores(own_server.url) as stores:
        await stores.cache.set("b", "still right", 60.0)
        for name, call in CALLS.items():
            own_server.pause()
            with trio.move_on_after(0.005):
                await call(stores)
            own_server.resume()
            with trio.fail_after(5):
                assert await stores.cache.get("c") is None, name
                await stores.dedupe.clear()
                await call(stores)
        await stores.cache.set("b", "still right", 60.0)
        assert await stores.cache.get("b") == "still right"
        assert not stores.dedupe._waiters


async def test_closing_ends_what_is_under_way(own_server: Server) -> None:
    ended: list[str] = []

    async def call(name: str, function: Callable[[Any], Awaitable[object]], stores: Any) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await function(stores)
        ended.append(name)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            async with open_redis_stores(own_server.url) as stores:
                await stores.dedupe.register("job")
                nursery.start_soon(call, "waiter", lambda it: it.dedupe.wait_outcome("job"), stores)
                await trio.sleep(0.02)
                own_server.pause()
                nursery.start_soon(call, "get", CALLS["get"], stores)
                nursery.start_soon(call, "clear", CALLS["clear"], stores)
                await trio.sleep(0.02)
            async with open_redis_stores(own_server.url) as stores:
                nursery.start_soon(call, "connecting", CALLS["get"], stores)
                await trio.sleep(0.02)
    assert sorted(ended) == ["clear", "connecting", "get", "waiter"]


async def test_closing_before_the_connection_has_begun(server: Server) -> None:
    async with trio.open_nursery() as nursery:
        async with open_redis_stores(server.url) as stores:

            async def get() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await stores.cache.get("a")

            nursery.start_soon(get)
            # One step: the task has asked for a connection, nobody has made one yet.
            await trio.lowlevel.checkpoint()


async def test_another_thread_is_refused(server: Server) -> None:
    errors: list[BaseException] = []
    async with open_redis_stores(server.url) as stores:

        def elsewhere() -> None:
            try:
                trio.run(stores.cache.get, "a")
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await trio.to_thread.run_sync(thread.join)
    assert "another thread" in str(errors[0])

"""The demo: its server, its workers, what it shows, and whole runs of it."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

import attrs
import httpx2
import pytest
import trio
from rich.console import Console

from trio_renew import (
    AuthToken,
    BreakerChanged,
    Cleared,
    Closed,
    Event,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    HalfOpen,
    Open,
    OwnerClosed,
    ServedExpired,
    StorageFailed,
    open_provider,
)
from trio_renew.__main__ import _Stop, main
from trio_renew._demo.load import Load, percentile
from trio_renew._demo.remote import Life, Remote, open_server
from trio_renew._demo.report import Report
from trio_renew._demo.scenes import Stage, most_within
from trio_renew._demo.server import Application, Settings
from trio_renew._demo.view import LiveView, NoView, PlainView, breaker_in_words, in_words

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

SETTINGS = Settings("me", "my secret", "admin key", lifetime=10.0)
BASIC = "Basic " + base64.b64encode(b"me:my secret").decode()
GRANT = {"grant_type": "client_credentials"}


class Server:
    """The application, with a clock to set, and without a socket."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.app = Application(SETTINGS, lambda: self.now)
        transport = httpx2.ASGITransport(app=self.app)
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://demo")
        self.remote = Remote(SETTINGS, "http://demo", self.client, self.client)

    async def token(self, **kwargs: Any) -> httpx2.Response:
        return await self.client.post(
            "/oauth2/token", **({"headers": {"authorization": BASIC}, "data": GRANT} | kwargs)
        )

    async def item(self, authorization: str | None) -> httpx2.Response:
        headers = {} if authorization is None else {"authorization": authorization}
        return await self.client.get("/api/item", headers=headers)


@pytest.fixture
async def server() -> AsyncGenerator[Server, None]:
    server = Server()
    async with server.client:
        yield server


# The server


async def test_the_token_endpoint_gives_tokens_to_its_client(server: Server) -> None:
    response = await server.token()
    assert response.status_code == 200
    answer = response.json()
    assert answer["token_type"] == "Bearer"
    assert answer["expires_in"] == 10.0
    assert (await server.item(f"Bearer {answer['access_token']}")).status_code == 200


async def test_the_token_endpoint_refuses_others_and_other_grants(server: Server) -> None:
    response = await server.token(headers={"authorization": "Basic bm8="})
    assert (response.status_code, response.json()) == (401, {"error": "invalid_client"})
    response = await server.token(data={"grant_type": "password"})
    assert (response.status_code, response.json()) == (400, {"error": "unsupported_grant_type"})
    counters = (await server.remote.state())["counters"]
    assert (counters["token_requests"], counters["tokens_issued"]) == (2, 0)


async def test_the_api_tells_rejected_tokens_apart(server: Server) -> None:
    text = (await server.token()).json()["access_token"]
    assert (await server.item(None)).headers["www-authenticate"] == "Bearer"
    assert (await server.item("Bearer nobody")).status_code == 401
    server.now += 9.999
    assert (await server.item(f"bearer {text}")).status_code == 200
    server.now += 0.001
    assert (await server.item(f"Bearer {text}")).status_code == 401
    text = (await server.token()).json()["access_token"]
    await server.remote.revoke_all()
    assert (await server.item(f"Bearer {text}")).headers["www-authenticate"] == 'Bearer error="invalid_token"'
    counters = (await server.remote.revoke_all())["counters"]
    seen = {key: counters[f"api_{key}"] for key in ("requests", "ok", "missing", "unknown", "expired", "revoked")}
    assert seen == {"requests": 5, "ok": 1, "missing": 1, "unknown": 1, "expired": 1, "revoked": 1}


async def test_an_outage_is_a_refusal(server: Server) -> None:
    await server.remote.faults(outage=True)
    assert (await server.token()).status_code == 503
    with pytest.raises(httpx2.HTTPStatusError):
        await server.remote.mint()
    counters = (await server.remote.faults())["counters"]
    assert (counters["token_requests"], counters["tokens_refused"]) == (2, 2)
    assert (await server.token()).status_code == 200


async def test_token_requests_at_the_same_time_are_counted(
    server: Server, autojump_clock: trio.testing.MockClock
) -> None:
    await server.remote.faults(latency=5.0)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(server.token)
    counters = (await server.remote.state())["counters"]
    assert counters["token_requests_at_once"] == 3
    assert counters["token_requests_now"] == 0
    assert trio.current_time() == 5.0


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [
        ("GET", "/nothing", "admin key"),
        ("GET", "/oauth2/token", "admin key"),
        ("GET", "/admin/state", "wrong"),
        ("POST", "/admin/state", "admin key"),
        ("GET", "/admin/faults", "admin key"),
    ],
)
async def test_nothing_else_is_there(server: Server, method: str, path: str, key: str) -> None:
    response = await server.client.request(method, path, headers={"x-admin-key": key})
    assert response.status_code == 404


async def test_it_goes_along_with_the_start_and_stop_of_its_host() -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {}

    async def send(message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    await Application(SETTINGS)({"type": "lifespan"}, receive, send)
    assert sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


# Its process


async def test_its_process_serves_until_its_input_ends() -> None:
    with trio.fail_after(30):
        async with open_server(SETTINGS) as address, httpx2.AsyncClient(trust_env=False) as client:
            remote = Remote(SETTINGS, address, client, client)
            token = await remote.mint()
            assert await remote.use(token) == 200
            assert await remote.use(AuthToken("no")) == 401
        with pytest.raises(OSError, match=r"."):
            await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))


async def test_a_process_that_does_not_start_is_an_error() -> None:
    with trio.fail_after(30), pytest.raises(RuntimeError, match="did not start"):
        async with open_server(SETTINGS, code="input()"):
            raise AssertionError("it has started")


async def test_a_process_that_does_not_go_is_killed() -> None:
    code = 'import os, time; input(); print(\'{"address": "%d"}\' % os.getpid(), flush=True); time.sleep(60)'
    with trio.fail_after(30):
        async with open_server(SETTINGS, code=code, patience=0.05) as address:
            os.kill(int(address), 0)
        with pytest.raises(ProcessLookupError):
            os.kill(int(address), 0)


def test_a_process_without_a_configuration_ends() -> None:
    code = "from trio_renew._demo.server import main; main()"
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# The ledger and the figures


def test_a_life_covers_what_lies_wholly_in_it() -> None:
    life = Life(1.0, 10.0)
    assert not life.covers(2.0, 3.0)
    life.usable_from = 2.0
    assert life.covers(2.0, 9.9)
    assert not life.covers(1.9, 3.0)
    assert not life.covers(2.0, 10.0)
    life.ended_at = 5.0
    assert life.covers(2.0, 4.9)
    assert not life.covers(2.0, 5.0)


async def test_the_ledger_knows_since_when_and_until_when(server: Server) -> None:
    await server.remote.mint()
    start = time.time()
    assert not server.remote.was_usable(start, start)
    server.remote.usable()
    now = time.time()
    assert server.remote.was_usable(now, now)
    server.remote.end_tokens()
    [life] = server.remote.ledger
    ended = life.ended_at
    server.remote.end_tokens()
    assert life.ended_at == ended
    assert not server.remote.was_usable(now, time.time() + 1)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_percentile(share: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], share) == expected
    assert percentile([], share) == 0


@pytest.mark.parametrize(
    ("times", "most"), [([], 0), ([1.0], 1), ([1.0, 2.0, 3.0], 1), ([1.0, 1.5, 1.9, 2.0, 5.0], 3), ([1.0, 1.0], 2)]
)
def test_most_within_one_second(times: list[float], most: int) -> None:
    assert most_within(times, 1.0) == most


def test_a_report_is_as_good_as_its_worst_line() -> None:
    report = Report(1.0, 2, 3)
    assert report.ok
    report.promise("one", "1", 1.0, True)
    assert report.ok
    report.promise("two", "0", 2, False, "workers")
    assert not report.ok
    assert report.as_json()["ok"] is False
    assert [line["seen"] for line in report.as_json()["promises"]] == ["1.00", "2"]
    console = Console(file=StringIO(), width=100)
    console.print(report.table())
    assert "BROKEN" in console.file.getvalue()  # type: ignore[attr-defined]


# The workers


@asynccontextmanager
async def loaded(server: Server, **options: Any) -> AsyncGenerator[tuple[Load, Any], None]:
    def observe(event: Event) -> None:
        if isinstance(event, FetchSucceeded):
            server.remote.usable()

    async with open_provider(server.remote.mint, observe=observe, clock=time.time, **options) as provider:
        yield Load(provider, server.remote, 1, random.Random(0)), provider


async def test_a_worker_answers_a_rejection_with_one_refresh(server: Server) -> None:
    async with loaded(server) as (load, _):
        await load._request()
        await server.remote.revoke_all()
        await load._request()
        await load._request()
    assert (load.ok, load.rejected, load.answered, load.failed) == (3, 1, 1, 0)
    assert server.app.counters.token_requests == 2


async def test_a_failure_without_a_token_is_excused(server: Server) -> None:
    async with loaded(server, breaker=None) as (load, provider):
        await server.remote.faults(outage=True)
        await provider.clear()
        server.remote.end_tokens()
        await load._request()
        assert (load.failed, load.ours) == (1, 0)


async def test_a_failure_with_a_good_token_is_ours(server: Server) -> None:
    async with loaded(server) as (load, _):
        server.app.tokens.clear()
        await server.remote.faults(outage=True)
        await load._request()
        assert (load.rejected, load.failed, load.ours) == (1, 1, 1)


async def test_a_wait_for_a_renewal_is_noticed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with loaded(server) as (load, provider):
        status = attrs.evolve(provider.status(), good=False, waiting=3)
        monkeypatch.setattr(type(provider), "status", lambda self: status)
        await load._request()
        assert load.waited == 0
        status = attrs.evolve(status, good=True)
        await load._request()
        assert load.waited == 3


async def test_old_latencies_are_forgotten(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with loaded(server) as (load, _):
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now)
        load._note(True, now, 0.1)
        load._note(True, now, 0.3)
        assert load.pulse() == (1.0, 0.3, 0.3, 0.3)
        monkeypatch.setattr(time, "time", lambda: now + 3)
        assert load.pulse() == (0, 0, 0, 0)
        load._note(True, now, 0.5)
        assert [took for _, took in load.recent] == [0.5]


async def test_workers_stop_and_those_who_do_not_are_counted(server: Server) -> None:
    async with loaded(server) as (load, _):
        assert await load.stop(0.01) == 0
    async with loaded(server) as (load, _), trio.open_nursery() as nursery:
        nursery.start_soon(load.work)
        nursery.start_soon(load.work)
        with trio.fail_after(10):
            await load.success()
        await load.pause()
        await load.pause()
        assert await load.stop(10) == 0
    async with loaded(server) as (load, _), trio.open_nursery() as nursery:
        load.running = 1
        assert await load.stop(0.01) == 1


async def test_a_pause_waits_for_what_is_running(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = trio.Event(), trio.Event()

    async def use(token: AuthToken) -> int:
        asked.set()
        await answer.wait()
        return 200

    monkeypatch.setattr(server.remote, "use", use)
    async with loaded(server) as (load, _), trio.open_nursery() as nursery:
        nursery.start_soon(load.work)
        await asked.wait()
        nursery.start_soon(load.pause)
        await trio.testing.wait_all_tasks_blocked()
        assert load.ok == 0
        answer.set()
        with trio.fail_after(10):
            await load.success()
        assert await load.stop(10) == 0


async def test_a_scene_waits_for_a_fresh_token_while_there_is_none(server: Server) -> None:
    async with loaded(server) as (load, provider):
        stage = Stage(server.remote, provider, load, Report(1.0, 1, 0), NoView())
        await server.remote.faults(outage=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage._fresh_token)
            with trio.fail_after(10):
                while server.app.counters.tokens_refused < 2:
                    await trio.sleep(0.01)
            await server.remote.faults()
        assert provider.status().generation == 2


# What is shown

EVENTS: list[tuple[Event, str]] = [
    (FetchStarted("aging"), "fetch started (aging)"),
    (FetchSucceeded("aging", 0.5, 2.0, 7), "fetch succeeded in 0.50 s: generation 7, 2.00 s to live"),
    (FetchSucceeded("aging", 0.5, None, 7), "fetch succeeded in 0.50 s: generation 7, no end"),
    (FetchFailed("aging", 0.5, OSError(), 2.0, 3.0), "fetch failed after 0.50 s: OSError, 2.00 s left of the old one"),
    (FetchFailed("absent", 0.5, OSError(), None, None), "fetch failed after 0.50 s: OSError, nothing held"),
    (FetchAbandoned("aging"), "fetch abandoned (aging)"),
    (BreakerChanged(Closed(2), Open(5.0)), "breaker: closed -> open"),
    (BreakerChanged(Open(5.0), HalfOpen()), "breaker: open -> half-open"),
    (ServedExpired(0.25), "served a token past its best, 0.25 s after its end"),
    (Cleared(3), "cleared: generation 3"),
    (OwnerClosed(), "closed"),
    (StorageFailed("get", OSError()), "StorageFailed"),
]


@pytest.mark.parametrize(("event", "words"), EVENTS)
def test_events_in_words(event: Event, words: str) -> None:
    assert in_words(event) == words
    assert breaker_in_words(None) == "none"


def console() -> tuple[Console, Callable[[], str]]:
    file = StringIO()
    return Console(file=file, width=120, force_terminal=True, color_system=None), file.getvalue


async def test_plain_lines(server: Server, autojump_clock: trio.testing.MockClock) -> None:
    to, text = console()
    async with loaded(server) as (load, provider):
        view = PlainView(to)
        view.scene("a scene", "what happens")
        await trio.sleep(1.5)
        for age in (0.0, 0.5, 1.0):
            view.event(ServedExpired(age))
        view.event(OwnerClosed())
        with trio.move_on_after(5):
            await view.run(provider, load)
    lines = text().splitlines()
    assert lines[:3] == [
        "  0.00 s  == a scene: what happens",
        "  1.50 s  served a token past its best, 0.00 s after its end",
        "  1.50 s  closed",
    ]
    assert [line[:24] for line in lines[3:]] == ["  3.50 s  0 requests/s, ", "  5.50 s  0 requests/s, "]


async def test_nothing_shown(server: Server, autojump_clock: trio.testing.MockClock) -> None:
    async with loaded(server) as (load, provider):
        view = NoView()
        view.scene("a scene", "what happens")
        view.event(OwnerClosed())
        with trio.move_on_after(5) as scope:
            await view.run(provider, load)
    assert scope.cancelled_caught


async def test_the_picture(server: Server, autojump_clock: trio.testing.MockClock) -> None:
    to, text = console()
    async with loaded(server, eager=False) as (load, provider):
        view = LiveView(to)
        now = time.time()
        to.print(view.paint(provider.status(), load, now))
        assert "nothing held" in text()
        assert "nothing yet" in text()
        view.scene("a scene", "what happens")
        view.event(ServedExpired(0.0))
        view.event(ServedExpired(0.5))
        await provider.get()
        first = provider.status()
        to.print(view.paint(first, load, now))
        to.print(view.paint(first, load, now))
        second = attrs.evolve(first, generation=2, issued_at=now + 5, due_at=now + 9, expires_at=now + 15)
        to.print(view.paint(second, load, now + 12))
        eternal = attrs.evolve(first, generation=3, issued_at=now + 5, due_at=None, expires_at=None)
        to.print(view.paint(eternal, load, now + 20))
        with trio.move_on_after(0.35):
            await view.run(provider, load)
    shown = text()
    assert "a scene  what happens" in shown
    assert "served a token past its best, 0.50 s after its end  (x2)" in shown
    assert "  3 " in shown
    assert "━" in shown


# Whole runs


def test_a_run_keeps_its_promises_and_says_so_in_json() -> None:
    command = [sys.executable, "-m", "trio_renew", "demo", "--json", "--seconds", "9", "--workers", "20", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    report = json.loads(done.stdout)
    assert [line for line in report["promises"] if not line["kept"]] == []
    assert (done.returncode, done.stderr, report["ok"]) == (0, "", True)
    assert (report["workers"], report["seed"]) == (20, 7)
    assert len(report["promises"]) == 19
    assert [scene["scene"] for scene in report["scenes"]] == [
        "steady state",
        "slow endpoint",
        "short outage",
        "long outage",
        "revocation",
        "500 callers of whom some leave",
        "500 callers who all leave",
    ]
    assert report["events"]["BreakerChanged"] >= 3
    seen = {line["what"]: line["seen"] for line in report["promises"]}
    assert seen["token requests at the same time, ever"] == "1"
    assert seen["callers left hanging"] == "0"


def test_a_broken_promise_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert main(["demo", "--seconds", "4", "--workers", "10", "--sabotage"]) == 1
    assert signal.getsignal(signal.SIGINT) is before
    out = capsys.readouterr().out
    assert "BROKEN" in out
    assert "== long outage" in out
    assert out.endswith("a promise was broken\n")


def test_an_interrupt_ends_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    assert main(["demo", "--workers", "20"]) == 130
    timer.join()
    assert time.monotonic() - began < 15
    captured = capsys.readouterr()
    assert captured.err == "interrupted; everything is closed\n"
    assert "generations of the token" in captured.out


def test_an_interrupt_ends_everything_also_while_it_starts() -> None:
    command = [sys.executable, "-m", "trio_renew", "demo", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(0.6)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) in [
        (128 + signal.SIGTERM, "", "interrupted; everything is closed\n"),
        (-signal.SIGTERM, "", ""),
    ]


def test_a_signal_counts_before_there_is_anything_to_stop() -> None:
    stop, called = _Stop(), []
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        while stop.number is None:
            time.sleep(0.001)
    stop.stops(lambda: called.append(1))
    assert called == [1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required: command"),
        (["demo", "--seconds", "1"], "must be between 4 and 3600, not 1"),
        (["demo", "--seconds", "nan"], "must be between 4 and 3600, not nan"),
        (["demo", "--seconds", "soon"], "invalid _seconds value: 'soon'"),
        (["demo", "--workers", "0"], "must be between 1 and 2000, not 0"),
    ],
)
def test_bad_arguments(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_what_is_not_installed_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("httpx2", "rich") else find(name))
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "the demo needs httpx2, rich: pip install 'trio-renew[demo]'\n"

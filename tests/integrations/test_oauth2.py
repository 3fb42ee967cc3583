"""Mint functions against a real token endpoint on a loopback socket."""

from __future__ import annotations

import copy
import email.utils
import logging
import math
import pickle
import time
import traceback

import pytest
import trio
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse

from trio_renew import FetchTimeout, MemoryStorage, RefreshPolicy, Secret, Unconfigured, open_provider, static_provider
from trio_renew.integrations.httpx import bearer_auth
from trio_renew.integrations.oauth2 import (
    TokenEndpointError,
    TokenRequestRejected,
    client_credentials,
    refresh_token_grant,
)

SECRET = "s3cret/+ opaque"


@pytest.fixture
async def client(module):
    async with module.AsyncClient() as client:
        yield client


@pytest.fixture
def mint(server, client):
    return client_credentials(client, server.url + "/token", "app one", SECRET, clock=lambda: 1000.0)


async def test_a_token_is_minted(server, mint):
    token = await mint()
    assert token.secret == Secret("a1")
    assert token.expires_at == 1060.0
    assert server.forms == [{"grant_type": "client_credentials"}]
    assert server.clients == [("app one", SECRET)]


async def test_by_default_the_life_counts_from_the_start_of_the_request(server, client):
    async def slow():
        await trio.sleep(0.05)
        return server.grant(server.forms[-1])

    server.answers.append(slow)
    before = time.time()
    token = await client_credentials(client, server.url + "/token", "app", Secret(SECRET))()
    assert before + 60.0 <= token.expires_at < before + 60.05


async def test_what_is_asked_for(server, client):
    mint = client_credentials(
        client, server.url + "/token", "app", SECRET, scope="a b", parameters={"audience": "x"}, client_auth="post"
    )
    await mint()
    assert server.forms == [
        {
            "grant_type": "client_credentials",
            "scope": "a b",
            "audience": "x",
            "client_id": "app",
            "client_secret": SECRET,
        }
    ]
    assert server.clients == [None]


async def test_the_clients_own_auth_is_not_used(server, module):
    async with module.AsyncClient(auth=bearer_auth(static_provider("x"), module=module)) as client:
        await client_credentials(client, server.url + "/token", "app", SECRET)()
    assert server.clients == [("app", SECRET)]


@pytest.mark.parametrize(("given", "life"), [(3600, 3600.0), (0.5, 0.5), ("3600", 3600.0), (0, 0.0), (-5, -5.0)])
async def test_lifetimes(server, mint, given, life):
    server.expires_in = given
    assert (await mint()).expires_at == 1000.0 + life


@pytest.mark.parametrize("given", ["soon", True, [], {}, "NaN", "Infinity", 1e300, -1e300])
async def test_a_lifetime_that_is_none(server, mint, given):
    server.expires_in = given
    with pytest.raises(TokenEndpointError, match="expires_in is no number of seconds"):
        await mint()


async def test_nothing_lives_for_ever_by_accident(server, client, mint):
    server.expires_in = None
    with pytest.raises(TokenEndpointError, match=r"no expires_in in the answer.*lifetime="):
        await mint()

    def of(lifetime):
        return client_credentials(client, server.url + "/token", "app", SECRET, lifetime=lifetime, clock=lambda: 1000.0)

    assert (await of(5)()).expires_at == 1005.0
    assert (await of(math.inf)()).expires_at is None
    server.expires_in = 60
    assert (await of(5)()).expires_at == 1060.0


@pytest.mark.parametrize(
    ("answer", "kind", "status", "error", "text"),
    [
        (JSONResponse({"error": "invalid_client"}, 401), TokenRequestRejected, 401, "invalid_client", ""),
        (
            JSONResponse({"error": "invalid_scope", "error_description": f"no {SECRET} token=abc"}, 400),
            TokenRequestRejected,
            400,
            "invalid_scope",
            "no [redacted] token=[redacted]",
        ),
        (JSONResponse({"error": "slow_down"}, 400), TokenEndpointError, 400, "slow_down", ""),
        (
            JSONResponse({"error": "temporarily_unavailable"}, 503),
            TokenEndpointError,
            503,
            "temporarily_unavailable",
            "",
        ),
        (JSONResponse({"error": "invalid_client"}, 500), TokenEndpointError, 500, "invalid_client", ""),
        (JSONResponse({"error": 5, "error_description": 6}, 400), TokenEndpointError, 400, None, ""),
        (JSONResponse([], 400), TokenEndpointError, 400, None, ""),
        (PlainTextResponse("oops", 502), TokenEndpointError, 502, None, ""),
        (PlainTextResponse("oops", 200), TokenEndpointError, 200, None, "the answer is no JSON object"),
        (JSONResponse("a1"), TokenEndpointError, 200, None, "the answer is no JSON object"),
        (JSONResponse({}), TokenEndpointError, 200, None, "there is no access_token in the answer"),
        (JSONResponse({"access_token": 5}), TokenEndpointError, 200, None, "there is no access_token in the answer"),
        (JSONResponse({"access_token": ""}), TokenEndpointError, 200, None, "there is no access_token in the answer"),
        (
            JSONResponse({"access_token": "opaque", "token_type": "mac"}),
            TokenEndpointError,
            200,
            None,
            "its token_type is not bearer",
        ),
        (JSONResponse({"access_token": "opaque", "token_type": 5}), TokenEndpointError, 200, None, "its token_type is"),
        (RedirectResponse("/token", 307), TokenEndpointError, 307, None, ""),
    ],
)
async def test_answers_that_are_no_token(server, mint, answer, kind, status, error, text):
    server.answers.append(answer)
    with pytest.raises(TokenEndpointError) as caught:
        await mint()
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.error) == (status, error)
    assert caught.value.description.startswith(text)
    assert bool(caught.value.description) is bool(text)
    assert str(caught.value).startswith(f"the token endpoint answered {status}")
    assert "opaque" not in shown(caught.value)
    assert len(server.forms) == 1


def shown(error: BaseException) -> str:
    """Show an error and the frames of the library, with their locals."""
    frames = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), capture_locals=True)
    return repr(error) + "".join(str(frame.locals) for frame in frames if "trio_renew" in frame.filename)


@pytest.mark.parametrize("token_type", ["bearer", "BEARER"])
async def test_the_token_type_has_no_case(server, mint, token_type):
    server.extra["token_type"] = token_type
    await mint()


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("5", 5.0),
        ("0", 0.0),
        ("-5", 0.0),
        (email.utils.formatdate(1030.0, usegmt=True), 30.0),
        (email.utils.formatdate(5.0, usegmt=True), 0.0),
        ("soon", None),
        ("nan", None),
        (None, None),
    ],
)
async def test_when_to_come_back(server, mint, given, seconds):
    server.answers.append(PlainTextResponse("", 429, {} if given is None else {"Retry-After": given}))
    with pytest.raises(TokenEndpointError) as caught:
        await mint()
    assert caught.value.retry_after == seconds


def test_errors_can_be_pickled_and_copied():
    for error in (TokenEndpointError(429, None, "", 5.0), TokenRequestRejected(400, "invalid_scope", "no")):
        for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert vars(twin) == vars(error)
            assert str(twin) == str(error)
    assert str(TokenRequestRejected(400, "invalid_scope", "no")) == "the token endpoint answered 400: invalid_scope: no"


async def test_without_an_answer_the_clients_error_comes_and_shows_nothing(module, client):
    for style in ("basic", "post"):
        mint = client_credentials(client, "http://127.0.0.1:1/token", "app", SECRET, client_auth=style)
        with pytest.raises(module.ConnectError) as caught:
            await mint()
        assert "opaque" not in shown(caught.value)


async def test_a_provider_of_it(server, client):
    mint = client_credentials(client, server.url + "/token", "app", SECRET)
    policy = RefreshPolicy(permanent=(TokenRequestRejected,))
    async with open_provider(mint, policy=policy) as provider:
        tokens = [await provider.get() for _ in range(3)]
        assert {token.secret.reveal() for token in tokens} == {"a1"}
        server.answers.append(JSONResponse({"error": "invalid_client"}, 401))
        for _ in range(2):
            with pytest.raises(TokenRequestRejected):
                await provider.refresh()
    assert len(server.forms) == 2


async def test_minting_can_be_cancelled(server, client, mint):
    async def hang():
        started.set()
        await trio.sleep_forever()

    started = trio.Event()
    server.answers.append(hang)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mint)
        await started.wait()
        nursery.cancel_scope.cancel()
    assert (await mint()).secret == Secret("a1")


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"client": None}, TypeError, "client must be an AsyncClient"),
        ({"token_url": None}, TypeError, "token_url must be a str"),
        ({"token_url": ""}, ValueError, "token_url must not be empty"),
        ({"client_id": 5}, TypeError, "client_id must be a str"),
        ({"client_secret": b"opaque"}, TypeError, "client_secret must be a Secret or a str"),
        ({"client_auth": "jwt"}, ValueError, "client_auth must be"),
        ({"lifetime": 0}, ValueError, "lifetime"),
        ({"lifetime": "5"}, TypeError, "lifetime"),
    ],
)
async def test_arguments_are_checked(client, arguments, error, reason):
    arguments = {"client": client, "token_url": "http://x", "client_id": "app", "client_secret": "s", **arguments}
    with pytest.raises(error, match=reason) as caught:
        client_credentials(**arguments)
    assert "opaque" not in str(caught.value)
    with pytest.raises(error, match=reason):
        refresh_token_grant(tokens=MemoryStorage(), **arguments)


async def test_a_secret_is_needed(client):
    with pytest.raises(TypeError, match="client_secret must be"):
        client_credentials(client, "http://x", "app", None)


# Refresh tokens


@pytest.fixture
async def tokens():
    tokens: MemoryStorage[str] = MemoryStorage()
    await tokens.set("r0")
    return tokens


@pytest.fixture
def redeem(server, client, tokens):
    return refresh_token_grant(
        client, server.url + "/token", "app", tokens=tokens, scope="a", patience=5.0, clock=lambda: 1000.0
    )


async def test_a_refresh_token_is_redeemed_and_its_successor_kept(server, redeem, tokens):
    assert (await redeem()).expires_at == 1060.0
    assert await tokens.get() == "r1"
    await redeem()
    assert await tokens.get() == "r2"
    assert server.redeemed == ["r0", "r1"]
    assert server.forms[0] == {
        "grant_type": "refresh_token",
        "refresh_token": "r0",
        "client_id": "app",
        "scope": "a",
    }


async def test_a_server_that_does_not_rotate(server, redeem, tokens):
    server.rotates = False
    await redeem()
    server.extra["refresh_token"] = "r0"
    await redeem()
    assert server.redeemed == ["r0", "r0"]
    assert await tokens.get() == "r0"


async def test_a_confidential_client_proves_itself(server, client, tokens):
    await refresh_token_grant(client, server.url + "/token", "app", SECRET, tokens=tokens)()
    assert server.clients == [("app", SECRET)]


async def test_without_a_refresh_token_it_is_not_configured(redeem, tokens):
    await tokens.clear()
    with pytest.raises(Unconfigured, match="refresh token is not configured"):
        await redeem()


async def test_calls_run_one_at_a_time(server, redeem):
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(redeem)
    assert server.redeemed == ["r0", "r1", "r2", "r3", "r4"]


async def test_a_redemption_that_has_begun_is_not_lost_to_cancellation(server, redeem, tokens):
    async def slow():
        started.set()
        await go.wait()
        return server.grant(server.forms[-1])

    started, go = trio.Event(), trio.Event()
    server.answers.append(slow)
    minted = []

    async def call() -> None:
        minted.append(await redeem())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await started.wait()
        nursery.cancel_scope.cancel()
        go.set()
    assert minted[0].secret == Secret("a1")
    assert await tokens.get() == "r1"


class Storage:
    """A storage that can be held and broken."""

    def __init__(self) -> None:
        self.value: str | None = "r0"
        self.held: trio.Event | None = None
        self.entered = trio.Event()
        self.error: Exception | None = None

    async def get(self) -> str | None:
        await trio.lowlevel.checkpoint()
        return self.value

    async def set(self, value: str) -> None:
        self.entered.set()
        if self.held is not None:
            await self.held.wait()
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.value = value

    async def clear(self) -> None:
        raise AssertionError


async def test_writing_it_down_is_not_lost_to_cancellation(server, client):
    tokens = Storage()
    tokens.held = trio.Event()
    redeem = refresh_token_grant(client, server.url + "/token", "app", tokens=tokens)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(redeem)
        await tokens.entered.wait()
        nursery.cancel_scope.cancel()
        tokens.held.set()
    assert tokens.value == "r1"


async def test_waiting_for_the_turn_and_reading_can_be_cancelled(server, redeem, tokens):
    with trio.CancelScope() as scope:
        scope.cancel()
        await redeem()
    assert scope.cancelled_caught
    assert server.forms == []
    await redeem()


async def test_a_broken_storage_loses_nothing(server, client, caplog):
    tokens = Storage()
    tokens.error = OSError("opaque")
    redeem = refresh_token_grant(client, server.url + "/token", "app", tokens=tokens)
    with caplog.at_level(logging.ERROR, "trio_renew"):
        await redeem()
        await redeem()
    assert server.redeemed == ["r0", "r1"]
    assert tokens.value == "r0"
    assert [record.getMessage() for record in caplog.records] == [
        "the new refresh token could not be written, and is kept in memory: OSError"
    ] * 2
    assert "opaque" not in caplog.text
    tokens.error = None
    server.rotates = False
    await redeem()
    assert tokens.value == "r2"


async def test_a_storage_that_hangs_is_given_up(server, client, caplog):
    tokens = Storage()
    tokens.held = trio.Event()
    redeem = refresh_token_grant(client, server.url + "/token", "app", tokens=tokens, patience=0.5)
    assert (await redeem()).secret == Secret("a1")
    assert "TooSlowError" in caplog.text
    tokens.held.set()
    await redeem()
    assert tokens.value == "r2"


async def test_a_server_that_hangs_is_given_up(server, client, tokens):
    async def hang():
        await trio.sleep_forever()

    server.answers.append(hang)
    redeem = refresh_token_grant(client, server.url + "/token", "app", tokens=tokens, patience=0.3)
    with pytest.raises(FetchTimeout, match=r"longer than 0.3 s"):
        await redeem()
    await refresh_token_grant(client, server.url + "/token", "app", tokens=tokens)()
    assert await tokens.get() == "r1"


async def test_what_another_process_has_rotated_is_tried(server, client):
    tokens = Storage()
    redeem = refresh_token_grant(client, server.url + "/token", "app", tokens=tokens)

    async def meanwhile():
        server.refresh_token = tokens.value = "r9"
        return server.grant(server.forms[-1])

    server.answers.append(meanwhile)
    await redeem()
    assert server.redeemed == ["r0", "r9"]
    assert tokens.value == "r2"


async def test_a_refresh_token_that_is_no_good_is_a_rejection(server, redeem, tokens):
    server.refresh_token = "other"
    with pytest.raises(TokenRequestRejected, match=r"invalid_grant: no such token \[redacted\]") as caught:
        await redeem()
    assert "r0" not in shown(caught.value)
    assert len(server.forms) == 1
    assert await tokens.get() == "r0"


async def test_other_rejections_are_raised_at_once(server, redeem, tokens):
    server.answers.append(JSONResponse({"error": "invalid_client"}, 401))
    with pytest.raises(TokenRequestRejected, match="invalid_client"):
        await redeem()
    server.answers.append(PlainTextResponse("", 503))
    with pytest.raises(TokenEndpointError, match="503"):
        await redeem()
    await redeem()
    assert await tokens.get() == "r1"


async def test_an_unwritten_refresh_token_that_is_no_good_is_a_rejection(server, client):
    tokens = Storage()
    tokens.error = OSError()
    redeem = refresh_token_grant(client, server.url + "/token", "app", tokens=tokens)
    await redeem()
    server.refresh_token = "other"
    with pytest.raises(TokenRequestRejected):
        await redeem()
    assert server.redeemed == ["r0", "r1"]


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"tokens": None}, TypeError, "tokens must be a Storage"),
        ({"patience": 0.0}, ValueError, "patience"),
        ({"patience": math.inf}, ValueError, "patience"),
    ],
)
async def test_more_arguments_are_checked(client, arguments, error, reason):
    with pytest.raises(error, match=reason):
        refresh_token_grant(client, "http://x", "app", **{"tokens": MemoryStorage(), **arguments})

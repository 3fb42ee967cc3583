"""Requests with a provider's credential: over real sockets, with httpx2 and httpx."""

from __future__ import annotations

import sys
import traceback

import httpx2
import pytest
import trio

from trio_renew import AuthToken, Secret, open_provider, open_resource, static_provider
from trio_renew.integrations.httpx import bearer_auth


def minter(server):
    async def mint() -> AuthToken:
        await trio.lowlevel.checkpoint()
        server.issued += 1
        server.good = {f"a{server.issued}"}
        return AuthToken.expiring_in(f"a{server.issued}", 60.0)

    return mint


def client_of(module, provider, **arguments):
    return module.AsyncClient(auth=bearer_auth(provider, module=module, **arguments))


async def test_requests_carry_the_credential(server, module):
    async with open_provider(minter(server)) as provider, client_of(module, provider) as client:
        for _ in range(3):
            assert (await client.get(server.url + "/api")).text == "yes"
    assert server.api_calls == ["Bearer a1"] * 3
    assert server.issued == 1


async def test_httpx2_is_the_default(server):
    async with open_provider(minter(server)) as provider:
        auth = bearer_auth(provider)
        assert isinstance(auth, httpx2.Auth)
        assert repr(auth).startswith("<bearer_auth of <RefreshingProvider")
        async with httpx2.AsyncClient(auth=auth) as client:
            assert (await client.get(server.url + "/api")).status_code == 200


async def test_a_rejected_credential_is_renewed_and_the_request_sent_again(server, module):
    async with open_provider(minter(server)) as provider, client_of(module, provider) as client:
        server.good = set()
        response = await client.post(server.url + "/api", content=b"body")
        assert response.text == "yes"
        assert (await client.get(server.url + "/api")).text == "yes"
    assert server.api_calls == ["Bearer a1", "Bearer a2", "Bearer a2"]
    assert server.api_bodies == [b"body", b"body", b""]
    assert server.issued == 2


async def test_many_rejections_share_one_renewal(server, module):
    answers = []
    async with open_provider(minter(server)) as provider, client_of(module, provider) as client:
        server.good = set()

        async def call() -> None:
            answers.append((await client.get(server.url + "/api")).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(call)
    assert answers == [200] * 20
    assert server.issued == 2


async def test_a_request_is_sent_twice_at_most(server, module):
    server.api_refuses = True
    async with open_provider(minter(server)) as provider, client_of(module, provider) as client:
        assert (await client.get(server.url + "/api")).status_code == 401
    assert server.api_calls == ["Bearer a1", "Bearer a2"]


async def test_an_api_that_rejects_everything_does_not_hammer_the_source(server, module):
    server.api_refuses = True
    async with open_provider(minter(server)) as provider, client_of(module, provider) as client:
        for _ in range(5):
            assert (await client.get(server.url + "/api")).status_code == 401
        assert server.issued == 2
        server.api_refuses = False
        assert (await client.get(server.url + "/api")).status_code == 200


async def test_after_the_pause_it_is_tried_again(server, module):
    server.api_refuses = True
    async with open_provider(minter(server)) as provider, client_of(module, provider, pause=0.0) as client:
        for _ in range(3):
            assert (await client.get(server.url + "/api")).status_code == 401
    assert server.issued == 4


async def test_a_body_that_is_streamed_is_not_sent_again(server, module):
    async def body():
        yield b"streamed"

    async with open_provider(minter(server)) as provider, client_of(module, provider) as client:
        server.good = set()
        assert (await client.post(server.url + "/api", content=body())).status_code == 401
        assert server.issued == 2  # for the next one
        assert (await client.post(server.url + "/api", content=body())).status_code == 200
    assert server.api_bodies == [b"streamed"] * 2


async def test_a_static_token_is_not_renewed(server, module):
    async with client_of(module, static_provider(AuthToken("x"))) as client:
        assert (await client.get(server.url + "/api")).status_code == 401
    assert server.api_calls == ["Bearer x"]


async def test_no_value_sends_no_credential(server, module):
    async def fetch() -> AuthToken | None:
        await trio.lowlevel.checkpoint()
        return None

    async with open_resource(fetch) as resource, client_of(module, resource) as client:
        assert (await client.get(server.url + "/api")).status_code == 401
    assert server.api_calls == [None]


async def test_a_renewal_without_a_value_hands_the_401_out(server, module):
    values = iter([Secret("x"), None])

    async def fetch() -> Secret | None:
        await trio.lowlevel.checkpoint()
        return next(values)

    async with open_resource(fetch) as resource, client_of(module, resource) as client:
        assert (await client.get(server.url + "/api")).status_code == 401
    assert server.api_calls == ["Bearer x"]


async def test_a_redirect_to_another_origin_takes_no_credential_along(server, module):
    async with open_provider(minter(server)) as provider, client_of(module, provider) as client:
        response = await client.get(server.url + "/elsewhere", follow_redirects=True)
        assert response.status_code == 401
        assert response.request.url.host == "localhost"
    assert server.api_calls == [None]
    assert server.issued == 1


async def test_another_header(server, module):
    server.good = {"k"}
    async with client_of(module, static_provider("k"), header="X-Api-Key", render=lambda key: key) as client:
        assert (await client.get(server.url + "/api")).status_code == 200
    assert server.api_calls == ["k"]


async def test_what_the_provider_raises_leaves_the_request(server, module):
    calls = []

    async def mint() -> AuthToken:
        await trio.lowlevel.checkpoint()
        calls.append(1)
        if len(calls) > 1:
            raise LookupError("down")
        server.good = {"opaque-1"}
        return AuthToken.expiring_in("opaque-1", 60.0)

    async with open_provider(mint) as provider, client_of(module, provider) as client:
        server.good = set()
        with pytest.raises(LookupError) as caught:
            await client.get(server.url + "/api")
        ours = [
            frame
            for frame in traceback.StackSummary.extract(
                traceback.walk_tb(caught.value.__traceback__), capture_locals=True
            )
            if "trio_renew" in frame.filename
        ]
        assert ours
        assert "opaque" not in "".join(str(frame.locals) for frame in ours)
    async with client_of(module, provider) as client:
        with pytest.raises(trio.ClosedResourceError):
            await client.get(server.url + "/api")


@pytest.mark.parametrize("when", ["first", "renewal", "second"])
async def test_a_cancelled_request_harms_nobody(server, module, when):
    held = trio.Event()
    answered = trio.Event()

    async def mint() -> AuthToken:
        await trio.lowlevel.checkpoint()
        server.issued += 1
        if when == "renewal" and server.issued == 2:
            answered.set()
            await trio.sleep(0.05)
        server.good = {f"a{server.issued}"}
        return AuthToken.expiring_in(f"a{server.issued}", 60.0)

    async with open_provider(mint) as provider, client_of(module, provider) as client:
        if when != "first":
            server.good = set()

        async def hook(request) -> None:
            if len(server.api_calls) == {"first": 0, "second": 1}.get(when, -1):
                answered.set()
                await held.wait()

        client.event_hooks = {"request": [hook]}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.get, server.url + "/api")
            await answered.wait()
            nursery.cancel_scope.cancel()
        assert provider.status().waiting == 0
        client.event_hooks = {}
        assert (await client.get(server.url + "/api")).status_code == 200
    assert server.issued == (1 if when == "first" else 2)


def test_a_client_without_trio_is_refused(module):
    auth = bearer_auth(static_provider("x"), module=module)
    with module.Client(auth=auth) as client:
        with pytest.raises(RuntimeError, match="AsyncClient"):
            client.get("http://127.0.0.1:1/")


async def test_a_value_without_a_text_says_how(module):
    async with client_of(module, static_provider(5)) as client:
        with pytest.raises(TypeError, match="by render="):
            await client.get("http://127.0.0.1:1/")


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"provider": None}, TypeError, "provider must have an async get"),
        ({"module": sys}, TypeError, "module must be httpx2 or httpx"),
        ({"pause": -1.0}, ValueError, "pause"),
        ({"pause": "1"}, TypeError, "pause"),
    ],
)
def test_arguments_are_checked(arguments, error, reason):
    provider = arguments.pop("provider", static_provider("x"))
    with pytest.raises(error, match=reason):
        bearer_auth(provider, **arguments)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ImportError, match=r"pip install 'trio_renew\[httpx\]'"):
        bearer_auth(static_provider("x"))

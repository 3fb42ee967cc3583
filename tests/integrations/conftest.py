"""A token endpoint and a protected API on a loopback socket, for tests."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

import httpx
import httpx2
import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request  # noqa: TC002 - Starlette may read the annotation
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route


class Server:
    """What the server has seen, and how it is told to behave."""

    def __init__(self) -> None:
        self.url = ""
        self.forms: list[dict[str, str]] = []
        self.clients: list[tuple[str, str] | None] = []
        self.issued = 0
        self.good: set[str] = set()
        self.refresh_token = "r0"
        self.rotates = True
        self.redeemed: list[str] = []
        self.expires_in: Any = 60
        self.extra: dict[str, Any] = {}
        #: Answers in the place of a token, taken from the front.
        self.answers: list[Response | Callable[[], Awaitable[Response]]] = []
        self.api_calls: list[str | None] = []
        self.api_bodies: list[bytes] = []
        #: Refuses every credential.
        self.api_refuses = False

    async def token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        self.forms.append(form)
        header = request.headers.get("authorization")
        self.clients.append(None)
        if header is not None:
            name, _, secret = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
            self.clients[-1] = (unquote_plus(name), unquote_plus(secret))
        if self.answers:
            answer = self.answers.pop(0)
            return answer if isinstance(answer, Response) else await answer()
        return self.grant(form)

    def grant(self, form: dict[str, str]) -> Response:
        self.issued += 1
        answer: dict[str, Any] = {"access_token": f"a{self.issued}", "token_type": "Bearer"}
        if form["grant_type"] == "refresh_token":
            given = form["refresh_token"]
            self.redeemed.append(given)
            if given != self.refresh_token:
                return JSONResponse({"error": "invalid_grant", "error_description": f"no such token {given}"}, 400)
            if self.rotates:
                answer["refresh_token"] = self.refresh_token = f"r{self.issued}"
        if self.expires_in is not None:
            answer["expires_in"] = self.expires_in
        self.good = {answer["access_token"]}
        return JSONResponse(answer | self.extra)

    async def api(self, request: Request) -> Response:
        self.api_bodies.append(await request.body())
        header = request.headers.get("authorization") or request.headers.get("x-api-key")
        self.api_calls.append(header)
        text = None if header is None else header.removeprefix("Bearer ")
        if self.api_refuses or text not in self.good:
            return PlainTextResponse("no", 401)
        return PlainTextResponse("yes")

    async def elsewhere(self, request: Request) -> Response:
        # Another origin for a client, the same server.
        return RedirectResponse(self.url.replace("127.0.0.1", "localhost") + "/api")


@asynccontextmanager
async def open_server() -> AsyncGenerator[Server, None]:
    """Serve on a free port until the body is left."""
    server = Server()
    app = Starlette(
        routes=[
            Route("/token", server.token, methods=["POST"]),
            Route("/api", server.api, methods=["GET", "POST"]),
            Route("/elsewhere", server.elsewhere),
        ]
    )
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = config.accesslog = None
    config.graceful_timeout = 0.1
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        (server.url,) = await nursery.start(partial(serve, app, config, shutdown_trigger=done.wait))
        try:
            with trio.fail_after(20):
                yield server
        finally:
            done.set()


@pytest.fixture
async def server() -> AsyncGenerator[Server, None]:
    async with open_server() as server:
        yield server


@pytest.fixture(params=[httpx2, httpx], ids=lambda module: module.__name__)
def module(request: pytest.FixtureRequest) -> Any:
    return request.param

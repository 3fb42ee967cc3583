"""An OAuth2 token endpoint, and an API that wants its tokens, in a process of their own.

Invariants:

* The configuration comes as one line of JSON on standard input, the address goes out as one line on standard output,
  and the server ends when its standard input does: it cannot outlive whoever started it.
* Counting is done here, at the receiving end, before anything else is done with a request.
* A token is good while ``now < expires_at`` and until it is revoked.
"""

from __future__ import annotations

import base64
import json
import secrets
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs

import attrs
import hypercorn.trio
import trio
from hypercorn.config import Config

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

__all__ = ("Application", "Settings", "Token", "main")


@attrs.frozen
class Settings:
    """How the server is set up.

    Attributes:
      client_id: The one client that gets tokens.
      client_secret: Its secret.
      admin_key: What the admin path wants in its ``x-admin-key`` header.
      lifetime: Seconds that a token lives.
    """

    client_id: str
    client_secret: str
    admin_key: str
    lifetime: float


@attrs.define
class Token:
    """One token that was issued: when it began, when it ends, when it was revoked."""

    issued_at: float
    expires_at: float
    revoked_at: float | None = None


@attrs.define
class Counters:
    """What the server has seen, from its start on."""

    token_requests: int = 0
    token_requests_now: int = 0
    token_requests_at_once: int = 0
    token_request_times: list[float] = attrs.Factory(list[float])
    tokens_issued: int = 0
    tokens_refused: int = 0
    api_requests: int = 0
    api_ok: int = 0
    api_missing: int = 0
    api_unknown: int = 0
    api_expired: int = 0
    api_revoked: int = 0


class Application:
    """The ASGI application.

    Args:
      settings: How it is set up.
      now: The clock, in POSIX seconds.
    """

    def __init__(self, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.counters = Counters()
        self.latency = 0.0
        self.outage = False
        self.tokens: dict[str, Token] = {}
        self._now = now
        basic = f"{settings.client_id}:{settings.client_secret}".encode()
        self._authorization = b"Basic " + base64.b64encode(basic)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, or go along with the server's start and stop."""
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        headers = dict(cast("list[tuple[bytes, bytes]]", scope["headers"]))
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        status, answer, extra = await self._answer(scope["method"], scope["path"], headers, body)
        content = json.dumps(answer).encode()
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content)), *extra]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": content})

    async def _answer(
        self, method: str, path: str, headers: dict[bytes, bytes], body: bytes
    ) -> tuple[int, dict[str, Any], list[tuple[bytes, bytes]]]:
        if (method, path) == ("POST", "/oauth2/token"):
            return await self._issue(headers, body)
        if (method, path) == ("GET", "/api/item"):
            return self._serve(headers)  # noqa: ASYNC910 - sending the answer is one
        if path.startswith("/admin/") and headers.get(b"x-admin-key", b"").decode() == self.settings.admin_key:
            return self._administer(method, path.removeprefix("/admin/"), body)  # noqa: ASYNC910 - as above
        return 404, {"error": "not_found"}, []  # noqa: ASYNC910 - as above

    async def _issue(
        self, headers: dict[bytes, bytes], body: bytes
    ) -> tuple[int, dict[str, Any], list[tuple[bytes, bytes]]]:
        """The token endpoint (RFC 6749, sections 4.4 and 5)."""
        counters, now = self.counters, self._now()
        counters.token_requests += 1
        counters.token_request_times.append(now)
        counters.token_requests_now += 1
        counters.token_requests_at_once = max(counters.token_requests_at_once, counters.token_requests_now)
        try:
            await trio.sleep(self.latency)
            if self.outage:
                counters.tokens_refused += 1
                return 503, {"error": "temporarily_unavailable"}, [(b"cache-control", b"no-store")]
            if not secrets.compare_digest(headers.get(b"authorization", b""), self._authorization):
                return 401, {"error": "invalid_client"}, [(b"www-authenticate", b"Basic")]
            if parse_qs(body.decode("ascii", "replace")).get("grant_type") != ["client_credentials"]:
                return 400, {"error": "unsupported_grant_type"}, []
            text = secrets.token_urlsafe(24)
            issued_at = self._now()
            self.tokens[text] = Token(issued_at, issued_at + self.settings.lifetime)
            counters.tokens_issued += 1
            answer = {"access_token": text, "token_type": "Bearer", "expires_in": self.settings.lifetime}
            return 200, answer, [(b"cache-control", b"no-store")]
        finally:
            counters.token_requests_now -= 1

    def _serve(self, headers: dict[bytes, bytes]) -> tuple[int, dict[str, Any], list[tuple[bytes, bytes]]]:
        """The protected API (RFC 6750, section 3)."""
        counters = self.counters
        counters.api_requests += 1
        scheme, _, text = headers.get(b"authorization", b"").decode("ascii", "replace").partition(" ")
        if scheme.lower() != "bearer":
            counters.api_missing += 1
            return 401, {"error": "invalid_request"}, [(b"www-authenticate", b"Bearer")]
        token = self.tokens.get(text)
        if token is None:
            counters.api_unknown += 1
        elif token.revoked_at is not None:
            counters.api_revoked += 1
        elif self._now() >= token.expires_at:
            counters.api_expired += 1
        else:
            counters.api_ok += 1
            return 200, {"item": counters.api_ok}, []
        return 401, {"error": "invalid_token"}, [(b"www-authenticate", b'Bearer error="invalid_token"')]

    def _administer(self, method: str, what: str, body: bytes) -> tuple[int, dict[str, Any], list[tuple[bytes, bytes]]]:
        """Faults, and what was counted. Every admin request is answered with the state after it."""
        if (method, what) == ("POST", "faults"):
            faults = json.loads(body)
            self.latency = float(faults["latency"])
            self.outage = bool(faults["outage"])
        elif (method, what) == ("POST", "revoke"):
            now = self._now()
            for token in self.tokens.values():
                if token.revoked_at is None:
                    token.revoked_at = now
        elif (method, what) != ("GET", "state"):
            return 404, {"error": "not_found"}, []
        tokens = [attrs.asdict(token) for token in self.tokens.values()]
        return 200, {"counters": attrs.asdict(self.counters), "tokens": tokens}, []


def _until_input_ends() -> None:
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as raw:
        raw.read()


async def _serve(settings: Settings) -> None:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    config.keep_alive_timeout = 120
    config.graceful_timeout = 0.2
    config.backlog = 2048
    told = trio.Event()
    application: Any = Application(settings)
    hypercorn_serve = cast("Any", hypercorn.trio.serve)  # pyright: ignore[reportUnknownMemberType]
    serve = partial(hypercorn_serve, application, config, shutdown_trigger=told.wait, mode="asgi")
    async with trio.open_nursery() as nursery:
        [address] = await nursery.start(serve)
        print(json.dumps({"address": address}), flush=True)
        await trio.to_thread.run_sync(_until_input_ends)
        told.set()


def main() -> None:
    """Run the server until standard input ends."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as raw:
        line = raw.readline()
    if line:
        trio.run(_serve, Settings(**json.loads(line)))

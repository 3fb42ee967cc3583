"""The other side: the server's process, and what is said to it over HTTP.

Invariants:

* The process ends with :func:`open_remote`, whatever happens: its standard input is closed, and if it does not go
  then, it is killed.
* :attr:`Remote.ledger` knows of every token that reached this process from when to when it could be used, judged by
  the clock of this machine, which both processes share.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import httpx2
import trio

from .._values import AuthToken
from .server import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_HERE = Path(__file__).resolve().parents[2]

__all__ = ("Life", "Remote", "open_remote", "open_server")


@attrs.define
class Life:
    """From when to when a token could be used here."""

    minted_at: float
    expires_at: float
    usable_from: float | None = None
    ended_at: float | None = None

    def covers(self, start: float, end: float) -> bool:
        """Whether it was usable from start to end."""
        until = self.expires_at if self.ended_at is None else min(self.expires_at, self.ended_at)
        return self.usable_from is not None and self.usable_from <= start and end < until


class Remote:
    """The server, seen from here.

    Args:
      settings: How it was set up.
      address: Its URL.
      tokens: A client of its own for token requests, so that they never wait for a connection.
      api: The client of the workers.
    """

    def __init__(self, settings: Settings, address: str, tokens: httpx2.AsyncClient, api: httpx2.AsyncClient) -> None:
        self.settings = settings
        self.ledger: list[Life] = []
        self._address = address
        self._tokens = tokens
        self._api = api

    async def ask_for_token(self) -> tuple[str, float]:
        """Ask for a token, by the client-credentials grant: its text, and how many seconds it lives."""
        response = await self._tokens.post(
            f"{self._address}/oauth2/token",
            data={"grant_type": "client_credentials"},
            auth=(self.settings.client_id, self.settings.client_secret),
        )
        response.raise_for_status()
        answer = response.json()
        return answer["access_token"], answer["expires_in"]

    async def mint(self) -> AuthToken:
        """What the provider calls for a token."""
        started = time.time()
        text, seconds = await self.ask_for_token()
        token = AuthToken.expiring_in(text, seconds, now=started)
        self.ledger.append(Life(started, started + seconds))
        return token

    async def use(self, token: AuthToken) -> int:
        """Ask the API for something, and give the status of its answer."""
        headers = {"Authorization": f"Bearer {token.secret.reveal()}"}
        response = await self._api.get(f"{self._address}/api/item", headers=headers)
        return response.status_code

    def usable(self) -> None:
        """The token that came last is in use from now on."""
        self.ledger[-1].usable_from = time.time()

    def end_tokens(self) -> None:
        """All tokens so far are of no use from now on."""
        now = time.time()
        for life in self.ledger:
            if life.ended_at is None:
                life.ended_at = now

    def was_usable(self, start: float, end: float) -> bool:
        """Whether one token was usable all the time from start to end."""
        return any(life.covers(start, end) for life in self.ledger)

    async def faults(self, *, latency: float = 0.0, outage: bool = False) -> dict[str, Any]:
        """Set what is wrong with the token endpoint, and give the server's state."""
        return await self._admin("POST", "faults", {"latency": latency, "outage": outage})

    async def revoke_all(self) -> dict[str, Any]:
        """Revoke every token, and give the server's state."""
        self.end_tokens()
        return await self._admin("POST", "revoke", {})

    async def state(self) -> dict[str, Any]:
        """What the server has counted, and its tokens' lives."""
        return await self._admin("GET", "state", None)

    async def _admin(self, method: str, what: str, body: object) -> dict[str, Any]:
        response = await self._tokens.request(
            method,
            f"{self._address}/admin/{what}",
            content=None if body is None else json.dumps(body).encode(),
            headers={"x-admin-key": self.settings.admin_key},
        )
        response.raise_for_status()
        state: dict[str, Any] = response.json()
        return state


async def _read_line(stream: trio.abc.ReceiveStream) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = await stream.receive_some()
        if not piece:
            raise RuntimeError("the demo's server did not start")
        line += piece
    return line  # noqa: ASYNC910 - it reads at least once


@asynccontextmanager
async def open_server(
    settings: Settings, *, code: str = "from trio_renew._demo.server import main; main()", patience: float = 5.0
) -> AsyncGenerator[str, None]:
    """Run the server in a process of its own, and give its address.

    Args:
      settings: Sent to it.
      code: What Python runs there.
      patience: Seconds that it has to end when its standard input does.
    """
    # The package that runs here is the one that runs there, installed or not.
    paths = [str(_HERE), os.environ.get("PYTHONPATH", "")]
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Ctrl-C is for us alone: the server goes when its input ends.
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        await process.stdin.send_all(json.dumps(attrs.asdict(settings)).encode() + b"\n")
        with trio.fail_after(30):
            line = await _read_line(process.stdout)
        yield json.loads(line)["address"]
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            with trio.move_on_after(patience):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()


@asynccontextmanager
async def open_remote(lifetime: float, workers: int) -> AsyncGenerator[Remote, None]:
    """Start the server, and open the clients that talk to it."""
    settings = Settings("demo", secrets.token_urlsafe(16), secrets.token_urlsafe(16), lifetime)
    limits = httpx2.Limits(max_connections=workers + 8, max_keepalive_connections=workers + 8, keepalive_expiry=60)
    async with (
        open_server(settings) as address,
        httpx2.AsyncClient(timeout=10, trust_env=False) as tokens,
        httpx2.AsyncClient(timeout=10, trust_env=False, limits=limits) as api,
    ):
        yield Remote(settings, address, tokens, api)

"""The multi-tenant example: two worker processes over one database, driven over HTTP."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import httpx2
import hypercorn.trio
import pytest
import trio
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from trio_renew import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

EXAMPLE = Path(__file__).parent.parent / "examples" / "multi_tenant"


@attrs.define
class IdentityProvider:
    """Everybody's token endpoint: who asks with which secret is written down."""

    secrets: dict[str, str] = attrs.Factory(dict[str, str])
    asked: list[tuple[str, str]] = attrs.Factory(list[tuple[str, str]])
    issued: list[str] = attrs.Factory(list[str])

    async def token(self, request: Request) -> JSONResponse:
        scheme, _, encoded = request.headers["authorization"].partition(" ")
        assert scheme == "Basic"
        client_id, _, secret = base64.b64decode(encoded).decode().partition(":")
        self.asked.append((client_id, secret))
        if self.secrets.get(client_id) != secret:
            return JSONResponse({"error": "invalid_client"}, 401)
        self.issued.append(f"{client_id}-token-{len(self.issued)}")
        return JSONResponse({"access_token": self.issued[-1], "token_type": "Bearer", "expires_in": 3600})

    def fingerprint(self, number: int) -> str:
        return Secret(self.issued[number]).fingerprint()


@asynccontextmanager
async def serving(idp: IdentityProvider) -> AsyncGenerator[str, None]:
    """The identity provider, in this process."""
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.loglevel = "ERROR"
    app: Any = Starlette(routes=[Route("/token", idp.token, methods=["POST"])])
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(partial(hypercorn.trio.serve, app, config, shutdown_trigger=done.wait))
        yield f"{url}/token"
        done.set()


class Worker:
    """A worker process of the example, on a socket of its own."""

    def __init__(self, database: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            os.set_inheritable(listener.fileno(), True)
            command = [sys.executable, "-m", "hypercorn", "--worker-class", "trio", "--workers", "0"]
            self.process = subprocess.Popen(
                [*command, "--bind", f"fd://{listener.fileno()}", "app:app"],
                cwd=EXAMPLE,
                env={
                    **os.environ,
                    "TENANTS_DB": str(database),
                    "ADMIN_KEY": "key",
                    "PYTHONPATH": str(EXAMPLE.parent.parent),
                },
                pass_fds=[listener.fileno()],
                stderr=subprocess.PIPE,
            )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, errors.decode()
        assert b"Traceback" not in errors, errors.decode()


async def until(worker: Worker, client: httpx2.AsyncClient, path: str, **wanted: Any) -> None:
    """Wait until a worker's answer is what is wanted; at most two seconds."""
    with trio.fail_after(2):
        while True:
            answer = (await client.get(worker.url + path)).json()
            if answer.items() >= wanted.items():
                return
            await trio.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="sockets are passed on as file descriptors")
async def test_rotating_and_disabling_takes_effect_in_both_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from tenants import Tenant, TenantTable  # type: ignore[import-not-found]

    database = tmp_path / "tenants.db"
    table = TenantTable(str(database))
    idp = IdentityProvider({"acme": "old", "bold": "b"})
    admin = {"x-admin-key": "key"}
    with trio.fail_after(60):
        async with serving(idp) as token_url, httpx2.AsyncClient(timeout=20) as client:
            for name, secret in idp.secrets.items():
                await table.add(Tenant(name, token_url, name, Secret(secret)))
            one, two = workers = [Worker(database) for _ in range(2)]
            try:

                async def ask(worker: Worker, tenant: str) -> tuple[int, Any]:
                    answer = await client.get(f"{worker.url}/{tenant}/token")
                    return answer.status_code, answer.json()

                # Each worker opens a provider of its own, once.
                pids = set()
                for _ in range(3):
                    for number, worker in enumerate(workers):
                        code, answer = await ask(worker, "acme")
                        assert (code, answer["fingerprint"]) == (200, idp.fingerprint(number))
                        pids.add(answer["worker"])
                assert len(pids) == 2
                assert idp.asked == [("acme", "old")] * 2
                await ask(two, "bold")
                assert (await ask(one, "nobody"))[0] == 404

                # Who is not the admin changes nothing.
                assert (await client.post(f"{one.url}/admin/acme/disable")).status_code == 403
                assert (await client.post(f"{one.url}/admin/nobody/disable", headers=admin)).status_code == 404

                # Rotated in one, used in both; other tenants are left alone.
                idp.secrets["acme"] = "new"
                rotated = await client.post(f"{one.url}/admin/acme/rotate", headers=admin, content="new")
                assert rotated.status_code == 204
                assert (await ask(one, "acme"))[1]["fingerprint"] == idp.fingerprint(3)
                await until(two, client, "/acme/token", fingerprint=Secret("acme-token-4").fingerprint())
                assert idp.asked[3:] == [("acme", "new")] * 2
                await until(two, client, "/workers", tokens=2)

                # Disabled in the other one, gone in both.
                assert (await client.post(f"{two.url}/admin/acme/disable", headers=admin)).status_code == 204
                assert await ask(two, "acme") == (404, {"error": "no such tenant"})
                await until(one, client, "/acme/token", error="no such tenant")
                assert (await ask(two, "bold"))[0] == 200
                assert idp.asked[5:] == []
            finally:
                for worker in workers:
                    await trio.to_thread.run_sync(worker.stop)

"""A service for many tenants, each with an identity provider of its own, in several worker processes.

* ``GET /{tenant}/token`` borrows the tenant's token provider and says what it got. (A real service would call the
  tenant's API with it.)
* ``POST /admin/{tenant}/rotate`` with the new client secret as its body, and ``POST /admin/{tenant}/disable``, change
  the tenant's row and drop what every worker process holds of it.

Run it with ``hypercorn --worker-class trio --workers 2 app:app``; the database is the file named by ``TENANTS_DB``,
the admin's key is ``ADMIN_KEY``.
"""

from __future__ import annotations

import hmac
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx2
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tenants import TenantTable

from trio_renew import (
    AuthToken,
    CredentialError,
    RefreshingProvider,
    RefreshPolicy,
    open_provider,
    open_provider_cache,
    open_provider_pool,
)
from trio_renew.integrations.oauth2 import TokenRequestRejected, client_credentials
from trio_renew.stores.sqlite import open_sqlite_bus

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

DATABASE = os.environ.get("TENANTS_DB", "tenants.db")
ADMIN_KEY = os.environ["ADMIN_KEY"]


class NoSuchTenant(LookupError):
    """There is none of this name, or it is disabled."""


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
    """Open what lives as long as the worker process. Each worker has its own; the bus keeps them together."""
    table = TenantTable(DATABASE)

    @asynccontextmanager
    async def open_tokens(tenant_id: str) -> AsyncGenerator[RefreshingProvider[AuthToken], None]:
        tenant = await tenants.get(tenant_id)
        if tenant is None:
            raise NoSuchTenant(tenant_id)
        mint = client_credentials(client, tenant.token_url, tenant.client_id, tenant.client_secret)
        # A rejected secret is not tried again and again: that is how one gets locked out.
        async with open_provider(mint, policy=RefreshPolicy(permanent=(TokenRequestRejected,))) as provider:
            yield provider

    async with (
        httpx2.AsyncClient() as client,
        open_sqlite_bus(DATABASE) as bus,
        # One name: what is dropped in one of the two is dropped in both, here and in the other worker processes.
        open_provider_cache(table.find, negative_ttl=5.0, bus=bus, name="tenants") as tenants,
        open_provider_pool(open_tokens, bus=bus, name="tenants") as tokens,
    ):
        app.state.table, app.state.tenants, app.state.tokens = table, tenants, tokens
        yield


async def token(request: Request) -> Response:
    """Borrow the tenant's provider for the time of this request."""
    tenant_id = request.path_params["tenant"]
    try:
        async with request.app.state.tokens.borrow(tenant_id) as provider:
            held: AuthToken = await provider.get()
            # Call the tenant's API here, with held.secret.reveal() in its Authorization header.
            return JSONResponse({"fingerprint": held.secret.fingerprint(), "worker": os.getpid()})
    except NoSuchTenant:
        return JSONResponse({"error": "no such tenant"}, 404)
    except CredentialError as error:
        return JSONResponse({"error": type(error).__name__}, 503)


async def rotate(request: Request) -> Response:
    """Give a tenant a new client secret. From now on no worker uses the old one for anything new."""
    return await change(request, {"client_secret": (await request.body()).decode()})


async def disable(request: Request) -> Response:
    """Turn a tenant off, everywhere."""
    return await change(request, {"disabled": True})


async def change(request: Request, columns: dict[str, object]) -> Response:
    """Change a tenant's row, then drop what was made of the old one: in this order."""
    if not hmac.compare_digest(request.headers.get("x-admin-key", "").encode(), ADMIN_KEY.encode()):
        return JSONResponse({"error": "not you"}, 403)
    tenant_id = request.path_params["tenant"]
    if not await request.app.state.table.change(tenant_id, columns):
        return JSONResponse({"error": "no such tenant"}, 404)
    request.app.state.tenants.delete(tenant_id)
    return Response(status_code=204)


async def workers(request: Request) -> Response:
    """Say what this worker holds, for people."""
    state = request.app.state
    return JSONResponse({"tenants": len(state.tenants), "tokens": len(state.tokens), "worker": os.getpid()})


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/workers", workers),
        Route("/{tenant}/token", token),
        Route("/admin/{tenant}/rotate", rotate, methods=["POST"]),
        Route("/admin/{tenant}/disable", disable, methods=["POST"]),
    ],
)

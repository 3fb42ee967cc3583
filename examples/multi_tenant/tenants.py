"""The tenants' table. SQLite blocks, so each call runs in a thread, with a connection of its own."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any, TypeVar

import attrs
import trio

from trio_renew import Secret

R = TypeVar("R")

SCHEMA = """
CREATE TABLE IF NOT EXISTS tenants (
    id TEXT PRIMARY KEY, token_url TEXT NOT NULL, client_id TEXT NOT NULL, client_secret TEXT NOT NULL,
    disabled INTEGER NOT NULL DEFAULT 0
)
"""


@attrs.frozen
class Tenant:
    """A tenant's identity provider. Frozen: it is shared by all who ask for it."""

    id: str
    token_url: str
    client_id: str
    client_secret: Secret


class TenantTable:
    """The table in the file at ``path``; it is made if it is not there."""

    def __init__(self, path: str) -> None:
        self._path = path
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(SCHEMA)

    async def find(self, tenant_id: str) -> Tenant | None:
        """Read a tenant; None when there is none, or when it is disabled."""
        rows = await trio.to_thread.run_sync(
            self._execute,
            "SELECT id, token_url, client_id, client_secret FROM tenants WHERE id = ? AND NOT disabled",
            (tenant_id,),
        )
        if not rows:
            return None
        ((key, token_url, client_id, client_secret),) = rows
        return Tenant(key, token_url, client_id, Secret(client_secret))

    async def add(self, tenant: Tenant) -> None:
        """Write a new tenant."""
        await trio.to_thread.run_sync(
            self._execute,
            "INSERT INTO tenants (id, token_url, client_id, client_secret) VALUES (?, ?, ?, ?)",
            (tenant.id, tenant.token_url, tenant.client_id, tenant.client_secret.reveal()),
        )

    async def change(self, tenant_id: str, columns: dict[str, object]) -> bool:
        """Change columns of a tenant's row; False when there is none."""
        names = ", ".join(f"{name} = ?" for name in columns)
        rows = await trio.to_thread.run_sync(
            self._execute, f"UPDATE tenants SET {names} WHERE id = ? RETURNING id", (*columns.values(), tenant_id)
        )
        return bool(rows)

    def _execute(self, statement: str, values: tuple[object, ...]) -> list[Any]:
        with closing(sqlite3.connect(self._path)) as connection, connection:
            return connection.execute(statement, values).fetchall()

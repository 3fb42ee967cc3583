"""The file of the SQLite engine: how it is made, opened, and brought up to date.

Invariants:

* ``PRAGMA user_version`` is the version of the schema. Each step of :data:`MIGRATIONS` takes a file one version
  further, in one transaction with the new version; a file of a newer version is left alone.
* Every row belongs to a namespace (``ns``, the prefix that the stores were opened with); rate limits of the two kinds
  (``kind``) share no rows.
* What stands beside a cached value (its tags, the count of items and bytes) ends with its row, by triggers: whoever
  deletes a row, in whichever version or process, leaves nothing behind.
* The file is created with mode 0600; SQLite gives its companions (``-wal``, ``-shm``) the same.
* The files are never opened by other means than SQLite: closing any descriptor of them would drop its locks.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

from .._errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("MEMORY", "MIGRATIONS", "PLAIN", "SPLIT", "connect", "immediate", "migrate", "starts_with")

#: The path that means a database in memory, of one connection.
MEMORY = ":memory:"
#: The kinds of rate limits.
PLAIN, SPLIT = 0, 1
_FIRST = (
    # -- cache
    """CREATE TABLE renew_cache (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        ns TEXT NOT NULL, hash TEXT NOT NULL, value BLOB NOT NULL, size INTEGER NOT NULL,
        stored_at REAL NOT NULL, expires_at REAL,
        UNIQUE (ns, hash))""",
    "CREATE INDEX renew_cache_order ON renew_cache (ns)",
    "CREATE INDEX renew_cache_expiry ON renew_cache (ns, expires_at) WHERE expires_at IS NOT NULL",
    """CREATE TABLE renew_tags (
        ns TEXT NOT NULL, tag TEXT NOT NULL, entry INTEGER NOT NULL,
        PRIMARY KEY (ns, tag, entry)) WITHOUT ROWID""",
    "CREATE INDEX renew_tags_entry ON renew_tags (entry)",
    """CREATE TABLE renew_usage (
        ns TEXT PRIMARY KEY, items INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID""",
    """CREATE TRIGGER renew_cache_stored AFTER INSERT ON renew_cache BEGIN
        INSERT INTO renew_usage VALUES (NEW.ns, 1, NEW.size)
        ON CONFLICT (ns) DO UPDATE SET items = items + 1, bytes = bytes + NEW.size;
    END""",
    """CREATE TRIGGER renew_cache_dropped AFTER DELETE ON renew_cache BEGIN
        UPDATE renew_usage SET items = items - 1, bytes = bytes - OLD.size WHERE ns = OLD.ns;
        DELETE FROM renew_tags WHERE entry = OLD.id;
    END""",
    # -- jobs: one pending one per key; a settled one is found by its id only
    """CREATE TABLE renew_jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id TEXT NOT NULL UNIQUE, ns TEXT NOT NULL, hash TEXT NOT NULL, state INTEGER NOT NULL DEFAULT 0,
        lease REAL NOT NULL, created_at REAL NOT NULL, dated_at REAL NOT NULL, until REAL NOT NULL,
        value BLOB, error_type TEXT, error TEXT)""",
    "CREATE UNIQUE INDEX renew_jobs_pending ON renew_jobs (ns, hash) WHERE state = 0",
    "CREATE INDEX renew_jobs_until ON renew_jobs (ns, until)",
    # -- rate limits
    """CREATE TABLE renew_requests (
        id INTEGER PRIMARY KEY, ns TEXT NOT NULL, kind INTEGER NOT NULL, resource TEXT NOT NULL,
        at REAL NOT NULL, until REAL NOT NULL, user INTEGER NOT NULL)""",
    "CREATE INDEX renew_requests_window ON renew_requests (ns, kind, resource, at)",
    "CREATE INDEX renew_requests_until ON renew_requests (ns, kind, until)",
    """CREATE TABLE renew_cooldowns (
        ns TEXT NOT NULL, kind INTEGER NOT NULL, resource TEXT NOT NULL,
        set_at REAL NOT NULL, until REAL NOT NULL,
        PRIMARY KEY (ns, kind, resource)) WITHOUT ROWID""",
    """CREATE TABLE renew_splits (
        ns TEXT NOT NULL, resource TEXT NOT NULL, "limit" INTEGER NOT NULL, made_at REAL NOT NULL, until REAL NOT NULL,
        user_reserved INTEGER NOT NULL, background_max INTEGER NOT NULL, paused INTEGER NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY (ns, resource, "limit")) WITHOUT ROWID""",
    """CREATE TABLE renew_activity (
        ns TEXT NOT NULL, resource TEXT NOT NULL, last_user REAL NOT NULL, until REAL NOT NULL,
        PRIMARY KEY (ns, resource)) WITHOUT ROWID""",
    # -- bus: the messages, and what tells this file from one that takes its place
    "CREATE TABLE renew_file (token TEXT NOT NULL)",
    "INSERT INTO renew_file VALUES (lower(hex(randomblob(16))))",
    """CREATE TABLE renew_bus (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        sent_at REAL NOT NULL, sender TEXT NOT NULL, message BLOB NOT NULL)""",
)

#: What takes a file from version n to n + 1, each a list of statements.
MIGRATIONS: tuple[Sequence[str], ...] = (_FIRST,)


class immediate:
    """A transaction that has the write lock from its start; who runs the work rolls back what raises."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self._connection.execute("COMMIT")


def connect(path: str, busy_timeout: float = 0.05) -> sqlite3.Connection:
    """Open the file, making it where there is none, in WAL mode and in our version.

    Args:
      path: The file.
      busy_timeout: Seconds for which SQLite itself waits for another process's lock. Short: that cannot be cancelled.

    Raises:
      sqlite3.Error, OSError: It cannot be done; SQLITE_BUSY where trying again may help.
      StoreError: The file is of a newer version, or another program's.
    """
    if path != MEMORY:
        _create(path)
    connection = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None, check_same_thread=False)
    try:
        if path != MEMORY and connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            # A file that is of a newer version, or no database, must not be changed by looking at it.
            _check_version(connection)
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        migrate(connection)
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.close()
        raise
    return connection


def _create(path: str) -> None:
    try:
        # O_EXCL: no descriptor is made, and closed, of a file that somebody has open.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        pass


def _check_version(connection: sqlite3.Connection, steps: Sequence[Sequence[str]] = MIGRATIONS) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if not 0 <= version <= len(steps):
        raise StoreError(
            f"the file has version {version}, and this release knows versions up to {len(steps)}: "
            "it was written by a newer release, or belongs to another program"
        )
    if version and not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'renew_cache'").fetchone():
        raise StoreError(f"the file belongs to another program: it has version {version}, and no tables of ours")
    return version


def migrate(connection: sqlite3.Connection, steps: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """Bring an open file to the version that ``steps`` lead to.

    Raises:
      StoreError: It is of a newer version, or another program's; it is left as it is.
    """
    if _check_version(connection, steps) == len(steps):
        return
    with immediate(connection):
        # Another process may have been faster.
        for number in range(_check_version(connection, steps), len(steps)):
            for statement in steps[number]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number + 1}")


def starts_with(column: str, prefix: str) -> tuple[str, tuple[str, ...]]:
    """Give a condition for texts that start with exactly ``prefix``, to be put behind another one, and its values."""
    if not prefix:
        return "", ()
    # As bytes: LIKE has wildcards and folds case, and the length of a text ends at its first NUL.
    return (
        f" AND {column} >= ? AND substr(CAST({column} AS BLOB), 1, length(CAST(? AS BLOB))) = CAST(? AS BLOB)",
        (prefix, prefix, prefix),
    )

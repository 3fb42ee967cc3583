"""The bus of one machine: invalidations in a table that all processes read.

Invariants:

* Messages are numbered without a gap; each bus object knows the last number that it has read, and in which file. A
  gap or another file means that something was missed, and everybody is told.
* What cannot be written is kept, and written when the file can be used again.
* A bus object does not read what it has written itself.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, NamedTuple

import trio

from .._errors import StoreError
from .._events import logger
from ._bus_audience import EngineBus
from ._bus_messages import read_items, write_items
from ._sqlite_schema import immediate

if TYPE_CHECKING:
    from .._owner import Owner
    from ._bus_messages import Item
    from ._sqlite_db import Connection, Database, Look

__all__ = ("SQLiteBus",)

#: Seconds that opening waits for a first connection, and that closing waits for the last messages.
OPENING, CLOSING = 5.0, 1.0
#: Seconds between two tries during an outage.
RETRY = 1.0
#: Seconds, and numbers, for which a message can be read.
KEPT, KEPT_AT_MOST = 300.0, 10_000
# Seconds between two looks at the log, and between two questions without a change; under a test clock rarer ones,
# because there every look of a whole virtual day is made.
_LOOK, _ANYWAY = 0.025, 0.5
_TEST_LOOK, _TEST_ANYWAY = 0.5, 30.0
# How many more looks ask after one that has seen a change: the log is written a moment before it can be read.
_AFTERMATH = 2
# How many old messages each writing removes at most.
_PRUNED = 100

_SEND = "INSERT INTO renew_bus (sent_at, sender, message) VALUES (?, ?, ?)"
_READ = "SELECT sender, message FROM renew_bus WHERE id > ? ORDER BY id"
_OLD = f"""DELETE FROM renew_bus
    WHERE id IN (SELECT id FROM renew_bus ORDER BY id LIMIT {_PRUNED}) AND (sent_at <= ? OR id <= ?)"""
# A new file has no sequence before its first message.
_NUMBER = "SELECT token, (SELECT seq FROM sqlite_sequence WHERE name = 'renew_bus') FROM renew_file"


class _Place(NamedTuple):
    """Up to where a file has been read."""

    file: str
    number: int


class SQLiteBus(EngineBus):
    """Carries invalidations between the processes of one machine, through a file. From :func:`open_sqlite_bus`.

    Example::

        async with open_sqlite_bus("/var/lib/app/bus.db") as bus:
            async with open_provider_cache(resolve, name="tenants", bus=bus) as cache:
                cache.delete("acme")  # in every process
    """

    __slots__ = (
        "_database",
        "_exchanging",
        "_first",
        "_id",
        "_place",
    )

    def __init__(self, owner: Owner, database: Database) -> None:
        super().__init__(owner)
        self._database = database
        self._id = os.urandom(16).hex()
        self._place: _Place | None = None
        self._first = trio.Event()
        self._exchanging = trio.Lock()

    def __repr__(self) -> str:
        return f"<trio_renew bus {self._database.path}{' (closed)' if self._owner.closed else ''}>"

    # The task

    async def opened(self) -> None:
        """Wait for the first connection, or for the news that there is none; at most 5 s."""
        with trio.move_on_after(OPENING):
            await self._first.wait()

    async def take_part(self) -> None:  # noqa: ASYNC910 - a task's own work
        """Write and read until the owner closes."""
        try:
            with self._scope:
                while True:
                    try:
                        await self._stay_in_touch()
                    except StoreError as exc:
                        self._fall(exc)
                    await trio.sleep(RETRY)
        except trio.ClosedResourceError:
            pass

    async def _stay_in_touch(self) -> None:
        test = self._database.inline
        look, anyway = (_TEST_LOOK, _TEST_ANYWAY) if test else (_LOOK, _ANYWAY)
        mark, aftermath, due = None, 0, -math.inf
        while True:
            latest = self._database.wal_mark()
            if latest != mark:
                mark, aftermath = latest, _AFTERMATH + 1
            if aftermath or self._outbox or trio.current_time() >= due:
                aftermath = max(0, aftermath - 1)
                await self._exchange()
                self._outage = None
                self._first.set()
                due = trio.current_time() + anyway
            with trio.move_on_after(look):
                await self._wake.wait()
            self._wake = trio.Event()

    def _fall(self, error: StoreError) -> None:
        if self._outage is None:
            self._outage = error
            self._audience.failed(error)
        self._first.set()

    async def flush(self) -> None:  # noqa: ASYNC910 - it waits only where there is something to wait for
        """Write what is not written yet, if that can be done soon."""
        if (self._outbox or self._exchanging.locked()) and self._outage is None:
            with trio.move_on_after(CLOSING, shield=True):  # noqa: ASYNC912 - as above
                try:
                    await self._exchange()
                except StoreError:
                    logger.warning("%r could not send its last invalidations", self)

    async def _exchange(self) -> None:
        """Write what is to be sent and read what is new."""
        async with self._exchanging:
            unsent, self._outbox = self._outbox, {}
            try:
                place, rows = await self._database.run(
                    lambda connection, look: self._write_and_read(connection, look, unsent)
                )
            except BaseException:
                self._outbox = {**unsent, **self._outbox}
                raise
            before, self._place = self._place, place
        for sender, message in rows:
            if sender != self._id:
                self._read(message)
        if before is None or before.file != place.file or before.number + len(rows) != place.number:
            # Also at the first connection: who has come before it may have missed something.
            self._audience.missed()

    def _read(self, message: bytes) -> None:
        try:
            _, items = read_items(message)
        except ValueError:
            # Whatever it was meant to say, nobody has heard it.
            logger.warning("a message in %r cannot be read", self)
            self._audience.missed()
        else:
            for item in items:
                self._audience.pass_on(*item)

    def _number(self, connection: Connection) -> tuple[str, int]:
        row = connection.execute(_NUMBER).fetchone()
        if row is None:
            raise StoreError("somebody has removed what tells this file from another one")
        file, number = row
        return file, number or 0

    def _write_and_read(
        self, connection: Connection, look: Look, unsent: dict[Item, None]
    ) -> tuple[_Place, list[tuple[str, bytes]]]:
        if unsent:
            with immediate(connection):
                now = look()[0]
                messages = [(now, self._id, write_items(self._id, [item])) for item in unsent]
                connection.executemany(_SEND, messages)
                _, number = self._number(connection)
                connection.execute(_OLD, (now - KEPT, number - KEPT_AT_MOST))
        # One transaction: what comes between the two questions would look like a gap.
        connection.execute("BEGIN")
        file, number = self._number(connection)
        rows: list[tuple[str, bytes]] = []
        if self._place is not None and self._place.file == file:
            rows = connection.execute(_READ, (self._place.number,)).fetchall()
        connection.execute("COMMIT")
        return _Place(file, number), rows

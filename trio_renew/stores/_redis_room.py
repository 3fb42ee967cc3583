"""What the stores of one bundle share: a lifetime, a connection, a prefix, and work that outlives its caller.

Invariants:

* A key is the prefix, its kind, and a name; nothing in a name is special (see :mod:`._redis_scripts`).
* What takes more than one round trip runs in a task of the owner and goes on when its caller is cancelled, so that it
  happens wholly. It touches nothing that was made after it was asked for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from ._redis_scripts import CLOCK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from .._owner import Owner
    from ._common import Options
    from ._redis_link import Link
    from ._redis_scripts import Script

__all__ = ("Room", "milliseconds")

X = TypeVar("X")

_SPECIAL = re.compile(rb"[\\*?\[\]]")
# How many keys one round trip looks at or touches: no step keeps the server from its other clients for long.
_BATCH = 500
# Some 30,000 years: the server and Lua can still add to it.
_LONGEST = 10**15


def milliseconds(seconds: float) -> int:
    """Give a length of time as the server takes it: at least one."""
    return max(round(min(seconds, _LONGEST / 1000) * 1000), 1)


class Room:
    """The lifetime, the connection and the keys of one bundle."""

    __slots__ = ("link", "options", "owner", "prefix")

    def __init__(self, owner: Owner, link: Link, prefix: str, options: Options) -> None:
        self.owner: Owner = owner
        self.link: Link = link
        self.prefix: bytes = prefix.encode()
        self.options: Options = options

    def key(self, kind: bytes, name: str = "") -> bytes:
        """Give the key of something."""
        return self.prefix + kind + name.encode()

    async def names(self, kind: bytes, scope: str = "") -> list[str]:
        """Give the names of all keys of a kind that start with ``scope``, each once."""
        start = self.key(kind)
        pattern = _SPECIAL.sub(rb"\\\g<0>", start + scope.encode()) + b"*"
        found: dict[bytes, None] = {}
        cursor = b"0"
        while True:
            cursor, keys = await self.link.call(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _BATCH)
            found.update(dict.fromkeys(keys))
            if cursor == b"0":
                return [key[len(start) :].decode() for key in found]

    async def stamp(self) -> bytes:
        """Give the server's time, as it stands in what is made."""
        stamp: bytes = await self.link.run(CLOCK, ())
        return stamp

    async def describe(self, script: Script, kind: bytes, names: Sequence[str]) -> tuple[float, list[tuple[str, Any]]]:
        """Ask a script for one row per name.

        Returns:
          The instant of the last answer, and the names with their rows.
        """
        now = b"0"
        rows: list[tuple[str, Any]] = []
        for batch in batches(names):
            now, *found = await self.link.run(script, [self.key(kind, name) for name in batch])
            rows += zip(batch, found, strict=True)
        # What the server tells about expiry is in milliseconds.
        return int(now) // 1000 / 1000, rows  # noqa: ASYNC910 - without names there is nothing to ask

    async def outliving(self, work: Callable[[], Awaitable[X]], name: str) -> X:
        """Run work of several round trips; it goes on when the caller leaves. At least one checkpoint."""
        self.owner.check()
        await trio.lowlevel.checkpoint_if_cancelled()
        done = trio.Event()
        results: list[X] = []
        errors: list[Exception] = []

        async def task() -> None:  # noqa: ASYNC910 - a task's own work
            with trio.CancelScope(shield=True):  # noqa: ASYNC912 - as above
                try:
                    results.append(await work())
                except Exception as error:
                    errors.append(error)
                finally:
                    done.set()

        self.owner.start(task, name)
        await done.wait()
        if errors:
            raise errors.pop()
        return results.pop()


def batches(items: Sequence[X]) -> Iterator[Sequence[X]]:
    """Cut into pieces of a size that the server takes well."""
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]

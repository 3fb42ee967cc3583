"""What caches and pools say about themselves."""

from __future__ import annotations

import attrs

__all__ = ("CacheStatus", "PoolStatus")


@attrs.frozen
class CacheStatus:
    """A snapshot of a cache for people and dashboards. It holds no value.

    Attributes:
      name: The cache's name.
      entries: How many live entries it has.
      max_entries: How many it may have.
      resolving: How many resolutions are in progress.
      waiting: How many callers wait for them.
      closed: Whether it has closed.
    """

    name: str | None
    entries: int
    max_entries: int
    resolving: int
    waiting: int
    closed: bool


@attrs.frozen
class PoolStatus:
    """A snapshot of a pool for people and dashboards. It holds no value.

    Attributes:
      name: The pool's name.
      entries: How many values are open and not retired.
      max_entries: How many of them there may be, but for what is borrowed.
      borrowed: How many borrowers there are, those of retired values included.
      opening: How many openings are in progress.
      closed: Whether the pool has closed.
    """

    name: str | None
    entries: int
    max_entries: int
    borrowed: int
    opening: int
    closed: bool

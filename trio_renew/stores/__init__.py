"""Three engines for the stores of :mod:`trio_renew.abc`: ``memory``, ``sqlite`` and ``redis``.

This package imports none of them. Each is opened as a bundle with ``.cache``, ``.dedupe``, ``.rate_limit`` and
``.adaptive``::

    from trio_renew.stores.memory import open_memory_stores

    async with open_memory_stores(max_items=1000) as stores:
        await stores.cache.set("item:1", {"name": "x"}, 60.0)
"""

from __future__ import annotations

__all__ = ()

"""Every engine in the same dress, so that one test holds all of them to the same promises."""

from __future__ import annotations

import importlib.util
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import trio
import trio.testing

from trio_renew.stores.memory import open_memory_stores
from trio_renew.stores.redis import open_redis_stores
from trio_renew.stores.sqlite import open_sqlite_stores

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

_found = importlib.util.spec_from_file_location(
    "redis_servers", Path(__file__).parent.parent / "redis_engine" / "conftest.py"
)
assert _found is not None
assert _found.loader is not None
_servers = importlib.util.module_from_spec(_found)
_found.loader.exec_module(_servers)


class Engine:
    """One engine, and a place of its own for one test.

    Attributes:
      kind: ``"memory"``, ``"sqlite"`` or ``"redis"``.
      virtual: Whether :meth:`run` runs on an autojump clock.
      unit: Seconds that are long enough to tell before from after.
    """

    def __init__(self, kind: str, place: str) -> None:
        self.kind = kind
        self.place = place
        self.prefix = f"{uuid4().hex}:"
        self.virtual = kind != "redis"
        self.unit = 10.0 if self.virtual else 0.3

    @property
    def shared(self) -> bool:
        """Whether two bundles see the same things."""
        return self.kind != "memory"

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncGenerator[Any, None]:
        """Open a bundle in this test's place."""
        if self.kind == "memory":
            opening: Any = open_memory_stores(**options)
        elif self.kind == "sqlite":
            opening = open_sqlite_stores(self.place, prefix=self.prefix, **options)
        else:
            opening = open_redis_stores(self.place, prefix=self.prefix, **options)
        async with opening as stores:
            yield stores

    def run(self, scenario: Callable[[Any], Awaitable[None]], **options: Any) -> None:
        """Run something with an open bundle, in a Trio run of its own."""

        async def main() -> None:
            async with self.open(**options) as stores:
                await scenario(stores)

        self.run_alone(main)

    def run_alone(self, main: Callable[[], Awaitable[None]]) -> None:
        """Run something that opens its bundles itself."""

        async def bounded() -> None:
            with trio.fail_after(1e6 if self.virtual else 20):
                await main()

        trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0) if self.virtual else None)

    async def pass_by(self, seconds: float) -> None:
        """Let so much time pass that something has ended."""
        await trio.sleep(seconds if self.virtual else seconds + 0.03)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Start a server when it is first needed; gives its URL."""
    running: dict[str, Any] = {}

    def url(flavour: str) -> str:
        if flavour not in running:
            running[flavour] = _servers.Server(flavour, tmp_path_factory.mktemp(flavour))
            running[flavour].start()
        return str(running[flavour].url)

    yield url
    for server in running.values():
        server.kill()


@pytest.fixture(params=["memory", "sqlite", *_servers.FLAVOURS])
def engine(request: pytest.FixtureRequest, tmp_path: Path, server_url: Callable[[str], str]) -> Engine:
    """Each engine in turn."""
    if request.param == "memory":
        return Engine("memory", "")
    if request.param == "sqlite":
        return Engine("sqlite", str(tmp_path / "stores.db"))
    return Engine("redis", server_url(request.param))


@pytest.fixture(params=["memory", "sqlite"])
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """Each engine that has bounds and takes a clock."""
    return Engine(request.param, str(tmp_path / "stores.db"))


@pytest.fixture(params=["sqlite", *_servers.FLAVOURS])
def sharing(request: pytest.FixtureRequest, tmp_path: Path, server_url: Callable[[str], str]) -> Engine:
    """Each engine whose bundles see each other."""
    if request.param == "sqlite":
        return Engine("sqlite", str(tmp_path / "stores.db"))
    return Engine("redis", server_url(request.param))

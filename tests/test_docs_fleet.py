"""The examples of docs/fleet.md are run, and its picture of the protocol is what happens."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_renew import Cleared, Event, Share, open_provider
from trio_renew.stores.memory import open_memory_stores
from trio_renew.stores.sqlite import open_sqlite_stores
from trio_renew.testing import ScriptedFetch, Sleep, Token

if TYPE_CHECKING:
    from trio.testing import MockClock

PAGE = (Path(__file__).parent.parent / "docs" / "fleet.md").read_text(encoding="utf8")


@pytest.fixture(scope="module")
def page() -> Any:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    module = ModuleType("the_page_on_fleets")
    exec(compile("\n".join(blocks), "docs/fleet.md", "exec"), module.__dict__)
    return module


async def test_the_examples(page: Any, autojump_clock: MockClock, tmp_path: Path) -> None:
    path = str(tmp_path / "stores.db")
    assert [await page.process(path) for _ in range(2)] == ["the token"] * 2
    assert trio.current_time() == 0.1  # one fetch
    events: list[Event] = []
    async with open_sqlite_stores(path) as stores:
        share = Share(stores.cache, stores.dedupe, "billing token")
        async with open_provider(page.mint, share=share, observe=events.append) as provider:
            await page.log_out(path)
            await provider.refresh()
    assert any(isinstance(event, Cleared) for event in events)


class Recorded:
    """A store that notes who calls what, and with which key."""

    def __init__(self, store: Any, who: str, calls: list[str]) -> None:
        self._store = store
        self._who = who
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if not callable(real):
            return real

        async def call(hash: str, *args: Any, **kwargs: Any) -> Any:
            what = {"key:generation": " the generation", "key:first": " the record"}[hash]
            self._calls.append(f"{self._who} {name}{what if name in ('get', 'set') else ''}")
            return await real(hash, *args, **kwargs)

        return call


async def test_the_picture(autojump_clock: MockClock) -> None:
    (picture,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    drawn: list[str] = []
    for line in picture.splitlines():
        drawn += [f"A {what}" for what in re.findall(r"^  \|-- ([a-z_ ]+?) -+>\|", line)]
        drawn += [f"B {what}" for what in re.findall(r"<-+ ([a-z_ ]+?) -\|$", line)]
    calls: list[str] = []
    fetch = ScriptedFetch(Sleep(3.0, Token("a", 60.0)))
    async with open_memory_stores() as stores, trio.open_nursery() as nursery:

        async def process(who: str) -> None:
            share = Share(Recorded(stores.cache, who, calls), Recorded(stores.dedupe, who, calls), "key")
            async with open_provider(fetch, share=share):
                pass

        nursery.start_soon(process, "A")
        await trio.sleep(1.0)
        nursery.start_soon(process, "B")
    assert drawn == calls

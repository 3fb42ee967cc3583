"""The examples of docs/stores.md are run, in the order of the page and as one module."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
import trio.testing

from trio_renew import RateLimitConfig
from trio_renew.stores.memory import open_memory_stores

PAGE = Path(__file__).parent.parent / "docs" / "stores.md"


@pytest.fixture(scope="module")
def page() -> Any:
    """All Python blocks of the page as one module; its first example runs at once."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    module = ModuleType("the_page_on_stores")
    exec(compile("\n".join(blocks), str(PAGE), "exec"), module.__dict__)
    return module


def test_the_custom_store_passes_its_suite(page: Any) -> None:
    page.test_dict_storage()


def test_work_runs_once(page: Any) -> None:
    async def main() -> None:
        calls: list[str] = []
        results: list[Any] = []

        async def work() -> str:
            calls.append("work")
            await trio.sleep(1.0)
            return "value"

        async def broken() -> str:
            await trio.sleep(1.0)
            raise ValueError("broken")

        async def ask(dedupe: Any, key: str, function: Any) -> None:
            try:
                results.append(await page.once(dedupe, key, function))
            except ValueError as error:
                results.append(str(error))

        async with open_memory_stores() as stores:
            for key, function in (("a", work), ("b", broken)):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(ask, stores.dedupe, key, function)
        assert calls == ["work"]
        assert results == ["value"] * 3 + ["broken"] * 3

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_turns_are_taken(page: Any) -> None:
    async def main() -> None:
        start = trio.current_time()
        async with open_memory_stores(default_config=RateLimitConfig(limit=2, window=10.0)) as stores:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(page.take_turn, stores.rate_limit, "a")
            assert trio.current_time() == start + 20.0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

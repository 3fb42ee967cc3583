"""The examples of the guide to many resources by key are run."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

PAGE = Path(__file__).parent.parent / "docs" / "keyed.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf8"), re.DOTALL | re.MULTILINE)
EXAMPLES = re.findall(r"async def (example_\w+)", "".join(BLOCKS))


@pytest.mark.parametrize("name", EXAMPLES)
async def test_the_example(name: str) -> None:
    module = ModuleType("page")
    exec(compile("\n".join(BLOCKS), str(PAGE), "exec"), module.__dict__)
    example: Any = module.__dict__[name]
    assert inspect.iscoroutinefunction(example)
    with trio.fail_after(10):
        await example()


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 5

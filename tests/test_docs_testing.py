"""The examples of docs/testing.md are run, in the order of the page and as one module."""

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import trio
import trio.testing

PAGE = Path(__file__).parent.parent / "docs" / "testing.md"


def read_page():
    """All Python blocks of the page as one module, with its line numbers."""
    text = PAGE.read_text(encoding="utf8")
    code = [""] * len(text.splitlines())
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        first = text.count("\n", 0, block.start(1))
        for number, line in enumerate(block[1].splitlines()):
            code[first + number] = line
    module = ModuleType("the_page_on_testing")
    sys.modules[module.__name__] = module  # for the example that interrupts its own lines
    exec(compile("\n".join(code), str(PAGE), "exec"), module.__dict__)
    return module


page = read_page()
TESTS = [name for name in vars(page) if name.startswith("test_")]


@pytest.mark.parametrize("name", TESTS)
def test_the_example_works(name):
    example = getattr(page, name)
    if inspect.iscoroutinefunction(example):
        trio.run(example, clock=trio.testing.MockClock(autojump_threshold=0))
    else:
        example()


def test_every_block_was_found():
    assert len(TESTS) == 19

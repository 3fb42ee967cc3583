"""The examples of docs/testing.md are run, in the order of the page and as one module."""

import inspect
import os
import re
import subprocess
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
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(example, clock, clock=clock)
    else:
        example()


def test_a_newcomer_can_run_the_page_as_it_is(tmp_path):
    """The settings that it names, and its examples as one file, are all that is needed."""
    text = PAGE.read_text(encoding="utf8")
    for kind, file in (("ini", "pytest.ini"), ("python", "test_page.py")):
        blocks = re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        (tmp_path / file).write_text("\n\n".join(blocks), encoding="utf8")
    # Other plugins for async tests may be installed here.
    plugins = ["-p", "no:anyio", "-p", "no:asyncio", "-p", "no:valkey", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, "test_page.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PAGE.parent.parent)},
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(TESTS)} passed" in done.stdout


def test_every_block_was_found():
    assert len(TESTS) == 19

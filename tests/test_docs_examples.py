"""The examples of the README, the front page and the tutorial are run."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest
import trio

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run_page(page: str) -> dict[str, Any]:
    module = ModuleType("page")
    exec(compile("\n".join(blocks(page)), page, "exec"), module.__dict__)
    return module.__dict__


def test_the_front_page(capsys: pytest.CaptureFixture[str]) -> None:
    run_page("docs/index.md")
    assert "Secret <REDACTED>" in capsys.readouterr().out


def test_the_readme(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        asked.append(request.url.host)
        if request.url.host == "id.example.com":
            number = asked.count("id.example.com")
            return httpx2.Response(200, json={"access_token": f"t{number}", "token_type": "Bearer", "expires_in": 600})
        good = request.headers["authorization"] == "Bearer t2"
        return httpx2.Response(200 if good else 401, json=["an item"])

    client = httpx2.AsyncClient
    monkeypatch.setattr(httpx2, "AsyncClient", lambda: client(transport=httpx2.MockTransport(answer)))
    run_page("README.md")
    assert capsys.readouterr().out == "['an item']\n"
    assert asked == ["id.example.com", "api.example.com", "id.example.com", "api.example.com"]


EXAMPLES = re.findall(r"async def (example_\w+)", "".join(blocks("docs/tutorial.md")))


@pytest.mark.parametrize("name", EXAMPLES)
async def test_the_tutorial(name: str) -> None:
    example = run_page("docs/tutorial.md")[name]
    assert inspect.iscoroutinefunction(example)
    with trio.fail_after(10):
        await example()


def test_the_whole_tutorial_is_run() -> None:
    assert len(EXAMPLES) == sum(block.count("async def example_") for block in blocks("docs/tutorial.md")) >= 9

"""What is public: the names, that each is documented, and what an import costs others."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import attrs
import pytest

import trio_renew

ROOT = Path(__file__).parent.parent
OPTIONAL = (
    "sqlite3",
    "httpx",
    "httpx2",
    "coredis",
    "cryptography",
    "opentelemetry",
    "rich",
    "hypercorn",
    "trio.testing",
)
MODULES = (
    "trio_renew",
    "trio_renew.abc",
    "trio_renew.lowlevel",
    "trio_renew.testing",
    "trio_renew.integrations.httpx",
    "trio_renew.integrations.oauth2",
    "trio_renew.integrations.otel",
    "trio_renew.stores.memory",
    "trio_renew.stores.sqlite",
    "trio_renew.stores.redis",
)


def exported(module: types.ModuleType) -> list[str]:
    names: tuple[str, ...] = module.__all__
    return list(names)


def written(module: types.ModuleType) -> set[str]:
    """The names that the source re-exports in the form that type checkers take as public."""
    return set(re.findall(r"\b(\w+) as \1\b", inspect.getsource(module)))


def documented() -> set[str]:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf8")
    return set(re.findall(r"^\.\. auto(?:function|class|exception|data):: (?:[\w.]+\.)?(\w+)", page, re.MULTILINE))


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted_and_true(name: str) -> None:
    module = importlib.import_module(name)
    names = exported(module)
    assert isinstance(module.__all__, tuple)
    assert names == sorted(set(names))
    for each in names:
        assert not each.startswith("_")
        assert getattr(module, each) is not None


@pytest.mark.parametrize("name", ["trio_renew", "trio_renew.lowlevel", "trio_renew.testing"])
def test_all_is_what_type_checkers_see(name: str) -> None:
    module = importlib.import_module(name)
    assert written(module) == set(module.__all__)


@pytest.mark.parametrize("name", ["trio_renew", "trio_renew.lowlevel", "trio_renew.testing"])
def test_dir_shows_all(name: str) -> None:
    module = importlib.import_module(name)
    assert set(module.__all__) <= set(dir(module))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'open_provder'"):
        trio_renew.open_provder  # type: ignore[attr-defined]  # noqa: B018


def test_every_name_is_in_the_reference() -> None:
    assert set(trio_renew.__all__) - documented() == set()
    for name in ("stores.memory", "stores.sqlite", "stores.redis"):
        module = importlib.import_module(f"trio_renew.{name}")
        openers = {each for each in module.__all__ if each.startswith("open_")}
        assert openers - documented() == set()


def test_the_reference_invents_nothing() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf8")
    short = re.findall(r"^\.\. auto(?:function|class|exception|data):: (\w+)(?:\(\))?$", page, re.MULTILINE)
    assert len(short) == len(set(short))
    assert set(short) == set(trio_renew.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_object_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    silent = []
    for each in module.__all__:
        value = getattr(module, each)
        if not isinstance(value, (type, types.FunctionType)):
            continue
        if not inspect.getdoc(value):
            silent.append(each)
        if isinstance(value, type):
            silent += [f"{each}.{member}" for member, it in public_members(value) if not inspect.getdoc(it)]
    assert silent == []


def public_members(cls: type) -> list[tuple[str, object]]:
    """What a class of ours defines itself, and is neither private nor a field."""
    fields = {field.name for field in attrs.fields(cls)} if attrs.has(cls) else set()
    slots = set(getattr(cls, "__slots__", ()))
    return [
        (name, value)
        for name, value in vars(cls).items()
        if not name.startswith("_")
        and name not in fields | slots
        and isinstance(value, (types.FunctionType, property, classmethod, staticmethod))
    ]


def run(code: str) -> str:
    # Coverage would start itself in there, and bring what it needs.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import trio_renew",
        "from trio_renew import *",
        "import trio_renew.abc, trio_renew.lowlevel, trio_renew.stores, trio_renew.integrations",
        "import trio_renew.stores.memory",
    ],
)
def test_an_import_pulls_in_nothing_optional(statement: str) -> None:
    code = f"import sys\n{statement}\nprint(*sorted(set({OPTIONAL!r}) & set(sys.modules)))"
    assert run(code) == ""


def test_the_kit_needs_no_pytest() -> None:
    # trio.testing looks for pytest itself, and goes on without it.
    run("import sys; sys.modules.update(pytest=None, _pytest=None, hypothesis=None); import trio_renew.testing")


def test_the_package_is_marked_as_typed() -> None:
    assert (Path(trio_renew.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "trio_renew" / "_policy").glob("*.py")), ids=lambda path: path.name)
def test_the_policy_knows_neither_trio_nor_a_clock(path: Path) -> None:
    source = path.read_text(encoding="utf8")
    assert not re.search(r"^\s*(import|from) (trio|time|datetime)\b", source, re.MULTILINE)
    assert set(re.findall(r"^\s*from \.\.(\w+) import", source, re.MULTILINE)) <= {"_values", "_errors"}

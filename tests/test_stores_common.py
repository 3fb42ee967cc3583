"""What the engines share: checks, results and the names of errors."""

from __future__ import annotations

import pathlib
from typing import Any

import attrs
import pytest

import trio_renew
from trio_renew import JsonCodec, RateLimitConfig, RemoteFetchError
from trio_renew.stores import _common
from trio_renew.stores._common import (
    Options,
    check_instant,
    check_priority,
    check_scope,
    check_tags,
    check_text,
    check_ttl,
    check_value,
    error_type_name,
    in_page,
)


class Outer:
    class Error(Exception):
        pass


def test_the_type_of_an_error_is_named_with_its_module() -> None:
    assert error_type_name(ValueError("x")) == "builtins.ValueError"
    assert error_type_name(Outer.Error("x")) == f"{__name__}.Outer.Error"


def test_an_error_that_has_travelled_keeps_its_name() -> None:
    assert error_type_name(RemoteFetchError("httpx.ConnectError", "no route")) == "httpx.ConnectError"


def test_what_is_right_passes_as_it_is() -> None:
    assert check_text("hash", "漢字") == "漢字"
    check_value(0)
    assert [check_scope(scope) for scope in (None, "", "a:")] == ["", "", "a:"]
    assert [check_ttl(ttl) for ttl in (0, -1, 0.5, 60)] == [0.0, -1.0, 0.5, 60.0]
    assert check_tags(["b", "a", "b"]) == ("b", "a")
    assert check_tags(iter(("a",))) == ("a",)
    assert [check_priority(priority) for priority in ("user", "background")] == ["user", "background"]
    assert check_instant("until", 1_700_000_000) == 1.7e9
    assert in_page(range(10), 8, 5) == [8, 9]


def test_the_options_have_the_promised_defaults() -> None:
    options = Options(codec=JsonCodec())
    assert (options.max_items, options.max_entry_size_bytes, options.max_total_bytes) == (None, None, None)
    assert (options.lease, options.clock) == (10.0, None)
    assert options.default_config == RateLimitConfig(limit=60, window=60.0)
    assert options.resource_configs == {}


@pytest.mark.parametrize(
    "name", ["CacheEntryInfo", "CacheStats", "DedupeStats", "JobInfo", "RateLimitStats", "ResourceInfo", "Stores"]
)
def test_results_are_frozen_and_public(name: str) -> None:
    result: Any = getattr(trio_renew, name)
    assert result is getattr(_common, name)
    fields = attrs.fields(result)
    item = result(*range(len(fields)))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(item, fields[0].name, 1)


def test_the_package_of_the_engines_imports_none_of_them() -> None:
    source = pathlib.Path(_common.__file__).with_name("__init__.py").read_text()
    code = [line for line in source.split('"""')[2].splitlines() if line]
    assert code == ["from __future__ import annotations", "__all__ = ()"]

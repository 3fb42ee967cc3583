"""Services by name and version; a fixed token where a provider is expected."""

from __future__ import annotations

import pytest
import trio
from trio.testing import assert_checkpoints, assert_no_checkpoints

from trio_renew._registry import Registry, ServiceDescriptor, describe, static_provider
from trio_renew._values import AuthToken
from trio_renew.abc import CredentialProvider

MANAGER = object()


def test_a_descriptor_carries_name_version_and_the_very_resource():
    descriptor = describe("csrf-token", MANAGER)
    assert (descriptor.name, descriptor.version) == ("csrf-token", "1")
    assert descriptor.resource is MANAGER
    assert descriptor == ServiceDescriptor("csrf-token", "1", MANAGER)
    assert describe("csrf-token", MANAGER, "2").version == "2"
    assert repr(describe("a", AuthToken("opaque"))) == "ServiceDescriptor(name='a', version='1', resource=<AuthToken>)"


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ((5, MANAGER), TypeError, "name must be a str, not 5"),
        (("", MANAGER), ValueError, "name must not be empty"),
        (("a", MANAGER, 2), TypeError, "version must be a str, not 2"),
        (("a", MANAGER, ""), ValueError, "version must not be empty"),
    ],
)
def test_names_and_versions_are_texts(arguments, error, reason):
    with pytest.raises(error, match=reason):
        describe(*arguments)


def test_services_are_found():
    registry = Registry()
    assert repr(registry) == "<Registry: empty>"
    first, second, other = describe("a", 1), describe("a", 2, "2"), describe("b", 3, "7")
    registry.register(first)
    assert registry.resolve("a") is first
    registry.register(second)
    registry.register(other)
    assert registry.resolve("a", "1") is first
    assert registry.resolve("a", "2") is second
    assert registry.resolve("b") is other
    assert registry.resolve("b", "7") is other
    assert repr(registry) == "<Registry: a 1, a 2, b 7>"


def test_a_second_one_of_the_same_version_is_refused():
    registry = Registry()
    registry.register(describe("a", 1))
    with pytest.raises(ValueError, match="service 'a' has a version '1' already"):
        registry.register(describe("a", 2))
    assert registry.resolve("a").resource == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("c",), "there is no service 'c'"),
        (("c", "1"), "there is no service 'c'"),
        (("a",), "several versions, so name one: '1', '2'"),
        (("a", "3"), "has no version '3'; it has '1', '2'"),
        (("b", "3"), "has no version '3'; it has '1'"),
    ],
)
def test_what_is_not_there_is_a_lookup_error(arguments, reason):
    registry = Registry()
    for descriptor in (describe("a", 1), describe("a", 2, "2"), describe("b", 3)):
        registry.register(descriptor)
    with pytest.raises(LookupError, match=reason):
        registry.resolve(*arguments)


def test_only_descriptors_are_registered():
    with pytest.raises(TypeError, match="descriptor must be what describe"):
        Registry().register(MANAGER)


@pytest.mark.parametrize("token", [AuthToken("opaque"), AuthToken("opaque", 1.0), "text"])
async def test_a_static_provider_always_gives_its_token(token):
    provider = static_provider(token)
    assert isinstance(provider, CredentialProvider)
    for _ in range(2):
        with assert_checkpoints():
            assert await provider.current_token() is token
        with assert_checkpoints():
            assert await provider.get() is token
        with assert_no_checkpoints():
            assert provider.get_nowait() is token
    assert "opaque" not in repr(provider)
    assert "text" not in repr(provider)


async def test_a_static_provider_can_be_cancelled():
    provider = static_provider("a")
    for method in (provider.current_token, provider.get):
        with trio.CancelScope() as scope:
            scope.cancel()
            await method()
        assert scope.cancelled_caught


def test_none_is_no_token():
    with pytest.raises(TypeError, match="token must be a value"):
        static_provider(None)

"""Services by name and version, and a token that stands in where a provider is expected.

Invariants: a registry holds each (name, version) once; it neither opens nor closes what it holds.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, final

import attrs
import trio

__all__ = ("Registry", "ServiceDescriptor", "StaticProvider", "describe", "static_provider")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def _check_name(_: object, attribute: attrs.Attribute[str], value: Any) -> None:
    _check_text(attribute.name, value)


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {value!r}")
    if not value:
        raise ValueError(f"{name} must not be empty")


@final
@attrs.frozen
class ServiceDescriptor(Generic[T_co]):
    """A resource with the name and the version under which others find it. Made by :func:`describe`.

    Attributes:
      name: The name of the service.
      version: Its version.
      resource: The resource itself.
    """

    name: str = attrs.field(validator=_check_name)
    version: str = attrs.field(validator=_check_name)
    resource: T_co = attrs.field(repr=lambda resource: f"<{type(resource).__name__}>")


def describe(name: str, resource: T, version: str = "1") -> ServiceDescriptor[T]:
    """Give a resource a name and a version.

    Args:
      name: The name, a non-empty text.
      resource: The resource, or anything else.
      version: The version, a non-empty text.

    Raises:
      TypeError: ``name`` or ``version`` is no text.
      ValueError: ``name`` or ``version`` is empty.

    Example::

        registry.register(describe("csrf-token", resource))
    """
    return ServiceDescriptor(name, version, resource)


@final
class Registry:
    """Services by name and version.

    Example::

        registry = Registry()
        registry.register(describe("csrf-token", resource))
        token = await registry.resolve("csrf-token").resource.get()
    """

    __slots__ = ("_services",)

    def __init__(self) -> None:
        self._services: dict[str, dict[str, ServiceDescriptor[Any]]] = {}

    def register(self, descriptor: ServiceDescriptor[Any]) -> None:
        """Take a service in.

        Raises:
          TypeError: It is no descriptor.
          ValueError: This name has this version already.
        """
        if not isinstance(descriptor, ServiceDescriptor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"descriptor must be what describe() gives, not of type {type(descriptor).__name__}")
        versions = self._services.setdefault(descriptor.name, {})
        if descriptor.version in versions:
            raise ValueError(f"service {descriptor.name!r} has a version {descriptor.version!r} already")
        versions[descriptor.version] = descriptor

    def resolve(self, name: str, version: str | None = None) -> ServiceDescriptor[Any]:
        """Find a service.

        Args:
          name: Its name.
          version: Its version; None: the only one there is.

        Raises:
          LookupError: There is no such service, or there are several versions and none was named.
        """
        versions = self._services.get(name, {})
        if version is not None and version in versions:
            return versions[version]
        if version is None and len(versions) == 1:
            return next(iter(versions.values()))
        known = ", ".join(map(repr, versions))
        if not versions:
            raise LookupError(f"there is no service {name!r}")
        if version is None:
            raise LookupError(f"service {name!r} has several versions, so name one: {known}")
        raise LookupError(f"service {name!r} has no version {version!r}; it has {known}")

    def __repr__(self) -> str:
        services = (f"{name} {version}" for name, versions in self._services.items() for version in versions)
        return f"<Registry: {', '.join(services) or 'empty'}>"


@final
class StaticProvider(Generic[T_co]):
    """A fixed token where a provider is expected. Made by :func:`static_provider`."""

    __slots__ = ("_token",)

    def __init__(self, token: T_co) -> None:
        self._token = token

    async def current_token(self) -> T_co:
        """Give the token; exactly one checkpoint."""
        await trio.lowlevel.checkpoint()
        return self._token

    async def get(self) -> T_co:
        """Give the token; exactly one checkpoint."""
        await trio.lowlevel.checkpoint()
        return self._token

    def get_nowait(self) -> T_co:
        """Give the token; no checkpoint."""
        return self._token

    def __repr__(self) -> str:
        return f"static_provider(<{type(self._token).__name__}>)"


def static_provider(token: T) -> StaticProvider[T]:
    """Make a provider of a fixed token: it is always served, whatever its expiry says, and never renewed.

    Args:
      token: The token, or any other value.

    Raises:
      TypeError: ``token`` is None.

    Example::

        provider = static_provider(AuthToken(os.environ["TOKEN"]))
        token = await provider.current_token()
    """
    if token is None:
        raise TypeError("token must be a value, not None")
    return StaticProvider(token)

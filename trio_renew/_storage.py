"""Where a value outlives its owner: in memory, in a file, in a store.

Invariants:

* A call that is cancelled before it has begun changes nothing; one that has begun is finished.
* A file is replaced, never written over: whoever reads sees the old value or the new one, also after a crash.
* The bytes of a value are never in a file that somebody else may read.
"""

from __future__ import annotations

import os
import secrets
import stat
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar, cast, final

import trio

from ._clock import under_test_clock
from ._codecs import AuthTokenCodec as AuthTokenCodec, JsonCodec as JsonCodec, check_codec, encrypted as encrypted
from ._errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .abc import CacheStore, Codec

__all__ = ("AuthTokenCodec", "FileStorage", "JsonCodec", "MemoryStorage", "StoreStorage", "encrypted")

T = TypeVar("T")
X = TypeVar("X")

#: Where permissions mean something: that group or others may read or write.
_NOT_PRIVATE = stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH if os.name == "posix" else 0
#: Not to wait for a writer where the path is a pipe.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
#: None where a directory cannot be opened, and need not be.
_DIRECTORY: int | None = getattr(os, "O_DIRECTORY", None)

#: Seconds after which a temporary file is one that a killed process has left behind.
_ABANDONED = 60.0


class _Bytes:
    """Bytes in a box, because a traceback may show the locals of our frames."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


@final
class MemoryStorage(Generic[T]):
    """A value in memory: it outlives an owner, not the process. For tests, and between owners.

    Every method is exactly one checkpoint; cancelled there, it has not happened.
    """

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value: T | None = None

    async def get(self) -> T | None:
        """Give the value, or None."""
        await trio.lowlevel.checkpoint()
        return self._value

    async def set(self, value: T) -> None:
        """Replace the value."""
        await trio.lowlevel.checkpoint()
        self._value = value

    async def clear(self) -> None:
        """Forget the value."""
        await trio.lowlevel.checkpoint()
        self._value = None

    def __repr__(self) -> str:
        return f"<MemoryStorage: {'empty' if self._value is None else 'one value'}>"


@final
class FileStorage(Generic[T]):
    """A value in a file that only its owner may read (mode 0600).

    The file is replaced as a whole and written through to the disk, so that a crash leaves the old value or the new
    one. Its bytes are the codec's: plain text, unless that is :func:`encrypted`.

    It works in a worker thread (under a test clock in Trio's own, because an autojump clock does not see threads).
    ``set`` and ``clear`` are cancelled before they have begun or not at all; ``get`` at any time. One file is for one
    writer; several are safe, but the last one wins.

    Args:
      path: The file. Its directory must exist; temporary files beside it are named ``.<name>.<random>.tmp``.
      codec: What makes bytes of a value, such as :class:`AuthTokenCodec`, :class:`JsonCodec`, or :func:`encrypted`.

    Raises:
      TypeError: ``path`` is no path, or ``codec`` is no codec.
      ValueError: ``path`` names no file.

    Example::

        open_provider(mint, storage=FileStorage("/var/lib/app/token.json", AuthTokenCodec()))
    """

    __slots__ = ("_codec", "_directory", "_lock", "_name", "_path")

    def __init__(self, path: str | os.PathLike[str], codec: Codec[T]) -> None:
        text = os.fspath(path)
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"path must be a str or a path of text, not of type {type(text).__name__}")
        check_codec("codec", codec)
        # A later change of the working directory does not move it.
        self._path = os.path.abspath(text)
        self._directory, self._name = os.path.split(self._path)
        if os.path.basename(text) in ("", os.curdir, os.pardir):
            raise ValueError(f"path must name a file, not {text!r}")
        self._codec = codec
        self._lock = threading.Lock()

    async def get(self) -> T | None:
        """Read the value; None where there is no file.

        At least one checkpoint. Cancelling it abandons the reading.

        Raises:
          StoreError: The file is none, or one that others may read or write; it is not served.
          OSError: The file cannot be read.
          Exception: What the codec raises for its bytes.
        """
        found = await _run(self._read, abandon=True)
        return None if found is None else self._codec.decode(found.data)

    async def set(self, value: T) -> None:
        """Replace the file.

        At least one checkpoint. Cancelled, it has happened wholly or not at all.

        Raises:
          OSError: The file cannot be written; the old one is still there.
          Exception: What the codec raises for this value.
        """
        new = _Bytes(self._codec.encode(value))
        await _run(lambda: self._write(new))

    async def clear(self) -> None:
        """Remove the file, and what killed processes have left of it; no error where there is none.

        At least one checkpoint. Cancelled, it has happened wholly or not at all.

        Raises:
          OSError: The file cannot be removed.
        """
        await _run(self._remove)

    def __repr__(self) -> str:
        return f"FileStorage({self._path!r}, {self._codec!r})"

    # What follows runs in a worker thread.

    def _read(self) -> _Bytes | None:
        try:
            descriptor = os.open(self._path, _READ)
        except FileNotFoundError:
            return None
        try:
            # The open file is asked, not the path: nobody can change it in between.
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise StoreError(f"{self._path} is no regular file")
            if mode & _NOT_PRIVATE:
                raise StoreError(
                    f"{self._path} has mode {stat.S_IMODE(mode):04o}: its group or others may read or write it, so it"
                    " is not used; make it 0600, and treat the value as known to them"
                )
            with open(descriptor, "rb", closefd=False) as file:
                return _Bytes(file.read())
        finally:
            os.close(descriptor)

    def _write(self, new: _Bytes) -> None:
        with self._lock:
            self._remove_temporary(time.time() - _ABANDONED)
            temporary = os.path.join(self._directory, f".{self._name}.{secrets.token_hex(8)}.tmp")
            try:
                with open(os.open(temporary, _WRITE, 0o600), "wb") as file:
                    file.write(new.data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self._path)
            except BaseException:
                _unlink(temporary)
                raise
            self._sync_directory()

    def _remove(self) -> None:
        with self._lock:
            # A writer that is half done fails then: what it writes was there before.
            self._remove_temporary(None)
            if _unlink(self._path):
                self._sync_directory()

    def _remove_temporary(self, before: float | None) -> None:
        """Remove temporary files: those last changed before this, or all. What cannot be removed stays."""
        start, length = f".{self._name}.", len(self._name) + len("..0123456789abcdef.tmp")
        with suppress(OSError):
            for name in os.listdir(self._directory):
                if name.startswith(start) and name.endswith(".tmp") and len(name) == length:
                    path = os.path.join(self._directory, name)
                    with suppress(OSError):
                        if before is None or os.stat(path).st_mtime < before:
                            os.unlink(path)

    def _sync_directory(self) -> None:
        if _DIRECTORY is not None:
            descriptor = os.open(self._directory, os.O_RDONLY | _DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


async def _run(work: Callable[[], X], *, abandon: bool = False) -> X:
    """Do blocking work: in a thread, or here where a thread would stop a test's clock from jumping."""
    if not under_test_clock():
        # A limiter of its own: a busy application must not keep a token from being read.
        return await trio.to_thread.run_sync(work, abandon_on_cancel=abandon, limiter=trio.CapacityLimiter(1))
    await trio.lowlevel.checkpoint_if_cancelled()
    result = work()
    await trio.lowlevel.cancel_shielded_checkpoint()
    return result


@final
class StoreStorage(Generic[T]):
    """A value under one key of a cache store, stored without an end.

    Its methods are those of the store: they are checkpoints and can be cancelled as the store's are, and raise what
    the store raises. A bounded store may evict the value: then it is fetched again.

    Args:
      cache_store: The store, such as the ``cache`` of an engine.
      key: The key, a non-empty text.
      codec: Makes the text that is stored, where the store's own codec cannot carry the value; its bytes must be
        UTF-8. None: the store gets the value itself.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: ``key`` is empty.

    Example::

        async with open_sqlite_stores("state.db") as stores:
            storage = StoreStorage(stores.cache, "token", codec=AuthTokenCodec())
    """

    __slots__ = ("_codec", "_key", "_store")

    def __init__(
        self, cache_store: CacheStore[T] | CacheStore[str], key: str, *, codec: Codec[T] | None = None
    ) -> None:
        for method in ("get", "set", "delete"):
            if not callable(getattr(cache_store, method, None)):
                raise TypeError(f"cache_store must be a CacheStore; {type(cache_store).__name__} has no {method}")
        if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"key must be a str, not of type {type(key).__name__}")
        if not key:
            raise ValueError("key must not be empty")
        if codec is not None:
            check_codec("codec", codec)
        self._store = cast("CacheStore[object]", cache_store)
        self._key = key
        self._codec = codec

    async def get(self) -> T | None:
        """Read the value; None where there is none."""
        found = await self._store.get(self._key)
        if found is None or self._codec is None:
            return cast("T | None", found)
        if not isinstance(found, str):
            raise TypeError(f"the store holds a value of type {type(found).__name__} here, not the text of a codec")
        box, found = _Bytes(found.encode()), None
        return self._codec.decode(box.data)

    async def set(self, value: T) -> None:
        """Replace the value."""
        await self._store.set(self._key, value if self._codec is None else self._codec.encode(value).decode(), 0)

    async def clear(self) -> None:
        """Forget the value."""
        await self._store.delete(self._key)

    def __repr__(self) -> str:
        return f"StoreStorage({self._store!r}, {self._key!r})"

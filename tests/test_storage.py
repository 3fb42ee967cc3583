"""Where a value outlives its owner. Real files, real threads."""

from __future__ import annotations

import os
import stat
import threading
import time
import traceback
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trio_renew import _storage
from trio_renew._codecs import AuthTokenCodec, JsonCodec
from trio_renew._errors import StoreError
from trio_renew._storage import FileStorage, MemoryStorage, StoreStorage
from trio_renew._values import AuthToken
from trio_renew.abc import Storage
from trio_renew.stores.memory import open_memory_stores
from trio_renew.testing import StorageContract


class TestMemoryContract(StorageContract):
    @asynccontextmanager
    async def open_store(self):
        yield MemoryStorage()


class TestFileContract(StorageContract):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path):
        self.path = tmp_path / "value.json"

    @asynccontextmanager
    async def open_store(self):
        yield FileStorage(self.path, JsonCodec())


class TestStoreContract(StorageContract):
    @asynccontextmanager
    async def open_store(self):
        async with open_memory_stores() as stores:
            yield StoreStorage(stores.cache, "key")


class TestStoreWithCodecContract(StorageContract):
    @asynccontextmanager
    async def open_store(self):
        async with open_memory_stores() as stores:
            yield StoreStorage(stores.cache, "key", codec=JsonCodec())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "value.json"


async def cancelled(function, *args) -> bool:
    with trio.CancelScope() as scope:
        scope.cancel()
        await function(*args)
    return scope.cancelled_caught


# Memory


async def test_memory_checkpoints_first():
    storage = MemoryStorage()
    assert isinstance(storage, Storage)
    with trio.testing.assert_checkpoints():
        assert await storage.get() is None
    with trio.testing.assert_checkpoints():
        await storage.set("opaque")
    assert repr(storage) == "<MemoryStorage: one value>"
    assert await cancelled(storage.get)
    assert await cancelled(storage.set, "b")
    assert await cancelled(storage.clear)
    assert await storage.get() == "opaque"
    with trio.testing.assert_checkpoints():
        await storage.clear()
    assert repr(storage) == "<MemoryStorage: empty>"


# Files


async def test_a_file_outlives_its_storage(path):
    token = AuthToken("abc", 5.0)
    await FileStorage(path, AuthTokenCodec()).set(token)
    assert await FileStorage(str(path), AuthTokenCodec()).get() == token


async def test_a_file_is_private_whatever_it_was(path):
    path.write_text("old")
    path.chmod(0o644)
    old = os.umask(0)
    try:
        await FileStorage(path, JsonCodec()).set("new")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o666, 0o777])
async def test_a_file_that_others_can_read_is_refused(path, mode):
    storage = FileStorage(path, JsonCodec())
    await storage.set("opaque")
    path.chmod(mode)
    with pytest.raises(StoreError, match=f"has mode {mode:04o}") as caught:
        await storage.get()
    assert "opaque" not in str(caught.value)
    await storage.set("new")
    assert await storage.get() == "new"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
async def test_a_private_file_is_served(path, mode):
    storage = FileStorage(path, JsonCodec())
    await storage.set("a")
    path.chmod(mode)
    assert await storage.get() == "a"


def _directory(path):
    path.mkdir(mode=0o700)


def _pipe(path):
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize("make", [_directory, _pipe])
async def test_what_is_no_file_is_refused_at_once(path, make):
    make(path)
    with trio.fail_after(5):
        with pytest.raises(StoreError, match="is no regular file"):
            await FileStorage(path, JsonCodec()).get()


async def test_no_descriptor_is_left_open(path):
    storage = FileStorage(path, JsonCodec())
    await storage.set("a")
    before = len(os.listdir("/proc/self/fd"))
    await storage.set("b")
    await storage.get()
    path.chmod(0o644)
    with pytest.raises(StoreError):
        await storage.get()
    await storage.clear()
    _directory(path)
    with pytest.raises(StoreError):
        await storage.get()
    with pytest.raises(OSError):
        await storage.set("c")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_link_is_read_and_then_replaced(path, tmp_path):
    real = tmp_path / "real"
    await FileStorage(real, JsonCodec()).set("a")
    path.symlink_to(real)
    storage = FileStorage(path, JsonCodec())
    assert await storage.get() == "a"
    await storage.set("b")
    assert not path.is_symlink()
    assert await FileStorage(real, JsonCodec()).get() == "a"


async def test_a_half_written_file_is_a_failed_read(path):
    path.write_bytes(b'{"a"')
    path.chmod(0o600)
    with pytest.raises(ValueError, match="no JSON"):
        await FileStorage(path, JsonCodec()).get()


async def test_without_its_directory_reading_is_empty_and_writing_fails(tmp_path):
    storage = FileStorage(tmp_path / "none" / "value", JsonCodec())
    assert await storage.get() is None
    await storage.clear()
    with pytest.raises(FileNotFoundError):
        await storage.set("a")


async def test_a_write_that_fails_leaves_the_old_value_and_no_litter(path, monkeypatch):
    storage = FileStorage(path, JsonCodec())
    await storage.set("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            await storage.set("new")
    assert await storage.get() == "old"
    assert os.listdir(path.parent) == [path.name]


async def test_a_value_that_cannot_be_encoded_changes_nothing(path):
    storage = FileStorage(path, JsonCodec())
    await storage.set("old")
    with pytest.raises(TypeError):
        await storage.set(("new",))
    assert await storage.get() == "old"


async def test_an_error_shows_no_value(path, monkeypatch):
    def shown(error: BaseException) -> str:
        error.__traceback__ = error.__traceback__.tb_next
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())

    storage = FileStorage(path, AuthTokenCodec())
    (path / "x").mkdir(parents=True)
    with pytest.raises(OSError) as caught:
        await storage.set(AuthToken("opaque"))
    assert "opaque" not in shown(caught.value)
    storage = FileStorage(path / "y", AuthTokenCodec())
    (path / "y").write_text('{"secret": "opaque"}')
    (path / "y").chmod(0o600)
    with pytest.raises(ValueError) as caught:
        await storage.get()
    assert "opaque" not in shown(caught.value)
    async with open_memory_stores() as stores:
        await stores.cache.set("key", '{"secret": "opaque"}', 0)
        with pytest.raises(ValueError) as caught:
            await StoreStorage(stores.cache, "key", codec=AuthTokenCodec()).get()
    assert "opaque" not in shown(caught.value)


async def test_the_disk_is_written_through(path, monkeypatch):
    synced = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        synced.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    storage = FileStorage(path, JsonCodec())
    await storage.set("a")
    assert synced == ["file", "directory"]
    await storage.clear()
    assert synced == ["file", "directory", "directory"]
    await storage.clear()
    assert len(synced) == 3


async def test_where_directories_cannot_be_opened_it_works_without(path, monkeypatch):
    monkeypatch.setattr(_storage, "_DIRECTORY", None)
    storage = FileStorage(path, JsonCodec())
    await storage.set("a")
    assert await storage.get() == "a"


LEFT = ".value.json.0123456789abcdef.tmp"


async def test_what_killed_processes_left_is_removed(path):
    def litter(name: str, age: float) -> None:
        (path.parent / name).write_text("opaque")
        os.utime(path.parent / name, (time.time() - age,) * 2)

    storage = FileStorage(path, JsonCodec())
    others = ["value.json.bak", ".value.json.swp", ".value.json.tmp", ".other.json.0123456789abcdef.tmp"]
    for name in others:
        litter(name, 1e6)
    litter(LEFT, 0.0)
    await storage.set("a")
    assert sorted(os.listdir(path.parent)) == sorted([*others, path.name, LEFT])  # perhaps somebody's who writes now
    litter(LEFT, 100.0)
    await storage.set("b")
    assert sorted(os.listdir(path.parent)) == sorted([*others, path.name])
    litter(LEFT, 0.0)
    await storage.clear()
    assert sorted(os.listdir(path.parent)) == sorted(others)


async def test_a_leftover_that_cannot_be_removed_does_not_matter(path):
    (path.parent / LEFT).mkdir()
    storage = FileStorage(path, JsonCodec())
    await storage.set("a")
    assert await storage.get() == "a"
    await storage.clear()
    assert await storage.get() is None


class Held:
    """Holds whoever calls it in a worker thread until released."""

    def __init__(self, function):
        self.function = function
        self.entered = trio.Event()
        self.go = threading.Event()

    def __call__(self, *args, **kwargs):
        if threading.current_thread() is threading.main_thread():
            return self.function(*args, **kwargs)
        trio.from_thread.run_sync(self.entered.set)
        assert self.go.wait(10)
        return self.function(*args, **kwargs)


async def test_a_write_that_has_begun_is_finished(path, monkeypatch):
    storage = FileStorage(path, JsonCodec())
    await storage.set("old")
    held = Held(os.fsync)
    monkeypatch.setattr(os, "fsync", held)
    scope = trio.CancelScope()

    async def write() -> None:
        with scope:
            await storage.set("new")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await held.entered.wait()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            held.go.set()
    assert not scope.cancelled_caught
    monkeypatch.undo()
    assert await storage.get() == "new"


async def test_a_clear_that_has_begun_is_finished(path, monkeypatch):
    storage = FileStorage(path, JsonCodec())
    await storage.set("old")
    held = Held(os.unlink)
    monkeypatch.setattr(os, "unlink", held)
    scope = trio.CancelScope()

    async def clear() -> None:
        with scope:
            await storage.clear()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clear)
            await held.entered.wait()
            scope.cancel()
            held.go.set()
    assert not scope.cancelled_caught
    monkeypatch.undo()
    assert await storage.get() is None


async def test_a_reading_is_abandoned(path, monkeypatch):
    storage = FileStorage(path, JsonCodec())
    await storage.set("a")
    held = Held(os.fstat)
    done = threading.Event()

    def fstat(descriptor: int) -> os.stat_result:
        try:
            return held(descriptor)
        finally:
            done.set()

    monkeypatch.setattr(os, "fstat", fstat)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.get)
            await held.entered.wait()
            nursery.cancel_scope.cancel()
    held.go.set()
    assert done.wait(10)


async def test_cancelled_before_it_has_begun_nothing_happens(path):
    storage = FileStorage(path, JsonCodec())
    await storage.set("old")
    assert await cancelled(storage.set, "new")
    assert await cancelled(storage.clear)
    assert await cancelled(storage.get)
    assert await storage.get() == "old"


async def test_a_busy_application_does_not_keep_it_waiting(path):
    storage = FileStorage(path, JsonCodec())
    limiter = trio.to_thread.current_default_thread_limiter()
    tokens, limiter.total_tokens = limiter.total_tokens, 1
    try:
        async with limiter:
            with trio.fail_after(10):
                await storage.set("a")
                assert await storage.get() == "a"
    finally:
        limiter.total_tokens = tokens


async def test_many_writers_leave_one_whole_value(path):
    storages = [FileStorage(path, JsonCodec()) for _ in range(4)]
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(storages[number % 4].set, ["x" * number])
    assert await storages[0].get() in [["x" * number] for number in range(20)]
    assert os.listdir(path.parent) == [path.name]


async def test_under_a_test_clock_no_thread_is_used(path, autojump_clock, monkeypatch):
    threads = set()
    write, read = os.replace, os.fstat
    monkeypatch.setattr(os, "replace", lambda *args: threads.add(threading.get_ident()) or write(*args))
    monkeypatch.setattr(os, "fstat", lambda fd: threads.add(threading.get_ident()) or read(fd))
    storage = FileStorage(path, JsonCodec())
    before = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 1000.0)
        with trio.testing.assert_checkpoints():
            await storage.set("a")
        with trio.testing.assert_checkpoints():
            assert await storage.get() == "a"
        assert await cancelled(storage.set, "b")
        assert await cancelled(storage.clear)
        assert await cancelled(storage.get)
        assert await storage.get() == "a"
        with trio.testing.assert_checkpoints():
            await storage.clear()
        assert trio.current_time() == before
        assert threads == {threading.get_ident()}


async def test_a_change_of_directory_does_not_move_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = FileStorage("value", JsonCodec())
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    await storage.set("a")
    assert (tmp_path / "value").exists()


@pytest.mark.parametrize(
    ("path", "codec", "error", "reason"),
    [
        (5, JsonCodec(), TypeError, "str"),
        (b"value", JsonCodec(), TypeError, "path must be a str"),
        ("", JsonCodec(), ValueError, "path must name a file"),
        ("a/", JsonCodec(), ValueError, "path must name a file"),
        ("a/..", JsonCodec(), ValueError, "path must name a file"),
        (".", JsonCodec(), ValueError, "path must name a file"),
        ("value", None, TypeError, "codec must be"),
        ("value", JsonCodec, TypeError, "codec must be"),
    ],
)
def test_files_need_a_path_and_a_codec(path, codec, error, reason):
    with pytest.raises(error, match=reason):
        FileStorage(path, codec)


def test_a_file_storage_says_where_it_is(path):
    assert repr(FileStorage(path, JsonCodec())) == f"FileStorage({str(path)!r}, JsonCodec())"


# Stores


async def test_a_store_keeps_it_for_ever(autojump_clock):
    async with open_memory_stores() as stores:
        storage = StoreStorage(stores.cache, "key")
        await storage.set(AuthToken("opaque"))
        await trio.sleep(1e8)
        assert await storage.get() == AuthToken("opaque")
        assert await stores.cache.get("key") == AuthToken("opaque")
        assert "opaque" not in repr(storage)
        assert await cancelled(storage.get)
        assert await cancelled(storage.set, AuthToken("b"))
        assert await cancelled(storage.clear)
        assert await storage.get() == AuthToken("opaque")


async def test_a_store_with_a_codec_keeps_its_text():
    async with open_memory_stores() as stores:
        storage = StoreStorage(stores.cache, "key", codec=AuthTokenCodec())
        await storage.set(AuthToken("abc", 5.0))
        assert await stores.cache.get("key") == '{"secret":"abc","expires_at":5.0}'
        assert await storage.get() == AuthToken("abc", 5.0)
        await stores.cache.set("key", 5, 0)
        with pytest.raises(TypeError, match="holds a value of type int"):
            await storage.get()


async def test_what_a_store_raises_is_raised():
    async with open_memory_stores() as stores:
        storage = StoreStorage(stores.cache, "key")
    for call in (storage.get, lambda: storage.set("a"), storage.clear):
        with pytest.raises(trio.ClosedResourceError):
            await call()


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ((None, "key"), TypeError, "cache_store must be a CacheStore; NoneType has no get"),
        ((MemoryStorage(), "key"), TypeError, "MemoryStorage has no delete"),
        (({}, "key"), TypeError, "cache_store"),
    ],
)
def test_a_store_storage_needs_a_store(arguments, error, reason):
    with pytest.raises(error, match=reason):
        StoreStorage(*arguments)


async def test_a_store_storage_needs_a_key_and_perhaps_a_codec():
    async with open_memory_stores() as stores:
        with pytest.raises(TypeError, match="key must be a str"):
            StoreStorage(stores.cache, 5)
        with pytest.raises(ValueError, match="key must not be empty"):
            StoreStorage(stores.cache, "")
        with pytest.raises(TypeError, match="codec must be"):
            StoreStorage(stores.cache, "key", codec=JsonCodec)

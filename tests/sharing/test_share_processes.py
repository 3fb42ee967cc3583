"""Real processes on one SQLite file: a cold start, and an owner that is killed while it fetches."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Reads what to do from its standard input, one line each; says "ready", and at the end what it got.
WORKER = """
import os, sys, time
import trio
from trio_renew import AuthToken, Share, open_provider
from trio_renew.stores.sqlite import open_sqlite_stores

database, log = sys.argv[1:3]
tasks, seconds, lease = int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])


async def mint():
    # One write of one line: what several processes append stays whole.
    with open(log, "ab", buffering=0) as file:
        file.write(f"{os.getpid()} {time.time()}\\n".encode())
    await trio.sleep(seconds)
    return AuthToken.expiring_in(f"from {os.getpid()}", 3600.0)


async def main():
    got = []

    async def task():
        got.append((await provider.get()).secret.reveal())

    print("ready", flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    async with open_sqlite_stores(database, lease=lease) as stores:
        share = Share(stores.cache, stores.dedupe, "token")
        async with open_provider(mint, share=share, eager=False) as provider:
            async with trio.open_nursery() as nursery:
                for _ in range(tasks):
                    nursery.start_soon(task)
    assert len(got) == tasks and len(set(got)) == 1
    print(got[0], flush=True)


trio.run(main)
"""


class Worker:
    def __init__(self, folder: Path, *, tasks: int, seconds: float, lease: float) -> None:
        arguments = [str(folder / "stores.db"), str(folder / "log"), str(tasks), str(seconds), str(lease)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def fetches(folder: Path) -> list[tuple[int, float]]:
    log = folder / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(pid), float(at)) for pid, at in map(str.split, lines)]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Callable[..., list[Worker]]]:
    workers: list[Worker] = []

    def start(count: int, **options: float) -> list[Worker]:
        new = [Worker(tmp_path, **options) for _ in range(count)]  # type: ignore[arg-type]
        workers.extend(new)
        assert [worker.read() for worker in new] == ["ready"] * count
        return new

    yield start
    for worker in workers:
        worker.end()


def test_a_cold_start_is_one_fetch(tmp_path: Path, fleet: Callable[..., list[Worker]]) -> None:
    workers = fleet(6, tasks=50, seconds=0.3, lease=10.0)
    for worker in workers:
        worker.go()
    got = {worker.read() for worker in workers}
    ((pid, _),) = fetches(tmp_path)
    assert got == {f"from {pid}"}


def test_a_killed_owner_is_replaced_once_within_a_lease(tmp_path: Path, fleet: Callable[..., list[Worker]]) -> None:
    lease = 1.5
    (owner,) = fleet(1, tasks=1, seconds=3600.0, lease=lease)
    peers = fleet(3, tasks=10, seconds=0.1, lease=lease)
    owner.go()
    while not fetches(tmp_path):
        time.sleep(0.01)
    for peer in peers:
        peer.go()
    time.sleep(0.5)
    owner.process.kill()
    killed_at = time.time()
    got = {peer.read() for peer in peers}
    (first, _), (second, taken_at) = fetches(tmp_path)
    assert first == owner.process.pid
    assert got == {f"from {second}"}
    # What lies beyond the lease is what two busy processors may add.
    assert taken_at - killed_at < lease + 3.0

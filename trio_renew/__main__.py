"""The command line: ``python -m trio_renew demo``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ._demo.view import View

__all__ = ("main",)

_NEEDED = ("httpx2", "hypercorn", "rich")
_SHORTEST = 4.0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not _SHORTEST <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be between {_SHORTEST:g} and 3600, not {text}")
    return seconds


def _workers(text: str) -> int:
    workers = int(text)
    if not 1 <= workers <= 2000:
        raise argparse.ArgumentTypeError(f"must be between 1 and 2000, not {text}")
    return workers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trio_renew", description="Renewable resources for Trio.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="many workers and one provider against a real token endpoint that fails",
        description=(
            "Starts an OAuth2 token endpoint and an API in a process of its own, on a loopback socket, lets many "
            "workers use it with one provider, makes the endpoint fail in various ways, and compares what was promised "
            "with what was seen. Exit status: 0 all promises kept, 1 one was broken, 130 interrupted."
        ),
    )
    demo.add_argument("--json", action="store_true", help="print a report in JSON, and nothing else")
    demo.add_argument("--seconds", type=_seconds, default=25.0, help="about how long it takes (default: 25)")
    demo.add_argument("--workers", type=_workers, default=200, help="how many workers there are (default: 200)")
    demo.add_argument("--seed", type=int, default=0, help="for what is random (default: 0)")
    demo.add_argument(
        "--sabotage", action="store_true", help="ask for tokens beside the provider, to see the table notice"
    )
    return parser


class _Stop:
    """Ctrl-C and a request to terminate: noted at any moment, and obeyed as soon as there is something to stop."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._stop: Callable[[], None] | None = None

    @contextmanager
    def listening(self) -> Generator[None, None, None]:
        """Receive the signals that end a program, for the time of a block."""
        before = {number: signal.signal(number, self._received) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _received(self, number: int, frame: object) -> None:
        self.number = number
        if self._stop is not None:
            self._stop()

    def stops(self, stop: Callable[[], None]) -> None:
        """What to call, at once if a signal has come already; it may be called in the middle of anything."""
        self._stop = stop
        if self.number is not None:
            stop()


def _demo(arguments: argparse.Namespace, stop: _Stop) -> int:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"the demo needs {', '.join(missing)}: pip install 'trio-renew[demo]'", file=sys.stderr)
        return 2

    import trio
    from rich.console import Console

    from ._demo.report import Report
    from ._demo.scenes import play
    from ._demo.view import LiveView, NoView, PlainView

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    report = Report(arguments.seconds, arguments.workers, arguments.seed)

    async def demo() -> None:
        """Play it on the view that fits where the output goes."""
        view: View = NoView()
        if not arguments.json:
            view = LiveView(console) if console.is_terminal else PlainView(console)
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            stop.stops(lambda: token.run_sync_soon(scope.cancel, idempotent=True))
            await play(report, view, sabotage=arguments.sabotage)

    trio.run(demo)
    if stop.number is not None:
        print("interrupted; everything is closed", file=sys.stderr)
        return 128 + stop.number
    if arguments.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        console.print(report.table())
        console.print(", ".join(f"{name}: {value}" for name, value in report.figures.items()), highlight=False)
        console.print("every promise was kept" if report.ok else "a promise was broken", style="bold")
    return 0 if report.ok else 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and give its exit status.

    Args:
      arguments: Without the program's name; None: those of the process.
    """
    stop = _Stop()
    parsed = _parser().parse_args(arguments)
    with stop.listening():
        return _demo(parsed, stop)


if __name__ == "__main__":
    sys.exit(main())

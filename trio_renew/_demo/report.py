"""What was promised, and what was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import attrs
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ("Promise", "Report")


@attrs.frozen
class Promise:
    """One line of the table.

    Attributes:
      what: What was promised, in words.
      promised: The bound.
      seen: What was seen.
      kept: Whether it was kept.
      source: Who counted: the server, or the workers of this process.
    """

    what: str
    promised: str
    seen: str
    kept: bool
    source: Literal["server", "workers"]


@attrs.define
class Report:
    """The outcome of a run."""

    seconds: float
    workers: int
    seed: int
    promises: list[Promise] = attrs.Factory(list[Promise])
    scenes: list[dict[str, Any]] = attrs.Factory(list[dict[str, Any]])
    figures: dict[str, Any] = attrs.Factory(dict[str, Any])
    events: dict[str, int] = attrs.Factory(dict[str, int])

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return all(promise.kept for promise in self.promises)

    def promise(
        self, what: str, promised: str, seen: object, kept: bool, source: Literal["server", "workers"] = "server"
    ) -> None:
        """Add a line."""
        shown = f"{seen:.2f}" if isinstance(seen, float) else str(seen)
        self.promises.append(Promise(what, promised, shown, kept, source))

    def as_json(self) -> dict[str, Any]:
        """The report as what JSON can carry."""
        return {"ok": self.ok, **attrs.asdict(self)}

    def table(self) -> RenderableType:
        """The report as a table."""
        table = Table(title="What was promised, and what was seen", title_justify="left", expand=False)
        table.add_column("promise")
        table.add_column("promised", justify="right")
        table.add_column("seen", justify="right")
        table.add_column("counted by")
        table.add_column("")
        for promise in self.promises:
            verdict = Text("kept", "green") if promise.kept else Text("BROKEN", "bold red")
            table.add_row(promise.what, promise.promised, promise.seen, promise.source, verdict)
        return table

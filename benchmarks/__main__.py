"""``python -m benchmarks [core] [behaviour] [keyed] [stores] [fleet]``: print the figures, and write them as JSON."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from ._measure import Figure

HERE = Path(__file__).parent
PARTS = [
    name for name in ("core", "behaviour", "keyed", "stores", "fleet") if importlib.util.find_spec(f"benchmarks.{name}")
]


def line(figure: Figure) -> str:
    goal = "" if figure.goal is None else f"{figure.goal:g}"
    verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
    times = f"{figure.ours:,.0f} / {figure.other:,.0f} {figure.unit}"
    return f"{figure.name:<52} {figure.ratio:>8.2f} {goal:>6} {verdict:<7} {times:>26}  vs {figure.against}"


def table(part: str, figures: list[Figure]) -> str:
    """The figures of one part for the documentation: ratios only, as the times are this machine's."""
    lines = [f"## {part}", "", "| figure | against | ratio | goal | |", "|---|---|--:|--:|---|"]
    for figure in figures:
        goal = "" if figure.goal is None else f"{figure.goal:g}"
        verdict = {None: "", True: "met", False: "**missed**"}[figure.met]
        lines.append(f"| {figure.name.strip()} | {figure.against} | {figure.ratio:.2f} | {goal} | {verdict} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Run the parts that are asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts; all by default")
    parser.add_argument("--rounds", type=int, default=7, help="rounds per figure (default 7)")
    parser.add_argument(
        "--json", type=Path, default=HERE / "results" / "figures.json", help="where to write the figures"
    )
    parser.add_argument("--table", type=Path, help="where to write them as a table for the documentation")
    options = parser.parse_args()
    report: dict[str, object] = {"python": platform.python_version(), "trio": trio.__version__}
    tables: list[str] = []
    print(f"{'figure':<52} {'ratio':>8} {'goal':>6} {'':<7} {'ours / other':>26}")
    for part in options.parts or PARTS:
        print(f"-- {part}")
        figures: list[Figure] = importlib.import_module(f"benchmarks.{part}").run(options.rounds)
        for figure in figures:
            print(line(figure), flush=True)
        tables.append(table(part, figures))
        report[part] = [attrs.asdict(figure) | {"met": figure.met} for figure in figures]
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {options.json}")
    if options.table is not None:
        options.table.write_text("\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The project's two commands, for a machine with nothing but Python 3.11 and pip.

    python dev.py demo [options]     install what the demo needs, and run it
    python dev.py test [options]     install what the tests need, and run them all

Both use the virtual environment that is active, or make one in ``.venv`` here. What is installed already is not
installed again, until ``pyproject.toml`` changes. Options go to ``python -m trio_renew demo`` and to pytest.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
TESTED = "crypto,demo,httpx,otel,redis,sqlite"


def environment_python() -> Path:
    """The Python to install into: of the active virtual environment, or of our own, made on first use."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.executable)
    active = os.environ.get("VIRTUAL_ENV")
    folder = Path(active) if active else HERE / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"making a virtual environment in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return python


def group(name: str, project: dict[str, Any]) -> list[str]:
    """The requirements of a dependency group; pip reads groups only from 25.1 on."""
    found: list[str] = []
    for item in project["dependency-groups"][name]:
        found += group(item["include-group"], project) if isinstance(item, dict) else [item]
    return found


def install(python: Path, what: str, extras: str, groups: list[str]) -> None:
    """Install this project, editable, with extras and groups; do nothing if that was done before."""
    text = (HERE / "pyproject.toml").read_bytes()
    project = tomllib.loads(text.decode())
    wanted = [requirement for name in groups for requirement in group(name, project)]
    state = hashlib.sha256(b"\0".join([text, str(HERE).encode(), extras.encode(), *(w.encode() for w in wanted)]))
    stamp = python.parent.parent / f".trio-renew-{what}"
    if stamp.exists() and stamp.read_text() == state.hexdigest():
        return
    print(f"installing what {what} needs", file=sys.stderr)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Standard output belongs to what is run.
    subprocess.run([*command, "--editable", f"{HERE}[{extras}]", *wanted], check=True, stdout=sys.stderr)
    stamp.write_text(state.hexdigest())


def run(python: Path, *arguments: str) -> NoReturn:
    """Run Python in the environment, as this very process where the system can: Ctrl-C then needs no forwarding."""
    command = [str(python), *arguments]
    sys.stdout.flush()
    if os.name == "nt":
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)


def main(arguments: list[str]) -> NoReturn:
    """Do what the command line says."""
    what, options = (arguments[0], arguments[1:]) if arguments else ("", [])
    if what not in ("demo", "test", "install"):
        sys.exit(str(__doc__))
    python = environment_python()
    if what == "demo":
        install(python, "demo", "demo", [])
        run(python, "-m", "trio_renew", "demo", *options)
    if what == "install":
        # for developers and CI: the named groups beside what the tests need
        install(python, "_".join(["install", *options]), TESTED, ["test", *options])
        sys.exit(0)
    install(python, "test", TESTED, ["test"])
    os.chdir(HERE)
    # Two processes: the tests are many and short, and none needs another one to have run before.
    spread = [] if any(option.startswith("-n") for option in options) else ["-n", str(min(2, os.cpu_count() or 1))]
    run(python, "-m", "pytest", "--dist=worksteal", *spread, *options)


if __name__ == "__main__":
    main(sys.argv[1:])
